# What must be true of a Coordinator as a service.
{ machine, ... }:
let
  settings = { guard.enable = true; coordinator.enable = true; };
  vm = machine.machine settings;
  exec = config: builtins.head (builtins.match "([^ ]*).*" (machine.service config "coordinator").serviceConfig.ExecStart);
  having = coordinator: machine.machine (settings // { coordinator = { enable = true; } // coordinator; });
in
{
  testNames = {
    expr = machine.names vm;
    expected = { services = [ "coordinator" "kata-agent" "podvm-guard" ]; sockets = [ ]; paths = [ ]; };
  };
  testDisabled = {
    expr = machine.names (machine.machine (settings // { coordinator.enable = false; }));
    expected = { services = [ "kata-agent" "podvm-guard" ]; sockets = [ ]; paths = [ ]; };
  };

  testProgram = {
    expr = map exec [ vm (having { package = machine.fake "another"; }) ];
    expected = [ "/fake/portcullis/bin/coordinator" "/fake/another/bin/coordinator" ];
  };
  testExtraArgs = {
    expr = (machine.service (having { extraArgs = [ "--a" "/b" ]; }) "coordinator").serviceConfig.ExecStart;
    expected = "${(machine.service vm "coordinator").serviceConfig.ExecStart} --a /b";
  };
  testSame = machine.same "service" (machine.service vm "coordinator") [ ../../units/coordinator.service ];

  testNothingIsWrong = { expr = machine.messages vm; expected = [ ]; };
  testWithoutGuard = {
    expr = machine.messages (machine.machine { coordinator.enable = true; });
    expected = [ "services.portcullis.coordinator needs services.portcullis.guard: it opens its own port in the gate, and no other." ];
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
