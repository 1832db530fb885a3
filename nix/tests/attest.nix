# What must be true of evidence for the pod.
{ machine, ... }:
let
  settings = { guard.enable = true; attest.enable = true; };
  kata = machine.machine settings;
  peerPods = machine.machine (settings // { peerPods = true; });
in
{
  testDisabled = {
    expr = machine.names (machine.machine (settings // { attest.enable = false; }));
    expected = { services = [ "kata-agent" "podvm-guard" ]; sockets = [ ]; paths = [ ]; };
  };
  testNames = {
    expr = machine.names kata;
    expected = { services = [ "kata-agent" "podvm-attest" "podvm-guard" ]; sockets = [ "podvm-attest" ]; paths = [ ]; };
  };

  testServiceEdges = {
    expr = map (c: machine.edges (machine.service c "podvm-attest")) [ kata peerPods ];
    expected =
      let
        edges = {
          requires = [ "podvm-attest.socket" ];
          after = [ "podvm-attest.socket" "sys-kernel-config.mount" ];
          exec = "/fake/portcullis/bin/podvm-attest";
        };
      in
      [ edges edges ];
  };
  testSocketEdges = {
    expr = machine.edges (machine.socket kata "podvm-attest");
    expected = {
      after = [ "podvm-guard.service" ];
      before = [ "kata-agent.service" ];
      wantedBy = [ "kata-agent.service" ];
    };
  };
  testPeerPodsSocketEdges = {
    expr = machine.edges (machine.socket peerPods "podvm-attest");
    expected = {
      bindsTo = [ "netns@podns.service" ];
      requires = [ "sysinit.target" ];
      conflicts = [ "shutdown.target" ];
      after = [ "netns@podns.service" "podvm-guard.service" "sysinit.target" ];
      before = [ "kata-agent.service" "shutdown.target" ];
      wantedBy = [ "kata-agent.service" ];
      defaultDependencies = "no";
    };
  };
  testListens = {
    expr = map (c: { inherit (machine.socket c "podvm-attest") listenStreams socketConfig; }) [ kata peerPods ];
    expected = [
      { listenStreams = [ "@podvm-attest" ]; socketConfig = { }; }
      { listenStreams = [ "@podvm-attest" ]; socketConfig.NetworkNamespacePath = "/run/netns/podns"; }
    ];
  };
  # Nothing that the socket's agent needs waits for it.
  testAgentDoesNotRequireIt = {
    expr = (machine.service kata "kata-agent").requires;
    expected = [ "podvm-guard.service" ];
  };

  testServiceSame = machine.same "service" (machine.service kata "podvm-attest") [ ../../units/podvm-attest.service ];
  testSocketSame = machine.same "socket" (machine.socket kata "podvm-attest") [ ../../units/podvm-attest.socket ];
  testPeerPodsSocketSame = machine.same "socket" (machine.socket peerPods "podvm-attest") [ ../../units/peerpods/podvm-attest.socket ];

  testNothingIsWrong = { expr = map machine.messages [ kata peerPods ]; expected = [ [ ] [ ] ]; };
  testWithoutGuard = {
    expr = machine.messages (machine.machine { attest.enable = true; });
    expected = [ "services.portcullis.attest needs services.portcullis.guard: evidence is for pods behind the gate." ];
  };
  testStringForBool = { expr = machine.refused (settings // { attest.enable = "yes"; }); expected = true; };
}
