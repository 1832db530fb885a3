# What must be true of a Coordinator as a service.
{ machine, ... }:
let
  name = "portcullis-coordinator";
  settings = { guard.enable = true; attest.enable = true; coordinator.enable = true; };
  vm = machine.machine settings;
  exec = config: builtins.head (builtins.match "([^ ]*).*" (machine.service config name).serviceConfig.ExecStart);
  having = coordinator: machine.machine (settings // { coordinator = { enable = true; } // coordinator; });
in
{
  testNames = {
    expr = machine.names vm;
    expected = { services = [ "kata-agent" "podvm-attest" "podvm-guard" name ]; sockets = [ "podvm-attest" ]; paths = [ ]; };
  };
  testDisabled = {
    expr = machine.names (machine.machine (settings // { coordinator.enable = false; }));
    expected = { services = [ "kata-agent" "podvm-attest" "podvm-guard" ]; sockets = [ "podvm-attest" ]; paths = [ ]; };
  };

  testEdges = {
    expr = machine.edges (machine.service vm name);
    expected = {
      requires = [ "podvm-guard.service" ];
      bindsTo = [ "podvm-guard.service" ];
      wants = [ "podvm-attest.socket" "network-online.target" ];
      after = [ "podvm-guard.service" "podvm-attest.socket" "network-online.target" ];
      wantedBy = [ "multi-user.target" ];
      exec = "/fake/portcullis/bin/coordinator --systemd --tee socket --db /var/lib/portcullis/coordinator.db --audit-log /var/lib/portcullis/audit.log --collateral-dir /var/lib/portcullis/collateral";
    };
  };
  testProgram = {
    expr = map exec [ vm (having { package = machine.fake "another"; }) ];
    expected = [ "/fake/portcullis/bin/coordinator" "/fake/another/bin/coordinator" ];
  };
  testExtraArgs = {
    expr = (machine.service (having { extraArgs = [ "--a" "/b" ]; }) name).serviceConfig.ExecStart;
    expected = "${(machine.service vm name).serviceConfig.ExecStart} --a /b";
  };
  testSame = machine.same "service" (machine.service vm name) [ ../../units/portcullis-coordinator.service ];

  testNothingIsWrong = { expr = machine.messages vm; expected = [ ]; };
  testWithoutGuard = {
    expr = map (without: machine.messages (machine.machine (settings // without))) [{ guard.enable = false; attest.enable = false; } { attest.enable = false; }];
    expected =
      let evidence = "services.portcullis.coordinator needs services.portcullis.attest: it asks that socket for the evidence it shows."; in
      [
        [ "services.portcullis.coordinator needs services.portcullis.guard: it opens its own port in the gate, and no other." evidence ]
        [ evidence ]
      ];
  };
  testRefused = {
    expr = map (coordinator: machine.refused (settings // { coordinator = { enable = true; } // coordinator; })) [
      { enable = "yes"; }
      { extraArgs = "--a"; }
      { extraArgs = [ "two words" ]; }
      { extraArgs = [ "$HOME" ]; }
      { package = "/fake"; }
      { args = [ ]; }
      { extraArgs = [ "--a=b" ]; }
    ];
    expected = [ true true true true true true false ];
  };
}
