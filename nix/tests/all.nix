# The modules together: what switches what on, what is refused, and that every option says what it is.
{ lib, machine, ... }:
let
  inherit (builtins) attrNames concatMap isString;
  gate = { guard.enable = true; attest.enable = true; };
  guest = { guestPlacement = true; meshproxy.envoy = "/fake/envoy/bin/envoy"; };

  undescribed = at: tree: concatMap
    (name:
      let o = tree.${name}; here = "${at}.${name}"; in
      if o ? type then (if isString (o.description or null) && o.description != "" then [ ] else [ here ]) else undescribed here o)
    (attrNames tree);
  declared = (lib.evalModules { modules = [ ./stub.nix ../modules ]; }).options.services.portcullis;
in
{
  testNothingByDefault = {
    expr = { inherit (machine.bare) assertions boot; names = machine.names machine.bare; };
    expected = { assertions = [ ]; boot.kernelModules = [ ]; names = { services = [ ]; sockets = [ ]; paths = [ ]; }; };
  };
  testGate = {
    expr = machine.names (machine.machine gate);
    expected = { services = [ "kata-agent" "podvm-attest" "podvm-guard" ]; sockets = [ "podvm-attest" ]; paths = [ ]; };
  };
  testGuestPlacement = {
    expr = machine.names (machine.machine guest);
    expected = {
      services = [ "kata-agent" "podvm-attest" "podvm-guard" "podvm-initdata" "podvm-initializer" "podvm-meshproxy" ];
      sockets = [ "podvm-attest" ];
      paths = [ "podvm-initializer" ];
    };
  };
  testGuestPlacementIsADefault = {
    expr = machine.names (machine.machine (guest // { meshproxy.enable = false; }));
    expected = {
      services = [ "kata-agent" "podvm-attest" "podvm-guard" "podvm-initdata" "podvm-initializer" ];
      sockets = [ "podvm-attest" ];
      paths = [ "podvm-initializer" ];
    };
  };
  testPeerPods = {
    expr = machine.names (machine.machine (gate // { peerPods = true; }));
    expected = {
      services = [ "agent-protocol-forwarder" "kata-agent" "podvm-attest" "podvm-guard" ];
      sockets = [ "podvm-attest" ];
      paths = [ ];
    };
  };

  testNothingIsWrong = {
    expr = map machine.messages [ machine.bare (machine.machine gate) (machine.machine guest) (machine.machine (gate // { peerPods = true; })) ];
    expected = [ [ ] [ ] [ ] [ ] ];
  };
  testGuestPlacementWithPeerPods = {
    expr = machine.messages (machine.machine (guest // { peerPods = true; }));
    expected = [
      "services.portcullis.initdata cannot go with services.portcullis.peerPods: peer pods get their initdata from cloud-api-adaptor."
      "services.portcullis.guestPlacement cannot go with services.portcullis.peerPods: the mesh reads what it does from the initdata of a Kata guest."
    ];
  };

  testMisspeltOption = { expr = machine.refused { guard.enabel = true; }; expected = true; };
  testMisspeltComponent = { expr = machine.refused { gaurd.enable = true; }; expected = true; };
  testStringForBool = { expr = machine.refused (gate // { peerPods = "yes"; }); expected = true; };
  testStringForGuestPlacement = { expr = machine.refused (gate // { guestPlacement = "yes"; }); expected = true; };
  testPathForPackage = { expr = machine.refused (gate // { package = "/fake"; }); expected = true; };
  testSetForComponent = { expr = machine.refused { guard = true; }; expected = true; };
  # The control of the six above.
  testNotRefused = { expr = machine.refused gate; expected = false; };
  testPackageHasNoDefault = {
    expr = (builtins.tryEval machine.bare.services.portcullis.package).success;
    expected = false;
  };

  testEveryOptionIsDescribed = { expr = undescribed "services.portcullis" declared; expected = [ ]; };
  testOptions = {
    expr = builtins.mapAttrs (_: o: if o ? type then "" else attrNames o) declared;
    expected = {
      package = "";
      peerPods = "";
      guestPlacement = "";
      guard = [ "enable" ];
      attest = [ "enable" ];
      initdata = [ "enable" ];
      initializer = [ "enable" ];
      meshproxy = [ "enable" "envoy" ];
      coordinator = [ "enable" "extraArgs" "package" ];
    };
  };
}
