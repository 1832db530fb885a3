#!/bin/bash
# Adds to the Nix store what the flake takes from outside, from what this machine has or fetches by other ways. Every path is
# named by its content: what is not exactly what the flake wants is never found.
#
#   nix/seed.sh [WHAT]...          fetch, check and add: envoy libc (what no Nix build fetches; the default), go, modules,
#                                  oci-modules (so that nothing is fetched for the others either)
#   nix/seed.sh --to DIR WHAT...   leave them in DIR, for `nix/seed.sh --add DIR` where Nix is
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/portcullis
say() { echo "seed: $*" >&2; }

want_nix() { command -v nix-store >/dev/null || { say "there is no nix-store here: install Nix, or leave them in a folder by --to DIR"; exit 1; }; }
# add DIR
add() {
	want_nix
	local entry recursive
	for entry in "$1"/*; do
		recursive=--recursive
		[ -d "$entry" ] || recursive=''
		nix-store --add-fixed $recursive sha256 "$entry"
	done
}

to=''
case ${1:-} in
--add) add "${2:?}"; exit ;;
--to) to=${2:?}; shift 2 ;;
-h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
-*) say "unknown argument $1 (--help shows them)"; exit 2 ;;
esac
[ $# -gt 0 ] || set -- envoy libc
if [ -n "$to" ]; then
	mkdir -p "$to"
else
	want_nix
	dir=$(mktemp -d)
	trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
fi
dir=${to:-$dir}

for what; do
	case $what in
	envoy)
		"$repo/tools/envoy.sh" "$cache/envoy-1.40.0"
		install -m 644 "$cache/envoy-1.40.0/envoy" "$dir/envoy"
		;;
	libc)
		"$repo/tools/libc.sh" "$cache/libc"
		cp "$cache/libc/$(sed -n 's/.*  \(libc6_.*\)/\1/p' "$repo/image/oci/pins.sha256")" "$dir/"
		;;
	go)
		name=$(sed -n 's/.*version = "\(.*\)";/go\1-linux-amd64/p' "$repo/nix/go-tree.nix")
		cp -a "$(go env GOROOT)" "$dir/$name"
		# The release says auto; images of Go for containers say local.
		sed -i 's/^GOTOOLCHAIN=local$/GOTOOLCHAIN=auto/' "$dir/$name/go.env"
		;;
	modules) GOFLAGS='' GOTOOLCHAIN=local go -C "$repo" mod vendor -o "$dir/portcullis-modules" ;;
	oci-modules) GOFLAGS='' GOTOOLCHAIN=local go -C "$repo/image/oci" mod vendor -o "$dir/portcullis-oci-modules" ;;
	*) say "do not know $what (--help shows what there is)"; exit 2 ;;
	esac
done
[ -n "$to" ] || add "$dir"
