# nix-instantiate --eval --strict -E 'import ./nix/tests { }'
#
# "ok", or an error with every test that fails. A test whose evaluation fails says so; `{ show = "guard.testEdges"; }` has its
# error. (Without -E, Nix prints <LAMBDA> and is content.)
{ lib ? import ./minilib.nix, show ? null }:
let
  inherit (builtins) addErrorContext attrNames concatMap concatStringsSep deepSeq length listToAttrs toJSON tryEval;

  arguments = { inherit lib; machine = import ./machine.nix { inherit lib; }; units = import ../units.nix; };
  files = [ "evaluator" "units" "all" "guard" "attest" "initdata" "initializer" "meshproxy" "coordinator" ];
  tests = listToAttrs (concatMap
    (file:
      let set = import (./. + "/${file}.nix") arguments; in
      map (name: { name = "${file}.${name}"; value = set.${name}; }) (attrNames set))
    files);

  outcome = name:
    let
      test = tests.${name};
      run = tryEval (deepSeq test.expr test.expr);
    in
    addErrorContext "while running the test ${name}" (
      if !run.success then [ "${name}: its evaluation fails" ]
      else if run.value == test.expected then [ ]
      else [ "${name}: is ${toJSON run.value}\n    want ${toJSON test.expected}" ]
    );
  failures = concatMap outcome (attrNames tests);
in
if show != null then tests.${show}.expr
else if failures == [ ] then "ok"
else throw "${toString (length failures)} of ${toString (length (attrNames tests))} tests fail:\n${concatStringsSep "\n" failures}"
