# Evidence of the TEE for the pod's containers, which reach neither configfs nor the TEE's device. systemd listens and starts the
# program when the first container asks.
{ config, lib, ... }:
let
  units = import ../units.nix;
  cfg = config.services.portcullis;
in
{
  options.services.portcullis.attest.enable = lib.mkEnableOption "the socket with evidence of the podVM's TEE";

  config = lib.mkIf cfg.attest.enable {
    systemd.services.podvm-attest = units.options {
      file = ../../units/podvm-attest.service;
      programs."/usr/sbin/podvm-attest" = "${cfg.package}/bin/podvm-attest";
    };
    # NixOS ignores [Install]: it is wantedBy that has the agent pull the socket in.
    systemd.sockets.podvm-attest = units.options {
      file = if cfg.peerPods then ../../units/peerpods/podvm-attest.socket else ../../units/podvm-attest.socket;
    };

    assertions = [{
      assertion = cfg.guard.enable;
      message = "services.portcullis.attest needs services.portcullis.guard: evidence is for pods behind the gate.";
    }];
  };
}
