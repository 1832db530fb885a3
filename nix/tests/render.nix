# An evaluated service, socket or path as the text of a unit, in the way NixOS writes it: a line for each value, keys in
# alphabetical order, [Install] left to links. NixOS also gives services a PATH and a locale, which are not the modules'.
let
  inherit (builtins) attrNames concatMap concatStringsSep filter isList toJSON;
  units = import ../units.nix;

  line = key: value: "${key}=${value}";
  lines = set: concatMap (key: map (line key) (if isList set.${key} then set.${key} else [ set.${key} ])) (attrNames set);
  text = name: unit: own: concatStringsSep "\n" (
    [ "[Unit]" ]
    ++ (if unit.description == "" then [ ] else [ (line "Description" unit.description) ])
    ++ map (key: line key (concatStringsSep " " unit.${units.dependencies.${key}}))
      (filter (key: unit.${units.dependencies.${key}} != [ ]) (attrNames units.dependencies))
    ++ lines unit.unitConfig
    ++ [ "[${name}]" ]
    ++ own
  );
in
{
  service = unit: text "Service" unit (
    map (name: line "Environment" (toJSON "${name}=${unit.environment.${name}}")) (attrNames unit.environment)
    ++ (if unit.restartIfChanged then [ ] else [ "X-RestartIfChanged=false" ])
    ++ (if unit.stopIfChanged then [ ] else [ "X-StopIfChanged=false" ])
    ++ lines unit.serviceConfig
  );
  socket = unit: text "Socket" unit (lines unit.socketConfig ++ map (line "ListenStream") unit.listenStreams);
  path = unit: text "Path" unit (lines unit.pathConfig);
}
