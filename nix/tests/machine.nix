# Machines with the modules, and what the tests look at in them.
{ lib }:
let
  inherit (builtins) attrNames concatMap concatStringsSep deepSeq elemAt filter listToAttrs mapAttrs match readFile removeAttrs tryEval;
  units = import ../units.nix;
  render = import ./render.nix;

  fake = name: { type = "derivation"; inherit name; outPath = "/fake/${name}"; };
  base = { package = fake "portcullis"; };
  evaluate = modules: (lib.evalModules { modules = [ ./stub.nix ../modules ] ++ modules; }).config;

  # What can be compared of a unit, whoever wrote it: what NixOS adds and the places of programs left out, a dependency the same in
  # one line and in two.
  comparable = unit: mapAttrs
    (section: keys: mapAttrs
      (key: values:
        if section == "Unit" && units.dependencies ? ${key} then concatMap units.words values
        else if match "Exec.*" key != null then map (v: map (w: if match "/(usr|fake)/.*" w == null then w else "PROGRAM") (units.words v)) values
        else if key == "Environment" then map (v: let m = match "\"(.*)\"" v; in if m == null then v else elemAt m 0) values
        else values)
      (removeAttrs keys [ "X-RestartIfChanged" "X-StopIfChanged" ]))
    (removeAttrs unit [ "Install" ]);
in
rec {
  inherit fake;

  # The whole configuration, of settings below services.portcullis.
  machine = settings: evaluate [{ services.portcullis = base // settings; }];
  machineWith = module: settings: evaluate [ module { services.portcullis = base // settings; } ];
  # Not even a package is said.
  bare = evaluate [ ];

  service = config: name: config.systemd.services.${name} or (throw "no service ${name}");
  socket = config: name: config.systemd.sockets.${name} or (throw "no socket ${name}");
  path = config: name: config.systemd.paths.${name} or (throw "no path ${name}");

  names = config: mapAttrs (_: attrNames) { inherit (config.systemd) services sockets paths; };
  # What the machine says is wrong with its configuration.
  messages = config: map (a: a.message) (filter (a: !a.assertion) config.assertions);
  refused = settings:
    let config = machine settings; in !(tryEval (deepSeq [ config.systemd config.boot config.assertions ] true)).success;

  # How a unit hangs together with others, what it runs, and what its failure does. What is not said is not in it.
  edges = unit:
    let
      said = {
        inherit (unit) requires requisite bindsTo partOf wants after before conflicts onFailure onSuccess requiredBy wantedBy;
        defaultDependencies = unit.unitConfig.DefaultDependencies or [ ];
        failureAction = unit.unitConfig.FailureAction or [ ];
        exec = unit.serviceConfig.ExecStart or [ ];
      };
    in
    listToAttrs (map (name: { inherit name; value = said.${name}; }) (filter (n: said.${n} != [ ]) (attrNames said)));

  # A module says the same as the files: the test that it does.
  same = kind: unit: files: {
    expr = comparable (units.parse "the rendered ${kind}" (render.${kind} unit));
    expected = comparable (units.parse "the files" (concatStringsSep "\n" (map readFile files)));
  };
}
