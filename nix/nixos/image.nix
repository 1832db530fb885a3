# The podVM as a disk with a verified /usr and store, and a UKI whose command line has their root hash.
{ config, lib, modulesPath, ... }:
let
  inherit (config.image.repart.verityStore) partitionIds;
in
{
  imports = [
    "${modulesPath}/image/repart.nix"
    "${modulesPath}/profiles/minimal.nix"
    "${modulesPath}/profiles/perlless.nix"
  ];

  services.portcullis.guestPlacement = true;

  system.image = {
    id = "podvm";
    inherit (import ../packages.nix) version;
  };
  image.repart = {
    name = "podvm";
    verityStore = {
      enable = true;
      ukiPath = "/EFI/BOOT/BOOTX64.EFI";
    };
    partitions = {
      ${partitionIds.esp}.repartConfig = { Type = "esp"; Format = "vfat"; SizeMinBytes = "96M"; };
      ${partitionIds.store-verity}.repartConfig.Minimize = "best";
      ${partitionIds.store}.repartConfig.Minimize = "best";
    };
  };
  fileSystems = {
    "/" = { fsType = "tmpfs"; options = [ "mode=0755" ]; };
    "/usr" = {
      device = "/dev/mapper/usr";
      fsType = config.image.repart.partitions.${partitionIds.store}.repartConfig.Format;
      options = [ "ro" ];
    };
    "/nix/store" = { device = "/usr/nix/store"; options = [ "bind" ]; };
  };

  boot = {
    loader.grub.enable = false;
    initrd.systemd = {
      enable = true;
      dmVerity.enable = true;
    };
    # As in the other image: what boots, no credentials of the host's, and an end to a machine that panics.
    kernelParams = [ "systemd.unit=kata-containers.target" "systemd.import_credentials=no" "panic=1" ];
  };

  # Nobody logs in.
  console.enable = false;
  systemd.services."getty@".enable = false;
  systemd.services."serial-getty@".enable = false;
  nix.enable = false;
  system.activationScripts.usrbinenv = lib.mkForce "";
  system.stateVersion = "26.05";
}
