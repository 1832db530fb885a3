# The parser: what it reads, and what it refuses.
{ units, ... }:
let
  inherit (builtins) deepSeq tryEval;
  faults = units.faults "x.service";
  options = text: units.options { file = "x.service"; inherit text; programs."/usr/sbin/x" = "/fake/x"; };
  modules = text: units.kernelModules { file = "m.conf"; inherit text; };
  refused = text: !(tryEval (deepSeq (options text) true)).success;
  refuses = text: { expr = refused text; expected = true; };
in
{
  testSections = {
    expr = units.parse "x" "# a comment\n; another\n\n[Unit]\n  After = a.service  b.service \nBefore=c.target\n[Service]\nEmpty=\nType=oneshot\n[Unit]\nAfter=d.service\n";
    expected = {
      Unit = { After = [ "a.service  b.service" "d.service" ]; Before = [ "c.target" ]; };
      Service = { Empty = [ "" ]; Type = [ "oneshot" ]; };
    };
  };
  testValueWithEquals = {
    expr = units.parse "x" "[Service]\nEnvironment=A=B=C\n#Type=\n";
    expected = { Service.Environment = [ "A=B=C" ]; };
  };
  testEveryFaultIsSaid = {
    expr = faults "Type=oneshot\n[Unit]\nAfter\n=a\n[Bad Section]\n[Unit\nAfter=a \\\nAfter=b\nA b=c\nEnd=\r\n";
    expected = [
      "x.service:1: Type=: stands before the first [Section]"
      "x.service:3: After: want [Section] or Key=value"
      "x.service:4: =a: want [Section] or Key=value"
      "x.service:5: [Bad Section]: want [Section] or Key=value"
      "x.service:6: [Unit: want [Section] or Key=value"
      "x.service:7: a line that goes on in the next, want it on one"
      "x.service:9: A b=c: want [Section] or Key=value"
      "x.service:10: a carriage return, want lines that end in a newline alone"
    ];
  };
  testParseThrows = { expr = (tryEval (units.parse "x" "After=a")).success; expected = false; };

  testOptions = {
    expr = options ''
      [Unit]
      Description=Some words, = and all
      Requires=r.service
      BindsTo=b.service
      After=a.service b.service
      After=c.service
      Conflicts=shutdown.target
      OnFailure=f.service
      FailureAction=poweroff-force
      [Service]
      ExecStart=/usr/sbin/x --flag /run/x
      Environment=A=B
      Environment=C=%t/x
      CapabilityBoundingSet=
      DeviceAllow=a r
      DeviceAllow=b rw
      [Install]
      RequiredBy=k.service l.service
      WantedBy=m.target
    '';
    expected = {
      description = "Some words, = and all";
      requires = [ "r.service" ];
      bindsTo = [ "b.service" ];
      after = [ "a.service" "b.service" "c.service" ];
      conflicts = [ "shutdown.target" ];
      onFailure = [ "f.service" ];
      requiredBy = [ "k.service" "l.service" ];
      wantedBy = [ "m.target" ];
      unitConfig = { FailureAction = "poweroff-force"; };
      environment = { A = "B"; C = "%t/x"; };
      serviceConfig = { ExecStart = "/fake/x --flag /run/x"; CapabilityBoundingSet = ""; DeviceAllow = [ "a r" "b rw" ]; };
    };
  };
  testSocketAndPath = {
    expr = options "[Socket]\nListenStream=@a\nListenStream=@b\nAccept=no\n[Path]\nPathExists=/run/x\n";
    expected = { listenStreams = [ "@a" "@b" ]; socketConfig.Accept = "no"; pathConfig.PathExists = "/run/x"; };
  };
  testNothing = { expr = options "# nothing\n"; expected = { }; };

  testUnknownSection = refuses "[Timer]\nOnBootSec=1\n";
  testUnknownInstall = refuses "[Install]\nAlias=y.service\n";
  testTwoDescriptions = refuses "[Unit]\nDescription=a\nDescription=b\n";
  testTakingBack = refuses "[Unit]\nAfter=a.service\nAfter=\n";
  testProgramNotSaid = refuses "[Service]\nExecStart=/usr/sbin/y\n";
  testProgramOutsideUsr = refuses "[Service]\nExecStart=/bin/y\n";
  testProgramOfAnotherKey = refuses "[Service]\nExecStopPost=/usr/sbin/y\n";
  testProgramBehindPrefix = refuses "[Service]\nExecStart=-/usr/sbin/x\n";
  testProgramInArgument = refuses "[Service]\nExecStart=/usr/sbin/x --y=/usr/lib/y\n";
  testQuotesInCommand = refuses "[Service]\nExecStart=/usr/sbin/x \"a  b\"\n";
  testQuotesInEnvironment = refuses "[Service]\nEnvironment=\"A=B\"\n";
  testTwoVariablesInOne = refuses "[Service]\nEnvironment=A=B C=D\n";
  testVariableTwice = refuses "[Service]\nEnvironment=A=B\nEnvironment=A=C\n";
  testVariablesTakenBack = refuses "[Service]\nEnvironment=A=B\nEnvironment=\n";

  testKernelModules = {
    expr = modules "# why\na_b\n\n  c-d \n";
    expected = [ "a_b" "c-d" ];
  };
  testKernelModuleWithOptions = { expr = (tryEval (deepSeq (modules "a b=1\n") true)).success; expected = false; };
}
