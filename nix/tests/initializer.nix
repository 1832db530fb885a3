# What must be true of the Initializer as a service of the image.
{ machine, ... }:
let
  settings = { guard.enable = true; attest.enable = true; initdata.enable = true; initializer.enable = true; };
  kata = machine.machine settings;
  without = names: machine.messages (machine.machine (removeAttrs settings names));
in
{
  testNames = {
    expr = machine.names kata;
    expected = {
      services = [ "kata-agent" "podvm-attest" "podvm-guard" "podvm-initdata" "podvm-initializer" ];
      sockets = [ "podvm-attest" ];
      paths = [ "podvm-initializer" ];
    };
  };
  testDisabled = {
    expr = machine.names (machine.machine (settings // { initializer.enable = false; }));
    expected = {
      services = [ "kata-agent" "podvm-attest" "podvm-guard" "podvm-initdata" ];
      sockets = [ "podvm-attest" ];
      paths = [ ];
    };
  };

  testEdges = {
    expr = machine.edges (machine.service kata "podvm-initializer");
    expected = {
      requires = [ "podvm-initdata.service" "podvm-guard.service" ];
      after = [ "podvm-initdata.service" "podvm-guard.service" "podvm-attest.socket" ];
      wants = [ "podvm-meshproxy.service" ];
      exec = "/fake/portcullis/bin/initializer --pod /run/podvm --dir /run/contrast --volume /run/kata-containers/sandbox/ephemeral/contrast-secrets";
    };
  };
  testPath = {
    expr = let path = machine.path kata "podvm-initializer"; in machine.edges (path // { serviceConfig = { }; }) // { inherit (path) pathConfig; };
    expected = {
      wantedBy = [ "kata-agent.service" ];
      pathConfig.PathExists = "/run/kata-containers/sandbox/resolv.conf";
    };
  };
  testForEver = {
    expr = let unit = machine.service kata "podvm-initializer"; in [ (unit.unitConfig.StartLimitIntervalSec or null) (unit.serviceConfig.Restart or null) ];
    expected = [ "0" "on-failure" ];
  };

  testServiceSame = machine.same "service" (machine.service kata "podvm-initializer") [ ../../units/podvm-initializer.service ];
  testPathSame = machine.same "path" (machine.path kata "podvm-initializer") [ ../../units/podvm-initializer.path ];

  testNothingIsWrong = { expr = machine.messages kata; expected = [ ]; };
  testWithoutGuard = {
    expr = without [ "guard" ];
    expected = [
      "services.portcullis.attest needs services.portcullis.guard: evidence is for pods behind the gate."
      "services.portcullis.initdata needs services.portcullis.guard: what the host attached is read behind the gate."
      "services.portcullis.initializer needs services.portcullis.guard: the mesh is behind the gate."
    ];
  };
  testWithoutInitdata = {
    expr = without [ "initdata" ];
    expected = [
      "services.portcullis.initializer needs services.portcullis.initdata: what it is to do stands in the verified initdata."
    ];
  };
  testWithoutAttest = {
    expr = without [ "attest" ];
    expected = [
      "services.portcullis.initializer needs services.portcullis.attest: it asks that socket for the evidence it shows the Coordinator."
    ];
  };
  testStringForBool = { expr = machine.refused (settings // { initializer.enable = "yes"; }); expected = true; };
}
