# Reads the units of units/, so that the NixOS modules say what the other images ship and no unit is written down twice.
# It takes the part of systemd's syntax that those files use. Everything else is an error with its file and line: a line
# that is read otherwise than systemd reads it could open the gate.
let
  inherit (builtins) attrNames concatMap concatStringsSep elem elemAt filter foldl' genList groupBy
    intersectAttrs isString length listToAttrs mapAttrs match readFile removeAttrs split;

  lines = text: filter isString (split "\n" text);
  words = text: filter (w: isString w && w != "") (split "[ \t]+" text);
  trimmed = line: let m = match "[ \t]*(.*[^ \t])[ \t]*" line; in if m == null then "" else elemAt m 0;
  # The lines that say something, with their numbers.
  telling = text:
    let all = lines text; in
    filter (l: l.text != "" && match "[#;].*" l.text == null)
      (genList (i: { number = i + 1; text = trimmed (elemAt all i); }) (length all));

  # A file's entries, in their order, and its faults.
  scan = name: text: foldl'
    (state: line:
      let
        section = match "\\[([A-Za-z]+)]" line.text;
        entry = match "([A-Za-z][A-Za-z0-9-]*)[ \t]*=[ \t]*(.*)" line.text;
        fault = what: state // { faults = state.faults ++ [ "${name}:${toString line.number}: ${what}" ]; };
      in
      if match ".*\r.*" line.text != null then fault "a carriage return, want lines that end in a newline alone"
      else if match ".*\\\\" line.text != null then fault "a line that goes on in the next, want it on one"
      else if section != null then state // { section = elemAt section 0; }
      else if entry == null then fault "${line.text}: want [Section] or Key=value"
      else if state.section == null then fault "${elemAt entry 0}=: stands before the first [Section]"
      else state // {
        entries = state.entries ++ [{ inherit (state) section; key = elemAt entry 0; value = elemAt entry 1; }];
      })
    { section = null; entries = [ ]; faults = [ ]; }
    (telling text);

  faults = name: text: (scan name text).faults;

  # { Section.Key = [ "value" ... ]; }; the name is for errors.
  parse = name: text:
    let scanned = scan name text; in
    if scanned.faults != [ ] then throw (concatStringsSep "\n" scanned.faults)
    else mapAttrs (_: entries: mapAttrs (_: map (e: e.value)) (groupBy (e: e.key) entries)) (groupBy (e: e.section) scanned.entries);

  # What NixOS has options of its own for, with lists of units.
  dependencies = {
    Requires = "requires";
    Requisite = "requisite";
    BindsTo = "bindsTo";
    PartOf = "partOf";
    Wants = "wants";
    After = "after";
    Before = "before";
    Conflicts = "conflicts";
    OnFailure = "onFailure";
    OnSuccess = "onSuccess";
  };
  # NixOS makes the links of [Install] from options and ignores the section.
  links = { RequiredBy = "requiredBy"; WantedBy = "wantedBy"; };

  # What names has a name for, under that name.
  renamed = names: set: listToAttrs (map (n: { name = names.${n}; value = set.${n}; }) (attrNames (intersectAttrs names set)));
  plain = mapAttrs (_: values: if length values == 1 then elemAt values 0 else values);
  unlessEmpty = name: value: if value == { } then { } else { ${name} = value; };

  # A unit file, or a drop-in, as the value of systemd.services.X, systemd.sockets.X or systemd.paths.X. programs says where
  # the programs are that the file runs, by their paths there; NixOS has none of them, and a path that nobody replaced is an error.
  options = { file, text ? readFile file, programs ? { } }:
    let
      name = toString file;
      unit = parse name text;
      fail = what: throw "${name}: ${what}";

      # An empty value would take back what other files said, which a list of NixOS cannot.
      units = section: key: values:
        if elem "" values then fail "[${section}] ${key}=: empty, want names of units" else concatMap words values;

      program = key: word:
        if programs ? ${word} then programs.${word}
        else if match "(.*/usr|[^/]*/(bin|sbin|lib))/.*" word != null then fail "${key}=: nothing says where ${word} is on NixOS"
        else word;
      command = key: value:
        if match ".*[\"'\\\\].*" value != null then fail "${key}=${value}: want words without quotes and backslashes"
        else concatStringsSep " " (map (program key) (words value));
      commands = mapAttrs (key: values: if match "Exec.*" key != null then map (command key) values else values);

      variable = value:
        let m = match "([A-Za-z_][A-Za-z0-9_]*)=([^ \t\"'\\\\]*)" value; in
        if m == null then fail "Environment=${value}: want one NAME=value, without quotes or spaces"
        else { name = elemAt m 0; value = elemAt m 1; };
      environment = values:
        let variables = map variable values; set = listToAttrs variables; in
        if length (attrNames set) != length variables then fail "Environment=: a variable is set twice" else set;

      known = [ "Unit" "Service" "Socket" "Path" "Install" ];
      unknown = filter (s: !(elem s known)) (attrNames unit);
      section = s: unit.${s} or { };
      uninstalled = attrNames (removeAttrs (section "Install") (attrNames links));
    in
    if unknown != [ ] then fail "[${elemAt unknown 0}]: want one of ${concatStringsSep ", " known}"
    else if uninstalled != [ ] then fail "[Install] ${elemAt uninstalled 0}=: want ${concatStringsSep " or " (attrNames links)}"
    else if length ((section "Unit").Description or [ ]) > 1 then fail "Description=: said twice"
    else
      renamed dependencies (mapAttrs (units "Unit") (section "Unit"))
      // renamed links (mapAttrs (units "Install") (section "Install"))
      // renamed { Description = "description"; } (plain (section "Unit"))
      // renamed { Environment = "environment"; } (mapAttrs (_: environment) (section "Service"))
      // renamed { ListenStream = "listenStreams"; } (section "Socket")
      // unlessEmpty "unitConfig" (plain (removeAttrs (section "Unit") ([ "Description" ] ++ attrNames dependencies)))
      // unlessEmpty "serviceConfig" (plain (commands (removeAttrs (section "Service") [ "Environment" ])))
      // unlessEmpty "socketConfig" (plain (removeAttrs (section "Socket") [ "ListenStream" ]))
      // unlessEmpty "pathConfig" (plain (section "Path"));

  # The names in a file of modules-load.d.
  kernelModules = { file, text ? readFile file }: map
    (line:
      if match "[A-Za-z0-9_-]+" line.text != null then line.text
      else throw "${toString file}:${toString line.number}: ${line.text}: want the name of a module")
    (telling text);
in
{ inherit dependencies faults kernelModules options parse words; }
