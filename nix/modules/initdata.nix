# The pod's initdata: verified before the first container, or the machine goes off (docs/initdata.md).
{ config, lib, ... }:
let
  units = import ../units.nix;
  cfg = config.services.portcullis;
in
{
  options.services.portcullis.initdata.enable =
    lib.mkEnableOption "the verification of the pod's initdata, without which kata-agent does not start";

  config = lib.mkIf cfg.initdata.enable {
    systemd.services = {
      podvm-initdata = lib.mkMerge [
        (units.options {
          file = ../../units/podvm-initdata.service;
          programs."/usr/sbin/podvm-initdata" = "${cfg.package}/bin/podvm-initdata";
        })
        {
          # Once in a boot: a second run would stop the agent, which is bound to it, and find the initdata delivered.
          restartIfChanged = false;
          stopIfChanged = false;
        }
      ];
      # Joins what guard.nix says of the agent.
      kata-agent = units.options { file = ../../units/kata-agent.service.d/20-podvm-initdata.conf; };
    };

    assertions = [
      {
        assertion = cfg.guard.enable;
        message = "services.portcullis.initdata needs services.portcullis.guard: what the host attached is read behind the gate.";
      }
      {
        assertion = !cfg.peerPods;
        message = "services.portcullis.initdata cannot go with services.portcullis.peerPods: peer pods get their initdata from cloud-api-adaptor.";
      }
    ];
  };
}
