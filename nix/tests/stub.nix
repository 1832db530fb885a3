# What we say NixOS has of options: those that our modules set or read, by their names and types there, and no others. To be
# compared with nixos/lib/systemd-unit-options.nix by hand when it changes.
{ lib, ... }:
let
  inherit (lib) types;
  option = type: default: lib.mkOption { inherit type default; description = "An option of NixOS."; };

  units = option (types.listOf (types.strMatching "[A-Za-z0-9@:_.-]+\\.(service|socket|path|target|mount)")) [ ];
  # One value, or several for a directive that may be repeated; NixOS does not join the one with the others either.
  section = option (types.attrsOf (types.either types.str (types.listOf types.str))) { };

  common = {
    enable = option types.bool true;
    description = option types.str "";
    overrideStrategy = option (types.enum [ "asDropinIfExists" "asDropin" ]) "asDropinIfExists";
    requires = units;
    requisite = units;
    bindsTo = units;
    partOf = units;
    wants = units;
    after = units;
    before = units;
    conflicts = units;
    onFailure = units;
    onSuccess = units;
    requiredBy = units;
    wantedBy = units;
    unitConfig = section;
  };
  unitsOf = own: option (types.attrsOf (types.submodule { options = common // own; })) { };
in
{
  options = {
    assertions = option
      (types.listOf (types.submodule {
        options = {
          assertion = lib.mkOption { type = types.bool; description = "What must be."; };
          message = lib.mkOption { type = types.str; description = "What is said if it is not."; };
        };
      })) [ ];
    boot.kernelModules = option (types.listOf types.str) [ ];
    networking.nftables.flushRuleset = option types.bool false;
    systemd.services = unitsOf {
      serviceConfig = section;
      environment = option (types.attrsOf types.str) { };
      restartIfChanged = option types.bool true;
      stopIfChanged = option types.bool true;
    };
    systemd.sockets = unitsOf {
      listenStreams = option (types.listOf types.str) [ ];
      socketConfig = section;
    };
    systemd.paths = unitsOf { pathConfig = section; };
  };
}
