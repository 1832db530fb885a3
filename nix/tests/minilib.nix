# The small part of the nixpkgs library that our modules use, so that their result can be asserted on where nixpkgs cannot be
# had. What it lacks is an error, not a guess. It is stricter than the original in one thing: a scalar that is set twice with
# the same priority is an error even where both agree.
let
  inherit (builtins) all any attrNames concatLists concatMap concatStringsSep filter foldl' head isAttrs isBool isFunction isList
    isPath isString length listToAttrs mapAttrs match removeAttrs substring;

  tagged = kind: v: isAttrs v && v ? _kind && v._kind == kind;
  isOption = tagged "option";

  # Smaller is stronger. The numbers are the original's: a plain definition, mkDefault, an option's default.
  plain = 100;
  byDefault = 1000;
  optionDefault = 1500;

  # A definition as a list of { priority; value; }, with mkIf, mkMerge and mkDefault resolved.
  discharge = priority: v:
    if tagged "if" v then (if v.condition then discharge priority v.content else [ ])
    else if tagged "merge" v then concatMap (discharge priority) v.contents
    else if tagged "override" v then discharge v.priority v.content
    else [{ inherit priority; value = v; }];
  # Moves a condition from around a set to around each member: a module's condition reads config, whose names must be known first.
  pushDown = v:
    if tagged "if" v then map (mapAttrs (_: content: { _kind = "if"; inherit (v) condition; inherit content; })) (pushDown v.content)
    else if tagged "merge" v then concatMap pushDown v.contents
    else [ v ];
  strongest = defs:
    let p = foldl' (a: d: if d.priority < a then d.priority else a) optionDefault defs; in
    map (d: d.value) (filter (d: d.priority == p) defs);

  keysOf = sets: attrNames (foldl' (a: s: a // s) { } sets);
  gather = name: sets: map (s: s.${name}) (filter (s: s ? ${name}) sets);

  mkType = name: check: merge: { _kind = "type"; inherit name check merge; };
  one = path: vs: if length vs == 1 then head vs else throw "${path}: set ${toString (length vs)} times";
  mergeDefs = path: type: defs:
    let checked = v: if type.check v then v else throw "${path}: not of type ${type.name}"; in
    type.merge path (map checked (strongest (concatMap (discharge plain) defs)));

  types = {
    bool = mkType "bool" isBool one;
    str = mkType "str" isString one;
    strMatching = pattern: mkType "strMatching ${pattern}" (v: isString v && match pattern v != null) one;
    path = mkType "path" (v: isPath v || isString v && substring 0 1 v == "/") one;
    package = mkType "package" (v: isAttrs v && v.type or null == "derivation") one;
    enum = values: mkType "enum" (v: any (w: v == w) values) one;
    either = a: b: mkType "either ${a.name} or ${b.name}" (v: a.check v || b.check v) (path: vs:
      if all a.check vs then a.merge path vs
      else if all b.check vs then b.merge path vs
      else throw "${path}: both ${a.name} and ${b.name}");
    listOf = t: mkType "listOf ${t.name}" (v: isList v && all t.check v) (path: vs: map (v: t.merge path [ v ]) (concatLists vs));
    attrsOf = t: mkType "attrsOf ${t.name}" isAttrs (path: vs: listToAttrs (concatMap
      (k:
        if concatMap (discharge plain) (gather k vs) == [ ] then [ ]
        else [{ name = k; value = mergeDefs "${path}.${k}" t (gather k vs); }])
      (keysOf vs)));
    submodule = m: mkType "submodule" isAttrs (path: evalOptions path m.options);
  };

  # A tree of option declarations, with its definitions: the values.
  evalOptions = path: options: defs:
    let
      unknown = filter (k: !(options ? ${k})) (keysOf defs);
      value = k: o:
        let
          here = if path == "" then k else "${path}.${k}";
          given = gather k defs;
          fallback = if o ? default then [{ _kind = "override"; priority = optionDefault; content = o.default; }] else [ ];
          group = concatMap pushDown given;
        in
        if !isOption o then (if all isAttrs group then evalOptions here o group else throw "${here}: not a set")
        else if concatMap (discharge plain) (given ++ fallback) == [ ] then throw "${here}: used but not set"
        else mergeDefs here o.type (given ++ fallback);
    in
    if unknown != [ ] then throw "${path}: no such option: ${concatStringsSep " " unknown}" else mapAttrs value options;

  mergeDeclarations = foldl'
    (a: b: a // mapAttrs
      (k: v:
        if !(a ? ${k}) then v
        else if isOption v || isOption a.${k} then throw "${k}: declared twice"
        else mergeDeclarations [ a.${k} v ])
      b)
    { };

  lib = {
    inherit types;
    mkOption = o: if o ? type then o // { _kind = "option"; } else throw "an option without a type";
    mkEnableOption = what: lib.mkOption { type = types.bool; default = false; description = "Whether to enable ${what}."; };
    literalExpression = text: { _kind = "text"; inherit text; };
    mkIf = condition: content: { _kind = "if"; inherit condition content; };
    mkMerge = contents: { _kind = "merge"; inherit contents; };
    mkDefault = content: { _kind = "override"; priority = byDefault; inherit content; };
    evalModules = { modules }:
      let
        load = m: let m' = if isPath m then import m else m; in if isFunction m' then m' { inherit lib config; } else m';
        # A module that says neither options nor config is all config.
        collect = m:
          let r = load m; in
          concatMap collect (r.imports or [ ]) ++ [
            (if r ? config || r ? options then { options = { }; config = { }; } // r
            else { options = { }; config = removeAttrs r [ "imports" ]; })
          ];
        all = concatMap collect modules;
        options = mergeDeclarations (map (m: m.options) all);
        config = evalOptions "" options (concatMap (m: pushDown m.config) all);
      in
      { inherit config options; };
  };
in
lib
