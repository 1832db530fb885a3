# A Coordinator as a service of a confidential VM, for a mesh whose Coordinator is no container (docs/coordinator.md).
{ config, lib, ... }:
let
  units = import ../units.nix;
  cfg = config.services.portcullis;
  unit = units.options {
    file = ../../units/portcullis-coordinator.service;
    programs."/usr/sbin/portcullis-coordinator" = "${cfg.coordinator.package}/bin/coordinator";
  };
in
{
  options.services.portcullis.coordinator = {
    enable = lib.mkEnableOption "a Coordinator as a service of this VM";
    package = lib.mkOption {
      type = lib.types.package;
      default = cfg.package;
      defaultText = lib.literalExpression "config.services.portcullis.package";
      description = "Package with the program `coordinator` in its `bin`.";
    };
    extraArgs = lib.mkOption {
      # Without what systemd would take for a quote, a variable or a specifier, there is nothing to escape.
      type = lib.types.listOf (lib.types.strMatching "[A-Za-z0-9_@:/,.=+-]+");
      default = [ ];
      description = "Arguments behind those of the unit, a word each.";
    };
  };

  config = lib.mkIf cfg.coordinator.enable {
    systemd.services.portcullis-coordinator = unit // {
      serviceConfig = unit.serviceConfig // {
        ExecStart = builtins.concatStringsSep " " ([ unit.serviceConfig.ExecStart ] ++ cfg.coordinator.extraArgs);
      };
    };

    assertions = [
      {
        assertion = cfg.guard.enable;
        message = "services.portcullis.coordinator needs services.portcullis.guard: it opens its own port in the gate, and no other.";
      }
      {
        assertion = cfg.attest.enable;
        message = "services.portcullis.coordinator needs services.portcullis.attest: it asks that socket for the evidence it shows.";
      }
    ];
  };
}
