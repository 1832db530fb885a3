# What must be true of the gate, said a second time: edges that change in units/ alone fail here.
{ machine, ... }:
let
  kata = machine.machine { guard.enable = true; };
  peerPods = machine.machine { guard.enable = true; peerPods = true; };
  behindTheGuard = {
    requires = [ "podvm-guard.service" ];
    bindsTo = [ "podvm-guard.service" ];
    after = [ "podvm-guard.service" ];
  };
in
{
  testNames = {
    expr = machine.names kata;
    expected = { services = [ "kata-agent" "podvm-guard" ]; sockets = [ ]; paths = [ ]; };
  };
  testDisabled = {
    expr = machine.names (machine.machine { guard.enable = false; peerPods = true; });
    expected = { services = [ ]; sockets = [ ]; paths = [ ]; };
  };

  testEdges = {
    expr = machine.edges (machine.service kata "podvm-guard");
    expected = {
      after = [ "systemd-modules-load.service" ];
      wants = [ "network-pre.target" ];
      before = [ "network-pre.target" "sysinit.target" "kata-agent.service" ];
      requiredBy = [ "kata-agent.service" ];
      defaultDependencies = "no";
      failureAction = "poweroff-force";
      exec = "/fake/portcullis/bin/podvm-guard close";
    };
  };
  testPeerPodsEdges = {
    expr = machine.edges (machine.service peerPods "podvm-guard");
    expected = {
      bindsTo = [ "netns@podns.service" ];
      after = [ "netns@podns.service" "systemd-modules-load.service" ];
      before = [ "kata-agent.service" "agent-protocol-forwarder.service" ];
      requiredBy = [ "kata-agent.service" "agent-protocol-forwarder.service" ];
      defaultDependencies = "no";
      failureAction = "poweroff-force";
      exec = "/fake/portcullis/bin/podvm-guard close";
    };
  };
  testNetwork = {
    expr = map (c: (machine.service c "podvm-guard").serviceConfig.NetworkNamespacePath or null) [ kata peerPods ];
    expected = [ null "/run/netns/podns" ];
  };
  testRunsOnce = {
    expr = map
      (c:
        let unit = machine.service c "podvm-guard"; in
        {
          inherit (unit) enable restartIfChanged stopIfChanged;
          Type = unit.serviceConfig.Type or null;
          RemainAfterExit = unit.serviceConfig.RemainAfterExit or null;
        })
      [ kata peerPods ];
    expected =
      let once = { enable = true; restartIfChanged = false; stopIfChanged = false; Type = "oneshot"; RemainAfterExit = "yes"; }; in
      [ once once ];
  };
  testAgent = {
    expr = map (c: machine.edges (machine.service c "kata-agent")) [ kata peerPods ];
    expected = [ behindTheGuard behindTheGuard ];
  };
  testForwarder = {
    expr = machine.edges (machine.service peerPods "agent-protocol-forwarder");
    expected = behindTheGuard;
  };
  # A drop-in where the agent comes in a package, one with the unit where it comes in a module.
  testDropIns = {
    expr = map (n: (machine.service peerPods n).overrideStrategy) [ "kata-agent" "agent-protocol-forwarder" ];
    expected = [ "asDropinIfExists" "asDropinIfExists" ];
  };
  testAgentOfAnotherModule = {
    expr =
      let
        agent = machine.service
          (machine.machineWith { systemd.services.kata-agent = { after = [ "a.service" ]; serviceConfig.ExecStart = "/fake/kata-agent"; }; }
            { guard.enable = true; })
          "kata-agent";
      in
      { inherit (agent) requires; exec = agent.serviceConfig.ExecStart; behind = builtins.elem "podvm-guard.service" agent.after; };
    expected = { requires = [ "podvm-guard.service" ]; exec = "/fake/kata-agent"; behind = true; };
  };
  testKernelModules = {
    expr = kata.boot.kernelModules;
    expected = [ "nf_tables" "nf_conntrack" "nft_ct" "nft_fib_inet" "nft_socket" "nft_tproxy" "sev-guest" "tdx_guest" ];
  };

  testSame = machine.same "service" (machine.service kata "podvm-guard") [ ../../units/podvm-guard.service ];
  testPeerPodsSame = machine.same "service" (machine.service peerPods "podvm-guard") [ ../../units/peerpods/podvm-guard.service ];
  testAgentSame = machine.same "service" (machine.service kata "kata-agent") [ ../../units/kata-agent.service.d/10-podvm-guard.conf ];
  testForwarderSame = machine.same "service" (machine.service peerPods "agent-protocol-forwarder")
    [ ../../units/peerpods/agent-protocol-forwarder.service.d/10-podvm-guard.conf ];

  testNothingIsWrong = { expr = map machine.messages [ kata peerPods ]; expected = [ [ ] [ ] ]; };
  testFlush = {
    expr = machine.messages (machine.machineWith { networking.nftables.flushRuleset = true; } { guard.enable = true; });
    expected = [
      "services.portcullis.guard needs networking.nftables.flushRuleset = false: a flush takes the table of the gate with it, and leaves it open."
    ];
  };
  testFlushWithoutGuard = {
    expr = machine.messages (machine.machineWith { networking.nftables.flushRuleset = true; } { });
    expected = [ ];
  };
  testStringForBool = { expr = machine.refused { guard.enable = "yes"; }; expected = true; };
}
