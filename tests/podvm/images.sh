#!/bin/bash
# Builds the images that tests boot: images.sh OUT. All have the stand-in agent, and speak to the console, which is the host's.
#
#   plain      the very root of make image, on a kernel command line for tests
#   simulated  and a pretended TEE, played by a disk
#   broken     a guard that fails
#   accepting  no gate: the control, which shows that whoever knocks can reach a podVM
#
# The command line lets a machine without a TEE go on; it is measured, so none of these is taken for an image for use.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1
# What is tested is what there is: a test must not fail because Debian mended something. make image takes what is pinned.
export PACKAGES=${PACKAGES:-newest}
words="podvm.allow_simulated_tee=1 console=ttyS0 systemd.journald.forward_to_console=1 systemd.show_status=1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Built anew when anything changed that goes in.
stamp=$(find image bin/podvm-* bin/initializer bin/meshproxy bin/standin-agent bin/simtee units tests/podvm/tree tests/podvm/images.sh -type f -print0 |
	sort -z | xargs -0 sha256sum | sha256sum)
[ "$(cat "$out/.stamp" 2>/dev/null)" != "$stamp" ] || exit 0

# overlay NAME: a folder for what a variant has besides.
overlay() { mkdir -p "$work/$1/usr/lib/systemd/system/podvm-guard.service.d" && echo "$work/$1"; }
build() {
	local name=$1
	shift
	echo "building the image '$name'" >&2
	image/build.sh --out "$out/$name" --agent bin/standin-agent --cmdline "$words" "$@"
}

mkdir -p "$work/simulated/usr/lib/podvm-test"
cp -r tests/podvm/tree/. "$work/simulated/"
install -m 755 bin/simtee "$work/simulated/usr/lib/podvm-test/simtee"
printf '[Service]\nExecStart=\nExecStart=/usr/sbin/podvm-guard no-such-word\n' >"$(overlay broken)/usr/lib/systemd/system/podvm-guard.service.d/test.conf"
printf '[Service]\nExecStart=\nExecStart=/usr/sbin/podvm-guard status\n' >"$(overlay accepting)/usr/lib/systemd/system/podvm-guard.service.d/test.conf"

build plain
for name in simulated broken accepting; do build "$name" --overlay "$work/$name"; done
echo "$stamp" >"$out/.stamp"
