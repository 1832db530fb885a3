# The pod's mesh proxy, where its measured initdata says that a service of the image is it (docs/guest-placement.md). It is
# wanted by podvm-initializer.service, and starts Envoy itself.
{ config, lib, ... }:
let
  units = import ../units.nix;
  cfg = config.services.portcullis;
in
{
  options.services.portcullis.meshproxy = {
    enable = lib.mkEnableOption "the mesh proxy as a service of the image";
    envoy = lib.mkOption {
      type = lib.types.path;
      description = "The Envoy that it starts, e.g. `lib.getExe pkgs.envoy-bin`.";
    };
  };

  config = lib.mkIf cfg.meshproxy.enable {
    systemd.services.podvm-meshproxy = units.options {
      file = ../../units/podvm-meshproxy.service;
      programs = {
        "/usr/sbin/podvm-meshproxy" = "${cfg.package}/bin/meshproxy";
        "/usr/lib/podvm/envoy" = "${cfg.meshproxy.envoy}";
      };
    };

    assertions = [
      {
        assertion = cfg.guard.enable;
        message = "services.portcullis.meshproxy needs services.portcullis.guard: it lifts the gate for its Envoy alone.";
      }
      {
        assertion = cfg.initdata.enable;
        message = "services.portcullis.meshproxy needs services.portcullis.initdata: what it is to do stands in the verified initdata.";
      }
      {
        assertion = cfg.initializer.enable;
        message = "services.portcullis.meshproxy needs services.portcullis.initializer: it has its credentials from there, and is started by it.";
      }
    ];
  };
}
