# Portcullis' components as NixOS modules, one file each, and what they share. A podVM image made with NixOS takes these in
# place of the files that units/README.md lists; the units come from units/ all the same.
{ config, lib, ... }:
let
  cfg = config.services.portcullis;
in
{
  imports = [ ./guard.nix ./attest.nix ./initdata.nix ./initializer.nix ./meshproxy.nix ./coordinator.nix ];

  options.services.portcullis = {
    package = lib.mkOption {
      type = lib.types.package;
      description = "Package with the programs of Portcullis in its `bin`.";
    };
    peerPods = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether this is the image of a peer pod (cloud-api-adaptor): guard and evidence are of the network namespace `podns`, which
        cloud-api-adaptor's `netns@.service` makes, and its forwarder waits for the guard as well.
      '';
    };
    guestPlacement = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether services of the image are the mesh where the pod's initdata says so: enables all of them, the gate first.
        NixOS' own firewall is on by default and drops what comes in, mesh or not: turn it off, or let it pass the ports of the pods.
      '';
    };
  };

  config = lib.mkIf cfg.guestPlacement {
    services.portcullis = {
      guard.enable = lib.mkDefault true;
      attest.enable = lib.mkDefault true;
      initdata.enable = lib.mkDefault true;
      initializer.enable = lib.mkDefault true;
      meshproxy.enable = lib.mkDefault true;
    };
    assertions = [{
      assertion = !cfg.peerPods;
      message = "services.portcullis.guestPlacement cannot go with services.portcullis.peerPods: the mesh reads what it does from the initdata of a Kata guest.";
    }];
  };
}
