#!/bin/bash
# Makes podVM roots as somebody else builds them: foreign.sh OUT. A plain Debian 13, Kata's two units with the stand-in agent, and the gate
# from the Debian package (OUT/package/root, installed by dpkg) or from the system extension (OUT/extension/root, laid over it).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/portcullis/image
say() { echo "foreign: $*" >&2; }
die() { say "$*"; exit 1; }
# shellcheck disable=SC1091 # it is checked by itself
. image/tools.sh

stamp=$(find bin/sysext bin/standin-agent image/tree tests/podvm/foreign.sh -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
[ "$(cat "$out/.foreign" 2>/dev/null)" != "$stamp" ] || exit 0

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
plain=$cache/debian-plain
if [ ! -e "$plain/.whole" ]; then
	say "making a plain Debian root, once"
	rm -rf "$plain"
	mirrors >"$cache/trixie.list"
	mmdebstrap --quiet --mode=root --variant=minbase --aptopt='APT::Install-Recommends "false"' --include=systemd,systemd-sysv,udev,kmod \
		trixie "$plain" "$cache/trixie.list" >&2
	: >"$plain/.whole"
fi
for way in package extension; do
	root=$out/$way/root
	say "a root with the $way"
	rm -rf "${out:?}/$way"
	mkdir -p "$out/$way"
	cp -a "$plain" "$root"
	units=$root/usr/lib/systemd/system
	install -m 644 image/tree/usr/lib/systemd/system/kata-agent.service image/tree/usr/lib/systemd/system/kata-containers.target "$units/"
	install -m 755 bin/standin-agent "$root/usr/bin/kata-agent"
	: >"$root/etc/machine-id"
	rm -f "$root/etc/resolv.conf"
	: >"$root/etc/resolv.conf"
	case $way in
	package)
		cp bin/sysext/*.deb "$root/gate.deb"
		chroot "$root" dpkg --install /gate.deb >&2
		rm "$root/gate.deb"
		;;
	extension)
		mkdir "$out/$way/mnt"
		mount -o ro,loop bin/sysext/portcullis.raw "$out/$way/mnt"
		cp -a "$out/$way/mnt/usr/." "$root/usr/"
		umount "$out/$way/mnt"
		rmdir "$out/$way/mnt"
		;;
	esac
done
echo "$stamp" >"$out/.foreign"
