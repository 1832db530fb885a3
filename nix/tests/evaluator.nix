# The evaluator itself: what our modules rely on of the original, and that it refuses what it should.
{ lib, ... }:
let
  inherit (lib) mkDefault mkIf mkMerge mkOption types;
  inherit (builtins) deepSeq tryEval;
  values = type: modules: (lib.evalModules { modules = [{ options.a.b = mkOption { inherit type; }; }] ++ modules; }).config.a.b;
  value = type: v: values type [{ a.b = v; }];
  refused = v: !(tryEval (deepSeq v true)).success;
  section = types.attrsOf (types.either types.str (types.listOf types.str));
in
{
  testPriorities = {
    expr = [
      (lib.evalModules { modules = [{ options.a = lib.mkEnableOption "a"; } { a = mkDefault true; }]; }).config.a
      (values types.bool [{ a.b = mkDefault true; } { a.b = false; }])
      (values types.bool [{ a.b = mkIf false true; } { a.b = mkDefault false; }])
    ];
    expected = [ true false false ];
  };
  testLists = {
    expr = values (types.listOf types.str) [{ a.b = [ "x" ]; } { a.b = mkMerge [ [ "y" ] (mkIf false [ "z" ]) ]; }];
    expected = [ "x" "y" ];
  };
  testSets = {
    expr = values section [{ a.b.x = [ "1" ]; } { a.b = { x = [ "2" ]; y = "3"; z = mkIf false "4"; }; }];
    expected = { x = [ "1" "2" ]; y = "3"; };
  };
  # A condition may read what stands beside what it is about.
  testConditionOfConfig = {
    expr = (lib.evalModules {
      modules = [
        ({ config, ... }: {
          options = { on = lib.mkEnableOption "it"; list = mkOption { type = types.listOf types.str; default = [ ]; }; };
          config = mkIf config.on { list = [ "on" ]; };
        })
        { on = true; }
      ];
    }).config.list;
    expected = [ "on" ];
  };

  testUnknownOption = { expr = refused (values types.str [{ a.b = "x"; a.c = "y"; }]); expected = true; };
  testUnknownOptionBehindIf = { expr = refused (values types.str [{ a.b = "x"; } (mkIf false { a.c = "y"; })]); expected = true; };
  testUnknownMember = {
    expr = refused (value (types.attrsOf (types.submodule { options = { }; })) { x.y = 1; });
    expected = true;
  };
  testNotSet = { expr = refused (values types.str [ ]); expected = true; };
  testScalarTwice = { expr = refused (values types.str [{ a.b = "x"; } { a.b = "y"; }]); expected = true; };
  testScalarAndList = { expr = refused (values section [{ a.b.x = "1"; } { a.b.x = [ "2" ]; }]); expected = true; };
  testDeclaredTwice = {
    expr = refused (values types.str [{ options.a.b = mkOption { type = types.str; }; config.a.b = "x"; }]);
    expected = true;
  };
  testOptionWithoutType = { expr = refused (mkOption { }); expected = true; };
  testTypes = {
    expr = map refused [
      (value types.bool "true")
      (value types.str 1)
      (value types.path "x")
      (value types.package "/x")
      (value (types.enum [ "x" ]) "y")
      (value (types.strMatching "x+") "xy")
      (value (types.listOf types.str) "x")
      (value (types.listOf types.str) [ 1 ])
      (value section { x = 1; })
      (value section [ ])
    ];
    expected = [ true true true true true true true true true true ];
  };
  testTypesOfTheirOwn = {
    expr = [
      (value types.path "/x")
      (value (types.enum [ "x" ]) "x")
      (value (types.strMatching "x+") "xx")
      (value types.package { type = "derivation"; outPath = "/x"; }).outPath
    ];
    expected = [ "/x" "x" "xx" "/x" ];
  };
}
