#!/bin/bash
# Packs the gate for podVM images that others build: as a systemd system extension and as a Debian package.
#
#   image/sysext.sh --out DIR --version VERSION
#
# Writes DIR/portcullis.raw, DIR/portcullis-podvm_VERSION_amd64.deb and DIR/SHA256SUMS. Needs root, and bin/ built.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(dirname "$here")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/portcullis/image
export PACKAGES=${PACKAGES:-locked} SOURCE_DATE_EPOCH=1767225600 LC_ALL=C TZ=UTC
umask 022

say() { echo "sysext: $*" >&2; }
die() { say "$*"; exit 1; }

out='' version=''
while [ $# -gt 0 ]; do
	case $1 in
	--out) out=${2:?} ;;
	--version) version=${2:?} ;;
	*) die "unknown argument $1: want --out DIR --version VERSION" ;;
	esac
	shift 2
done
[[ $out && $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+$ ]] || die "want --out DIR and --version such as v1.2.3"
[ "$(id -u)" = 0 ] || die "want root: it packs files that belong to root"
version=${version#v}

mkdir -p "$cache/debs" # in_tools binds it
exec 9>"$cache/lock"
flock 9
# shellcheck source=image/tools.sh
. "$here/tools.sh"
make_tools
flock -u 9

work=$(mktemp -d "${TMPDIR:-/tmp}/portcullis-sysext.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree" "$work/out"
install_files guard "$work/tree"
in_tools "$work" "$here/pack.sh" "$version"
mkdir -p "$out"
rm -f "$out"/portcullis-podvm_*.deb # of another version
cp "$work"/out/* "$out/"
chmod 644 "$out"/*
say "$out: $(cd "$out" && du -b portcullis.raw ./*.deb | awk '{ printf "%s %.1f MB  ", $2, $1/1e6 }')"
