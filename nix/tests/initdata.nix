# What must be true of the pod's initdata.
{ machine, ... }:
let
  settings = { guard.enable = true; initdata.enable = true; };
  kata = machine.machine settings;
in
{
  testNames = {
    expr = machine.names kata;
    expected = { services = [ "kata-agent" "podvm-guard" "podvm-initdata" ]; sockets = [ ]; paths = [ ]; };
  };
  testDisabled = {
    expr =
      let config = machine.machine (settings // { initdata.enable = false; }); in
      { names = machine.names config; agent = machine.edges (machine.service config "kata-agent"); };
    expected = {
      names = { services = [ "kata-agent" "podvm-guard" ]; sockets = [ ]; paths = [ ]; };
      agent = { requires = [ "podvm-guard.service" ]; bindsTo = [ "podvm-guard.service" ]; after = [ "podvm-guard.service" ]; };
    };
  };

  testEdges = {
    expr = machine.edges (machine.service kata "podvm-initdata");
    expected = {
      requires = [ "podvm-guard.service" ];
      after = [
        "podvm-guard.service"
        "systemd-modules-load.service"
        "sys-kernel-config.mount"
        "systemd-tmpfiles-setup-dev.service"
        "podvm-attest.socket"
      ];
      before = [ "kata-agent.service" ];
      requiredBy = [ "kata-agent.service" ];
      defaultDependencies = "no";
      failureAction = "poweroff-force";
      exec = "/fake/portcullis/bin/podvm-initdata";
    };
  };
  testRunsOnce = {
    expr =
      let unit = machine.service kata "podvm-initdata"; in
      {
        inherit (unit) enable restartIfChanged stopIfChanged;
        Type = unit.serviceConfig.Type or null;
        RemainAfterExit = unit.serviceConfig.RemainAfterExit or null;
      };
    expected = { enable = true; restartIfChanged = false; stopIfChanged = false; Type = "oneshot"; RemainAfterExit = "yes"; };
  };
  # Behind both, with the policy that was verified.
  testAgent = {
    expr = let agent = machine.service kata "kata-agent"; in machine.edges agent // { inherit (agent) environment overrideStrategy; };
    expected = {
      requires = [ "podvm-guard.service" "podvm-initdata.service" ];
      bindsTo = [ "podvm-guard.service" "podvm-initdata.service" ];
      after = [ "podvm-guard.service" "podvm-initdata.service" ];
      environment.KATA_AGENT_POLICY_FILE = "/run/podvm/policy.rego";
      overrideStrategy = "asDropinIfExists";
    };
  };
  testDevices = {
    expr = (machine.service kata "podvm-initdata").serviceConfig.DeviceAllow;
    expected = [ "block-* r" "/dev/sev-guest rw" "/dev/tdx_guest rw" ];
  };

  testSame = machine.same "service" (machine.service kata "podvm-initdata") [ ../../units/podvm-initdata.service ];
  testAgentSame = machine.same "service" (machine.service kata "kata-agent") [
    ../../units/kata-agent.service.d/10-podvm-guard.conf
    ../../units/kata-agent.service.d/20-podvm-initdata.conf
  ];

  testNothingIsWrong = { expr = machine.messages kata; expected = [ ]; };
  testWithoutGuard = {
    expr = machine.messages (machine.machine { initdata.enable = true; });
    expected = [ "services.portcullis.initdata needs services.portcullis.guard: what the host attached is read behind the gate." ];
  };
  testWithPeerPods = {
    expr = machine.messages (machine.machine (settings // { peerPods = true; }));
    expected = [ "services.portcullis.initdata cannot go with services.portcullis.peerPods: peer pods get their initdata from cloud-api-adaptor." ];
  };
  testStringForBool = { expr = machine.refused (settings // { initdata.enable = "yes"; }); expected = true; };
}
