# The pod's mesh credentials, where its measured initdata says that services of the image obtain them (docs/guest-placement.md).
{ config, lib, ... }:
let
  units = import ../units.nix;
  cfg = config.services.portcullis;
in
{
  options.services.portcullis.initializer.enable = lib.mkEnableOption "the Initializer as a service of the image";

  config = lib.mkIf cfg.initializer.enable {
    # NixOS ignores [Install]: it is wantedBy that has the agent pull the path in, and the path starts the service.
    systemd.paths.podvm-initializer = units.options { file = ../../units/podvm-initializer.path; };
    systemd.services.podvm-initializer = units.options {
      file = ../../units/podvm-initializer.service;
      programs."/usr/sbin/podvm-initializer" = "${cfg.package}/bin/initializer";
    };

    assertions = [
      {
        assertion = cfg.guard.enable;
        message = "services.portcullis.initializer needs services.portcullis.guard: the mesh is behind the gate.";
      }
      {
        assertion = cfg.initdata.enable;
        message = "services.portcullis.initializer needs services.portcullis.initdata: what it is to do stands in the verified initdata.";
      }
      {
        assertion = cfg.attest.enable;
        message = "services.portcullis.initializer needs services.portcullis.attest: it asks that socket for the evidence it shows the Coordinator.";
      }
    ];
  };
}
