#!/usr/bin/env bash
# Shows that the tests of the NixOS modules can fail: spoils a copy of nix/ and units/, one thing at a time, and wants the test
# that is named to notice. Needs nix-instantiate.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

evaluate() { (cd "$work/copy" && nix-instantiate --eval --strict -E 'import ./nix/tests { }') 2>&1; }
fresh() {
	rm -rf "$work/copy"
	mkdir "$work/copy"
	cp -r nix units "$work/copy"
}

total=0 failed=0
# mutant TEST FILE SED WHAT: TEST must be among those that fail when SED was done to FILE.
mutant() {
	local test=$1 file=$2 script=$3 what=$4 out verdict=caught
	total=$((total + 1))
	fresh
	sed -E -i "$script" "$work/copy/$file"
	if cmp -s "$file" "$work/copy/$file"; then
		verdict="NOTHING CHANGED"
	elif out=$(evaluate) && [[ $out == '"ok"' ]]; then
		verdict=SURVIVED
	elif ! grep -qE "^ *(error: )?$test: |while running the test $test\$" <<<"$out"; then
		verdict="NOT BY $test"
	fi
	printf '%s  %s: %s\n' "$verdict" "${file#nix/}" "$what"
	[[ $verdict == caught ]] || failed=$((failed + 1))
}

fresh
out=$(evaluate) || true
[[ $out == '"ok"' ]] || { printf 'mutants: the tests fail as they are:\n%s\n' "$out" >&2; exit 1; }

f=nix/modules/guard.nix
mutant all.testNothingByDefault $f 's/config = lib.mkIf cfg.guard.enable/config =/' 'always on'
mutant guard.testPeerPodsEdges $f 's|units/peerpods/podvm-guard.service|units/podvm-guard.service|' "Kata's unit for peer pods"
mutant guard.testEdges $f 's|if cfg.peerPods then (.*) else (.*);|if cfg.peerPods then \2 else \1;|' 'the units the other way round'
mutant guard.testRunsOnce $f 's/restartIfChanged = false/restartIfChanged = true/' 'restarted by a switch'
mutant guard.testRunsOnce $f '/stopIfChanged = false/d' 'stopped by a switch'
mutant guard.testRunsOnce $f 's/stopIfChanged/stopIfChange/' 'a misspelt option'
mutant guard.testSame $f 's/restartIfChanged = false;/& serviceConfig.SuccessExitStatus = "1";/' 'a failure that is a success'
mutant guard.testAgent $f '/kata-agent = dropIn/d' "without the agent's drop-in"
mutant guard.testAgent $f 's|units/kata-agent.service.d/10-podvm-guard.conf|units/kata-agent.service.d/20-podvm-initdata.conf|' 'another drop-in'
mutant guard.testNames $f 's/lib.mkIf cfg.peerPods$//' 'the forwarder in a Kata guest'
mutant guard.testEdges $f 's|/bin/podvm-guard"|/bin/podvm-attest"|' 'another program'
mutant guard.testKernelModules $f '/boot.kernelModules/d' 'without kernel modules'
mutant guard.testFlush $f 's/assertion = .*/assertion = true;/' 'a flush allowed'

f=nix/modules/attest.nix
mutant all.testNothingByDefault $f 's/config = lib.mkIf cfg.attest.enable/config =/' 'always on'
mutant attest.testPeerPodsSocketEdges $f 's|units/peerpods/|units/|' "Kata's socket for peer pods"
mutant attest.testListens $f 's|if cfg.peerPods then (.*) else (.*);|if cfg.peerPods then \2 else \1;|' 'the sockets the other way round'
mutant attest.testServiceEdges $f 's|/bin/podvm-attest"|/bin/podvm-guard"|' 'another program'
mutant attest.testWithoutGuard $f 's/assertion = .*/assertion = true;/' 'without the gate'

f=nix/modules/initdata.nix
mutant all.testNothingByDefault $f 's/config = lib.mkIf cfg.initdata.enable/config =/' 'always on'
mutant initdata.testRunsOnce $f 's/restartIfChanged = false/restartIfChanged = true/' 'restarted by a switch'
mutant initdata.testRunsOnce $f 's/stopIfChanged = false/stopIfChanged = true/' 'stopped by a switch'
mutant initdata.testAgent $f '/kata-agent = /d' "without the agent's drop-in"
mutant initdata.testSame $f 's/restartIfChanged = false;/& unitConfig.ConditionPathExists = "\/run\/x";/' 'a condition that skips it'
mutant initdata.testWithoutGuard $f 's/assertion = cfg.guard.enable/assertion = true/' 'without the gate'
mutant initdata.testWithPeerPods $f 's/assertion = !cfg.peerPods/assertion = true/' 'in a peer pod'

f=nix/modules/initializer.nix
mutant all.testNothingByDefault $f 's/config = lib.mkIf cfg.initializer.enable/config =/' 'always on'
mutant initializer.testPath $f '/systemd.paths/d' 'without its path'
mutant initializer.testEdges $f 's|/bin/initializer"|/bin/podvm-initializer"|' 'another program'
mutant initializer.testWithoutGuard $f 's/assertion = cfg.guard.enable/assertion = true/' 'without the gate'
mutant initializer.testWithoutInitdata $f 's/assertion = cfg.initdata.enable/assertion = true/' 'without initdata'
mutant initializer.testWithoutAttest $f 's/assertion = cfg.attest.enable/assertion = true/' 'without evidence'

f=nix/modules/meshproxy.nix
mutant all.testNothingByDefault $f 's/config = lib.mkIf cfg.meshproxy.enable/config =/' 'always on'
mutant meshproxy.testEdges $f 's|"..cfg.meshproxy.envoy}"|"/usr/bin/envoy"|' 'another Envoy'
mutant meshproxy.testEdges $f '/"\/usr\/lib\/podvm\/envoy"/d' 'Envoy where NixOS has nothing'
mutant meshproxy.testEnvoyHasNoDefault $f 's/type = lib.types.path;/& default = "\/run\/envoy";/' 'an Envoy by default'
mutant meshproxy.testEnvoyIsAPath $f 's/lib.types.path/lib.types.str/' 'an Envoy that is no path'
mutant meshproxy.testWithoutGuard $f 's/assertion = cfg.guard.enable/assertion = true/' 'without the gate'
mutant meshproxy.testWithoutInitdata $f 's/assertion = cfg.initdata.enable/assertion = true/' 'without initdata'
mutant meshproxy.testWithoutInitializer $f 's/assertion = cfg.initializer.enable/assertion = true/' 'without the Initializer'

f=nix/modules/default.nix
mutant all.testGuestPlacement $f '/initializer.enable = /d' 'guest placement without the Initializer'
mutant all.testGuestPlacementIsADefault $f 's/meshproxy.enable = lib.mkDefault true/meshproxy.enable = true/' 'guest placement has the last word'
mutant all.testGate $f 's/lib.mkIf cfg.guestPlacement //' 'guest placement always'
mutant all.testGuestPlacementWithPeerPods $f 's/assertion = .*/assertion = true;/' 'guest placement in a peer pod'
mutant all.testOptions $f 's| ./initdata.nix||' 'a module that is not imported'
mutant all.testGate $f 's/default = false/default = true/' 'what is off is on'
mutant all.testStringForBool $f 's/lib.types.bool/lib.types.enum [ true false "yes" ]/' 'a string for a bool'
mutant all.testEveryOptionIsDescribed $f 's/description = "Package .*"/description = ""/' 'an option that says nothing'
mutant all.testPackageHasNoDefault $f 's/type = lib.types.package;/& default = { type = "derivation"; };/' 'a package by default'

f=nix/modules/coordinator.nix
mutant all.testGate $f 's/config = lib.mkIf cfg.coordinator.enable/config =/' 'always on'
mutant all.testOptions $f 's/extraArgs/extraArguments/' 'a misspelt option'
mutant coordinator.testExtraArgs $f 's/ \+\+ cfg.coordinator.extraArgs//' 'without its arguments'
mutant coordinator.testRefused $f 's/lib.types.strMatching "[^"]*"/lib.types.str/' 'arguments that want quotes'
mutant coordinator.testProgram $f 's|/bin/coordinator"|/bin/podvm-guard"|' 'another program'
mutant coordinator.testWithoutGuard $f 's/assertion = cfg.guard.enable/assertion = true/' 'without the gate'
mutant coordinator.testWithoutGuard $f 's/assertion = cfg.attest.enable/assertion = true/' 'without evidence'

f=nix/units.nix
mutant guard.testEdges $f 's/ RequiredBy = "requiredBy";//' 'RequiredBy= is not known'
mutant guard.testEdges $f 's/Before = "before"/Before = "wants"/' 'Before= is something else'
mutant guard.testAgent $f '/BindsTo = "bindsTo"/d' 'BindsTo= is a directive like others'
mutant initdata.testDevices $f 's/then elemAt values 0 else values/then elemAt values 0 else elemAt values 0/' 'repeated directives are lost'
mutant initdata.testAgent $f 's/renamed \{ Environment = "environment"; }/renamed { Environment_ = "environment"; }/' 'the environment is lost'
mutant units.testProgramNotSaid $f 's/match ".*" word != null/false/' 'a path that NixOS has not'
mutant units.testEveryFaultIsSaid $f '/a line that goes on/d' 'a line that goes on in the next'
mutant units.testTakingBack $f 's/if elem "" values/if false/' 'an empty dependency'
mutant units.testUnknownSection $f 's/if unknown != \[ ]/if false/' 'a section that is not known'
mutant units.testUnknownInstall $f 's/if uninstalled != \[ ]/if false/' 'an [Install] that is not known'

# The units alone: what the modules say follows, and only a second opinion notices.
f=units/podvm-guard.service
mutant guard.testEdges $f 's/^Before=.*/Before=kata-agent.service/' 'after interfaces and sockets'
mutant guard.testEdges $f '/^FailureAction=/d' 'a podVM without a gate runs'
mutant guard.testEdges $f 's/^RequiredBy=/WantedBy=/' 'the agent only wants it'
mutant guard.testEdges $f 's/^ExecStart=/ExecStart=-/' 'a failure that is a success'
mutant guard.testEdges $f 's/^DefaultDependencies=no/DefaultDependencies=yes/' 'after basic.target'
mutant guard.testRunsOnce $f '/^RemainAfterExit=/d' 'not active for good'
mutant guard.testPeerPodsEdges units/peerpods/podvm-guard.service '/^BindsTo=/d' 'a namespace made anew is open'
mutant guard.testNetwork units/peerpods/podvm-guard.service '/^NetworkNamespacePath=/d' 'the gate of another namespace'
mutant guard.testAgent units/kata-agent.service.d/10-podvm-guard.conf '/^BindsTo=/d' 'a masked gate is enough'
mutant guard.testForwarder units/peerpods/agent-protocol-forwarder.service.d/10-podvm-guard.conf '/^After=/d' 'the forwarder waits for nothing'
mutant guard.testKernelModules units/modules-load.conf '/^nft_socket/d' 'a kernel module less'
mutant attest.testServiceEdges units/podvm-attest.service '/^Requires=/d' 'without its socket'
mutant attest.testSocketEdges units/podvm-attest.socket 's/^WantedBy=/RequiredBy=/' 'the agent requires evidence'
mutant attest.testListens units/podvm-attest.socket 's/^ListenStream=.*/ListenStream=\/run\/attest/' 'another name'
mutant attest.testPeerPodsSocketEdges units/peerpods/podvm-attest.socket '/^Conflicts=/d' 'a socket that stays at shutdown'
mutant initdata.testEdges units/podvm-initdata.service '/^FailureAction=/d' "another pod's initdata runs"
mutant initdata.testEdges units/podvm-initdata.service 's/^Before=.*/Before=kata-containers.target/' 'beside the agent'
mutant initdata.testAgent units/kata-agent.service.d/20-podvm-initdata.conf 's/policy.rego/x.rego/' 'another policy'
mutant initializer.testPath units/podvm-initializer.path 's/^PathExists=.*/PathExists=\/run/' 'it waits for nothing'
mutant initializer.testEdges units/podvm-initializer.service '/^Wants=/d' 'without the mesh proxy'
mutant initializer.testForEver units/podvm-initializer.service '/^StartLimitIntervalSec=/d' 'not for ever'
mutant meshproxy.testEdges units/podvm-meshproxy.service 's/^Requires=.*/Requires=podvm-guard.service/' 'without initdata'
mutant meshproxy.testNothingBehindIt units/podvm-meshproxy.service 's/^TimeoutStopSec=/ExecStopPost=\/run\/x\n&/' 'the egress lock taken away'

mutant coordinator.testEdges units/portcullis-coordinator.service '/^BindsTo=/d' 'a masked gate is enough'
mutant coordinator.testEdges units/portcullis-coordinator.service 's/ --tee socket/ --no-guard/' 'without a guard'

if ((failed > 0)); then
	echo "$failed of $total mutants not caught" >&2
	exit 1
fi
echo "$total mutants, all caught"
