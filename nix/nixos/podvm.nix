# What makes a NixOS system a Kata guest with the gate: the agent's unit and target, as in the other image (image/tree).
{ config, lib, ... }:
let
  units = import ../units.nix;
  tree = ../../image/tree;
in
{
  options.podvm.agent = lib.mkOption {
    type = lib.types.path;
    description = "The kata-agent, built without its own reading of initdata (docs/image.md).";
  };

  config = {
    systemd.services.kata-agent = units.options {
      file = tree + "/usr/lib/systemd/system/kata-agent.service";
      programs."/usr/bin/kata-agent" = "${config.podvm.agent}";
    };
    systemd.targets.kata-containers = units.options { file = tree + "/usr/lib/systemd/system/kata-containers.target"; };
    boot.kernelModules = units.kernelModules { file = tree + "/usr/lib/modules-load.d/kata.conf"; };
    # Without measured initdata the agent has this policy, which denies every request.
    environment.etc."kata-opa/default-policy.rego".source = tree + "/etc/kata-opa/default-policy.rego";

    services.portcullis.guard.enable = true;
    services.portcullis.attest.enable = true;

    # The gate is the firewall, and the agent brings the network.
    networking.firewall.enable = false;
    networking.useDHCP = lib.mkDefault false;
  };
}
