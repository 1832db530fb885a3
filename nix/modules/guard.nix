# The gate of the podVM: down before the first container, or the machine goes off (docs/guard.md).
{ config, lib, ... }:
let
  units = import ../units.nix;
  cfg = config.services.portcullis;
  # Both sides of the edge between guard and agent, as in any image. NixOS has no enabled units: what [Install] says comes as
  # requiredBy, of which it makes the link. It writes a drop-in, overrides.conf, if the other unit is from systemd.packages;
  # if it is from a module, the two are one; and if there is none, the agent has nothing to start and does not. Either way the agent
  # gets the short PATH of NixOS' services: what it calls goes to systemd.services.kata-agent.path.
  dropIn = file: units.options { inherit file; };
in
{
  options.services.portcullis.guard.enable = lib.mkEnableOption "the gate of the podVM, without which kata-agent does not start";

  config = lib.mkIf cfg.guard.enable {
    boot.kernelModules = units.kernelModules { file = ../../units/modules-load.conf; };

    systemd.services = {
      podvm-guard = lib.mkMerge [
        (units.options {
          file = if cfg.peerPods then ../../units/peerpods/podvm-guard.service else ../../units/podvm-guard.service;
          programs."/usr/sbin/podvm-guard" = "${cfg.package}/bin/podvm-guard";
        })
        {
          # A switch to another configuration must not close the gate of a pod that runs, nor stop the agent, which is bound to it.
          restartIfChanged = false;
          stopIfChanged = false;
        }
      ];
      kata-agent = dropIn ../../units/kata-agent.service.d/10-podvm-guard.conf;
      agent-protocol-forwarder = lib.mkIf cfg.peerPods
        (dropIn ../../units/peerpods/agent-protocol-forwarder.service.d/10-podvm-guard.conf);
    };

    assertions = [{
      # NixOS turns this on by itself where networking.nftables has a ruleset, or for a system.stateVersion before 23.11.
      assertion = !config.networking.nftables.flushRuleset;
      message = "services.portcullis.guard needs networking.nftables.flushRuleset = false: a flush takes the table of the gate with it, and leaves it open.";
    }];
  };
}
