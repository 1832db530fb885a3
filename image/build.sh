#!/bin/bash
# Makes the podVM image: a disk with a verified read-only root, an initrd, a kernel and both in one EFI program (UKI).
#
#   image/build.sh --out DIR --agent PATH [--overlay DIR]... [--cmdline WORDS]
#
#   --out DIR        where to write: disk.raw roothash initrd vmlinuz cmdline podvm.efi packages.txt contents.txt
#                    measurements.json SHA256SUMS. It appears whole or not at all.
#   --agent PATH     the kata-agent to bake in (docs/image.md says how to build one)
#   --overlay DIR    lay a tree over the root; another image with another measurement. The last one wins.
#   --cmdline WORDS  words to add to the kernel's command line
#
# Needs root (it makes a Debian root and enters it), vendor/ and bin/. PACKAGES=newest takes what the mirror has today instead
# of image/packages.lock and image/tools.lock; UPDATE_LOCKS=1 writes these and image/contents.txt anew.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
repo=$(dirname "$here")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/portcullis/image
envoy=${PORTCULLIS_ENVOY:-$(dirname "$cache")/envoy-1.40.0/envoy}
export PACKAGES=${PACKAGES:-locked}
# The age of every file in the image, in seconds since 1970.
export SOURCE_DATE_EPOCH=1767225600
# What a builder's own environment would change.
export LC_ALL=C TZ=UTC
umask 022

say() { echo "image: $*" >&2; }
die() { say "$*"; exit 1; }

out='' agent='' cmdline='' overlays=()
while [ $# -gt 0 ]; do
	case $1 in
	--out) out=${2:?} ;;
	--agent) agent=${2:?} ;;
	--overlay) overlays+=("${2:?}") ;;
	--cmdline) cmdline=${2?} ;;
	-h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
	*) die "unknown argument $1 (--help shows them)" ;;
	esac
	[ $# -ge 2 ] || die "$1 wants a value"
	shift 2
done
[[ $out && $agent ]] || die "want --out and --agent (--help shows them)"
[ "$(id -u)" = 0 ] || die "want root: the image's root is made of files that belong to it"
[ -x "$envoy" ] || die "no Envoy at $envoy; make envoy fetches it"
out=$(realpath -m "$out") agent=$(realpath -m "$agent") envoy=$(realpath "$envoy")
# It is replaced as a whole, so it must be an image, or nothing.
[ ! -e "$out" ] || [ -f "$out/SHA256SUMS" ] || [ -z "$(ls -A "$out")" ] || die "$out is there, and is no image: name another folder"
[ "${UPDATE_LOCKS:-}" != 1 ] || [ "${#overlays[@]}" = 0 ] || die "UPDATE_LOCKS=1 is for an image without overlays"

# --- caches: one builder at a time; what is there is whole
mkdir -p "$cache/debs"
exec 9>"$cache/lock"
flock -n 9 || { say "another build is using $cache; waiting"; flock 9; }

# shellcheck source=image/tools.sh
. "$here/tools.sh"
make_tools
fetch_packages "$here/packages.txt" "$here/packages.lock"
work=$(mktemp -d "${TMPDIR:-/tmp}/portcullis-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp "$cache/packages.have" "$work/packages"
flock -u 9

# --- what is ours
mkdir "$work/overlay" "$work/out"
say "laying out the programs and units"
install_files "guard mesh kata" "$work/overlay"
cp -r --no-preserve=mode,ownership "$here/tree/." "$work/overlay/"
for overlay in "${overlays[@]}"; do
	# git keeps one bit of a mode: whether a file is a program.
	cp -rT --preserve=mode,links "$overlay" "$work/overlay"
done
find "$work/overlay" ! -type l -exec chmod u=rwX,go=rX {} +

say "building the initrd's first process"
(cd "$repo" && CGO_ENABLED=0 GOFLAGS='' GOTOOLCHAIN=local go build -trimpath -buildvcs=false -mod=vendor \
	-ldflags='-s -w -buildid=' -o "$work/init" ./image/init)

started=$SECONDS
in_tools "$work" "$here/assemble.sh" "$cmdline"
say "assembled in $((SECONDS - started)) s"

if [ "${UPDATE_LOCKS:-}" = 1 ]; then
	cp "$work/out/contents.txt" "$here/contents.txt"
elif [ "${#overlays[@]}" = 0 ] && ! diff -U0 "$here/contents.txt" "$work/out/contents.txt" >"$work/contents.diff"; then
	sed -n 's/^[-+][^-+]/  &/p' "$work/contents.diff" >&2
	if [ "$PACKAGES" = newest ]; then
		say "WARNING: the root's files (+) are not those of image/contents.txt (-); PACKAGES=newest lets that pass"
	else
		die "the root's files (+) are not those of image/contents.txt (-); if they should be, UPDATE_LOCKS=1 writes the lists anew"
	fi
fi

"$here/measure.sh" "$work/out" "$repo/bin/portcullis"
(cd "$work/out" && sha256sum cmdline contents.txt disk.raw initrd packages.txt podvm.efi roothash vmlinuz measurements.json >SHA256SUMS)
mkdir -p "$(dirname "$out")"
rm -rf "$out.new"
cp -r "$work/out" "$out.new"
chmod 644 "$out.new"/*
rm -rf "$out"
mv "$out.new" "$out"
say "$out: $(du -b "$out/disk.raw" | awk '{printf "disk %.1f MB", $1/1e6}'), $(du -b "$out/initrd" | awk '{printf "initrd %.1f MB", $1/1e6}'), $(du -b "$out/podvm.efi" | awk '{printf "UKI %.1f MB", $1/1e6}'), root hash $(cat "$out/roothash")"
