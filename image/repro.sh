#!/bin/bash
# Builds everything that a measurement stands for twice, in surroundings that have nothing in common but the sources and the
# cached packages, and compares every byte: other folder, other umask, other time zone, other language, other Go build cache.
# Then it changes one thing at a time and wants the comparison to say which, since a comparison that finds nothing proves little.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
say() { echo "image-repro: $*" >&2; }
[ "$(id -u)" = 0 ] || { say "want root, as make image does"; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/portcullis-repro.XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cache=${XDG_CACHE_HOME:-$HOME/.cache}
export PORTCULLIS_ENVOY=${PORTCULLIS_ENVOY:-$cache/portcullis/envoy-1.40.0/envoy}

# build DIR UMASK ZONE LANGUAGE
build() (
	say "building in $1, with umask $2, in $3"
	umask "$2"
	mkdir -p "$1"
	cd "$repo"
	git ls-files -co --exclude-standard -z | tar --create --null --files-from=- | tar --extract --no-same-permissions --no-same-owner --directory="$1"
	cd "$1"
	env TZ="$3" LC_ALL="$4" XDG_CACHE_HOME="$cache" GOCACHE="${5:-$(go env GOCACHE)}" GOFLAGS= make --no-print-directory image sysext oci
	mkdir products
	cp -r bin/image* bin/sysext bin/oci products/
)

build "$work/one" 022 UTC C
build "$work/another/and/deeper" 077 Pacific/Chatham C.UTF-8 "$work/gocache"
a=$work/one/products b=$work/another/and/deeper/products

"$repo/image/compare.sh" "$a" "$b"
(cd "$a" && find . -type f | sort | xargs sha256sum)
say "equal, $(find "$a" -type f | wc -l) files"

# want TEXT COMMAND... runs a comparison that must fail and must say TEXT.
want() {
	local text=$1 said
	shift
	if said=$("$@" 2>&1); then say "FAILED: a difference went unnoticed: $text"; exit 1; fi
	grep -qF -- "$text" <<<"$said" || { say "FAILED: the difference was not called $text:"; echo "$said" >&2; exit 1; }
	say "noticed: $text"
}
image=$(basename "$a"/image*)
cp -r "$b" "$work/changed"
printf x | dd of="$work/changed/$image/podvm.efi" bs=1 seek=4096 conv=notrunc status=none
want "$image/podvm.efi differs" "$repo/image/compare.sh" "$a" "$work/changed"
rm "$work/changed/$image/podvm.efi"
want "$image/podvm.efi" "$repo/image/compare.sh" "$a" "$work/changed"
mkdir -p "$work/overlay/etc"
echo planted >"$work/overlay/etc/planted"
(cd "$work/one" && image/build.sh --out "$work/planted/$image" --agent "${KATA_AGENT:-bin/standin-agent}" --overlay "$work/overlay") 2>/dev/null
want "Only in b/etc: planted" "$repo/image/compare.sh" "$a/$image" "$work/planted/$image"
