# What must be true of the mesh proxy as a service of the image.
{ machine, ... }:
let
  settings = {
    guard.enable = true;
    attest.enable = true;
    initdata.enable = true;
    initializer.enable = true;
    meshproxy = { enable = true; envoy = "/fake/envoy/bin/envoy"; };
  };
  kata = machine.machine settings;
  without = names: machine.messages (machine.machine (removeAttrs settings names));
in
{
  testNames = {
    expr = (machine.names kata).services;
    expected = [ "kata-agent" "podvm-attest" "podvm-guard" "podvm-initdata" "podvm-initializer" "podvm-meshproxy" ];
  };
  testDisabled = {
    expr = (machine.names (machine.machine (settings // { meshproxy.enable = false; }))).services;
    expected = [ "kata-agent" "podvm-attest" "podvm-guard" "podvm-initdata" "podvm-initializer" ];
  };

  testEdges = {
    expr = machine.edges (machine.service kata "podvm-meshproxy");
    expected = {
      requires = [ "podvm-initdata.service" "podvm-guard.service" ];
      after = [ "podvm-initdata.service" "podvm-guard.service" "podvm-initializer.service" ];
      exec = "/fake/portcullis/bin/meshproxy --pod /run/podvm --credentials /run/contrast --envoy /fake/envoy/bin/envoy";
    };
  };
  testForEver = {
    expr = let unit = machine.service kata "podvm-meshproxy"; in [ (unit.unitConfig.StartLimitIntervalSec or null) (unit.serviceConfig.Restart or null) ];
    expected = [ "0" "on-failure" ];
  };
  # podvm-guard close would take the egress lock away.
  testNothingBehindIt = {
    expr = (machine.service kata "podvm-meshproxy").serviceConfig.ExecStopPost or null;
    expected = null;
  };

  testSame = machine.same "service" (machine.service kata "podvm-meshproxy") [ ../../units/podvm-meshproxy.service ];

  testNothingIsWrong = { expr = machine.messages kata; expected = [ ]; };
  testWithoutGuard = {
    expr = without [ "guard" ];
    expected = [
      "services.portcullis.attest needs services.portcullis.guard: evidence is for pods behind the gate."
      "services.portcullis.initdata needs services.portcullis.guard: what the host attached is read behind the gate."
      "services.portcullis.initializer needs services.portcullis.guard: the mesh is behind the gate."
      "services.portcullis.meshproxy needs services.portcullis.guard: it lifts the gate for its Envoy alone."
    ];
  };
  testWithoutInitdata = {
    expr = without [ "initdata" ];
    expected = [
      "services.portcullis.initializer needs services.portcullis.initdata: what it is to do stands in the verified initdata."
      "services.portcullis.meshproxy needs services.portcullis.initdata: what it is to do stands in the verified initdata."
    ];
  };
  testWithoutInitializer = {
    expr = without [ "initializer" ];
    expected = [
      "services.portcullis.meshproxy needs services.portcullis.initializer: it has its credentials from there, and is started by it."
    ];
  };
  testEnvoyHasNoDefault = { expr = machine.refused (settings // { meshproxy.enable = true; }); expected = true; };
  testEnvoyIsAPath = { expr = machine.refused (settings // { meshproxy = { enable = true; envoy = "envoy"; }; }); expected = true; };
  testNotRefused = { expr = machine.refused settings; expected = false; };
  testStringForBool = { expr = machine.refused (settings // { meshproxy = settings.meshproxy // { enable = "yes"; }; }); expected = true; };
}
