#!/bin/bash
# Tries everything that nix/ says, with a Nix of its own in a fresh Debian root, without a network, and against what `make` built:
#
#   nix/ci.sh [--keep]     --keep leaves the root, and says where; UPDATE_LOCKS=1 writes the hashes of what modules require
#
# Needs root (for the root, and for Nix' sandbox in it), bin/ and vendor/ built, mmdebstrap, and cargo for the linters. No Nix is
# installed here, and nothing stays but the cache: the root's archive, and the linters.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/portcullis
say() { echo "nix: $*" >&2; }
die() { say "$*"; exit 1; }
[ "$(id -u)" = 0 ] || die "want root: Nix' sandbox is made in a root of its own"
for f in vendor/modules.txt bin/portcullis bin/oci/digests.json bin/units; do
	[ -e "$repo/$f" ] || die "there is no $f; want what make built: make build oci units"
done
keep=${1:-}
umask 022
began=$SECONDS

work=$(mktemp -d "${TMPDIR:-/tmp}/portcullis-nix.XXXXXX")
finish() { chmod -R u+w "$work" && rm -rf "$work"; }
if [ "$keep" = --keep ]; then say "keeping $work"; else trap finish EXIT; fi

# --- a root with Nix, and the linters
packages=nix-bin,ca-certificates,mount,iproute2
archive=$cache/nix/root-$(sha256sum <<<"$packages trixie" | cut -c1-16).tar
mkdir -p "$cache/nix"
if [ ! -e "$archive" ]; then
	say "making a Debian root with Nix, once: half a minute"
	rm -f "$cache"/nix/root-*.tar
	# shellcheck disable=SC1091 # a file of the repository
	(. "$repo/image/tools.sh" && mirrors) >"$work/trixie.list"
	mmdebstrap --quiet --format=tar --variant=apt --aptopt='APT::Install-Recommends "false"' --include="$packages" trixie "$archive.new" "$work/trixie.list" >&2
	mv "$archive.new" "$archive"
fi
linters=$cache/nix/linters
for linter in deadnix-1.3.1 nixpkgs-fmt-1.3.0; do
	[ -e "$linters/.$linter" ] && continue
	say "building $linter, once: a minute"
	cargo install --quiet --locked --root "$linters" --version "${linter##*-}" "${linter%-*}" >&2
	: >"$linters/.$linter"
done
root=$work/root
mkdir "$root"
tar --extract --file="$archive" --directory="$root"
mkdir -p "$root/etc/nix"
cat >"$root/etc/nix/nix.conf" <<'CONF'
experimental-features = nix-command flakes
build-users-group =
sandbox = true
sandbox-fallback = false
substituters =
flake-registry =
CONF

# --- what is tried: the sources without anything that git does not know; tree may be another in a trial
tree=$work/tree
mkdir "$tree"
(cd "$repo" && git ls-files -co --exclude-standard -z | tar --create --null --files-from=- --ignore-failed-read 2>/dev/null) | tar --extract --directory="$tree"
vendor=$repo/vendor made=$repo/bin seeds=$work/seeds

# in_root COMMAND... runs in the root, with the sources at /src, without a network.
in_root() { "$repo/nix/enter.sh" "$root" "$tree=/src" "$work=/work" -- "$@"; }
build() { in_root nix build --no-link --print-out-paths --no-update-lock-file "path:/src#$1"; }
nar() { in_root nix hash path "/work/$1"; }
nix_files() { (cd "$tree" && find flake.nix nix -name '*.nix' | sort); }

# --- the checks: each says nothing, or what is wrong. They run where a failure ends nothing by itself, so each says "|| return".
parses() {
	local f
	for f in $(nix_files); do in_root nix-instantiate --parse "/src/$f" >/dev/null || return 1; done
}
nothing_unused() { (cd "$tree" && NO_COLOR=1 "$linters/bin/deadnix" --fail flake.nix nix); }
formatted() { (cd "$tree" && "$linters/bin/nixpkgs-fmt" --check flake.nix nix); }

# hash_is FILE FOLDER WHAT
hash_is() {
	local want got
	want=$(cat "$tree/$1") || return 1
	got=$(nar "$2") || return 1
	[ "$got" = "$want" ] || { echo "$3 is $got, and $1 says $want"; return 1; }
}
# update FILE FOLDER writes the hash to the sources.
update() { nar "$2" | tee "$tree/$1" >"$repo/$1"; }
made_from_vendor() {
	rm -rf "$work/vendor" && cp -r "$vendor" "$work/vendor" || return 1
	hash_is nix/vendor-hash vendor "vendor/, which make builds from," || { echo "remove vendor/, and make makes it anew"; return 1; }
}
current() { hash_is "$@" || { echo "UPDATE_LOCKS=1 make test-nix writes it"; return 1; }; }
modules_current() { current nix/vendor-hash seeds/portcullis-modules "what go mod vendor makes"; }
oci_modules_current() { current image/oci/vendor-hash seeds/portcullis-oci-modules "what go mod vendor makes of image/oci"; }

seeded() {
	in_root /src/nix/seed.sh --add "/work/$(basename "$seeds")" >"$work/seeded" || return 1
	local want path remedy="unpack the official release again, or change nix/go-tree.nix"
	want=$(in_root nix eval --raw --impure --expr '(import /src/nix/go-tree.nix).name') || return 1
	path=$(grep -- "-$want\$" "$work/seeded")
	# Evaluating fetches nothing where the tree is there, and there is no network where it is not.
	# shellcheck disable=SC2016 # words for Nix
	want=$(in_root nix eval --raw --impure --expr '"${(import /src/nix/go-tree.nix).src}"' 2>"$work/fetch") || {
		echo "this machine's Go is not the tree of nix/go-tree.nix: it would be $path; $remedy"; tail -n 1 "$work/fetch"; return 1; }
	[ "$path" = "$want" ] || { echo "this machine's Go is $path, and nix/go-tree.nix wants $want; $remedy"; return 1; }
}
modules_hold() {
	local said
	said=$(in_root nix-instantiate --eval --strict -E 'import /src/nix/tests { }') || return 1
	[ "$said" = '"ok"' ] || { echo "the tests of the modules say $said"; return 1; }
}
modules_mutants() { in_root /src/nix/tests/mutants.sh; }
flake_check() { in_root nix flake check --no-update-lock-file path:/src; }
builds() { build "$1" >"$work/building" && mv "$work/building" "$work/path.$1"; }
rebuilds() { in_root nix build --no-link --rebuild "path:/src#$1"; }
out() { cat "$work/path.$1" 2>/dev/null || { echo "$1 was not built" >&2; return 1; }; }
refers_to_nothing() {
	local path refs
	path=$(out "$1") || return 1
	refs=$(in_root nix-store --query --references "$path") || return 1
	[ -z "$refs" ] || { echo "$1 refers to $refs"; return 1; }
	[ -e "$root$path" ] || { echo "there is no $path"; return 1; }
	if grep -rqaF /nix/store "$root$path"; then echo "$1 has the name of a store path in it"; return 1; fi
}
same_programs() {
	local path program differ=0
	path=$(out programs) || return 1
	for program in "$root$path"/bin/*; do
		cmp "$program" "$made/$(basename "$program")" || differ=1
	done
	[ "$differ" = 0 ]
}
# NARs have names, content and whether a file is a program: what a store keeps.
same_tree() {
	local path a b
	path=$(out "$1") || return 1
	rm -rf "$work/made" && cp -r "$made/$1" "$work/made" || return 1
	a=$(in_root nix hash path "$path") || return 1
	b=$(nar made) || return 1
	[ "$a" = "$b" ] || { echo "$1: Nix made $a, make $b"; diff -r --no-dereference "$root$path" "$made/$1"; return 1; }
}
fetches_modules() { NETWORK=yes in_root nix build --no-link --rebuild --file /src/nix/packages.nix modules ociModules; }
shell_has_go() {
	local said
	said=$(in_root nix develop path:/src --command go env GOVERSION) || return 1
	[ "$said" = "go1.26.8" ] || { echo "the shell's Go is $said"; return 1; }
}

# --- what spoils the sources, in the folder tree, or what is compared with them: each for the check that must notice
trial() { rm -rf "$work/trial" && cp -r "$work/tree" "$work/trial" && tree=$work/trial; }
copy_of_made() { rm -rf "$work/trial" && mkdir "$work/trial" && cp -r "$made/$1" "$work/trial/" && made=$work/trial; }
# edit FILE SED
edit() {
	cp "$tree/$1" "$work/before"
	sed -i "$2" "$tree/$1"
	! cmp -s "$tree/$1" "$work/before" || { echo "$1 is as before: the trial tries nothing"; return 1; }
}
spoil_syntax() { trial && edit nix/packages.nix 's/^}//'; }
spoil_use() { trial && edit nix/go-tree.nix 's/^rec {/let unused = 1; in rec {/'; }
spoil_format() { trial && edit nix/packages.nix 's/^  version = /  version   = /'; }
spoil_vendor() {
	cp -r "$vendor" "$work/touched" && vendor=$work/touched
	echo '// touched' >>"$(find "$vendor" -name '*.go' | sort | head -n 1)"
}
spoil_hash() { trial && edit nix/vendor-hash 's/sha256-./sha256-A/'; }
spoil_go() {
	local name
	name=$(basename "$seeds"/go1*)
	mkdir "$work/touched-go" && cp -a "$seeds/$name" "$work/touched-go/" && seeds=$work/touched-go
	echo '// touched' >>"$seeds/$name/src/fmt/print.go"
}
spoil_unit() { trial && edit units/podvm-guard.service '/^FailureAction=/d'; }
# The time goes into one program: what the second build makes is another.
# shellcheck disable=SC2016 # Go's quotes
spoil_build() {
	trial && edit nix/packages.nix 's|"./cmd/\.\.\."|"./cmd/podvm-guard"|' &&
		edit nix/builder/main.go 's|command := exec|os.WriteFile(filepath.Join(tree, "cmd/podvm-guard/time.go"), []byte("package main; var built = `"+time.Now().String()+"`; func init() { if built == `` { panic(built) } }"), 0o644); &|; s|"strings"|&; "time"|' &&
		builds programs
}
spoil_program() {
	copy_of_made podvm-guard
	(cd "$repo" && CGO_ENABLED=0 GOFLAGS='' go build -trimpath -buildvcs=false -mod=vendor -ldflags="-s -w -buildid=$(date +%s)" -o "$made/podvm-guard" ./cmd/podvm-guard)
	cp "$repo"/bin/{coordinator,initializer,meshproxy,podvm-attest,podvm-initdata,portcullis} "$made/"
}
spoil_units() { copy_of_made units && echo '# touched' >>"$made/units/usr/lib/systemd/system/podvm-guard.service"; }
spoil_oci() { copy_of_made oci && touch "$made/oci/meshproxy/blobs/sha256/none"; }
spoil_output() {
	in_root nix build --no-link --print-out-paths --impure --expr '(import /src/nix/packages.nix).build.write "trial" (import /src/nix/go-tree.nix).src' >"$work/path.trial"
}

# noticed SPOIL TEXT CHECK... is content when the check fails on what was spoilt, and says TEXT.
noticed() (
	"spoil_$1" || { echo "could not spoil $1"; exit 1; }
	text=$2
	shift 2
	if said=$("$@" 2>&1); then echo "it went unnoticed"; exit 1; fi
	grep -qF -- "$text" <<<"$said" || { echo "it was not called \"$text\":"; echo "$said"; exit 1; }
)

passed=0 failed=0
# check WHAT COMMAND...
check() {
	local what=$1 began=$SECONDS said
	shift
	if said=$("$@" 2>&1); then
		passed=$((passed + 1))
		printf 'ok    %s (%d s)\n' "$what" $((SECONDS - began))
	else
		failed=$((failed + 1))
		printf 'FAIL  %s\n' "$what"
		tail -n 20 <<<"$said" | sed 's/^/      /'
	fi
}

say "$(in_root nix --version), sandboxed, in a root of its own"
check "every .nix file parses" parses
check "deadnix finds nothing that is not used" nothing_unused
check "nixpkgs-fmt would change nothing" formatted
"$repo/nix/seed.sh" --to "$seeds" go modules oci-modules envoy libc
if [ "${UPDATE_LOCKS:-}" = 1 ]; then
	say "writing nix/vendor-hash and image/oci/vendor-hash"
	update nix/vendor-hash seeds/portcullis-modules
	update image/oci/vendor-hash seeds/portcullis-oci-modules
fi
check "nix/vendor-hash is current" modules_current
check "vendor/ is what nix/vendor-hash says" made_from_vendor
check "image/oci/vendor-hash is current" oci_modules_current
check "the Go that make built with is the official tree, by nix/go-tree.nix" seeded
check "the modules' tests say ok" modules_hold
check "each spoilt module is noticed" modules_mutants
check "nix flake check" flake_check
for package in programs units oci; do
	check "$package: builds" builds "$package"
	check "$package: builds the same again" rebuilds "$package"
	check "$package: refers to nothing" refers_to_nothing "$package"
done
check "programs: as make built them, byte for byte" same_programs
check "units: as make laid them out" same_tree units
check "oci: as make wrote them" same_tree oci
check "nix develop has Go" shell_has_go
check "what modules require is what the sandbox fetches by itself" fetches_modules

say "and what would be wrong is noticed:"
check "noticed: a .nix file that is not whole" noticed syntax packages.nix parses
check "noticed: a name that nothing uses" noticed use unused nothing_unused
check "noticed: a file that is not formatted" noticed format packages.nix formatted
check "noticed: vendor/ with one line more" noticed vendor "vendor/, which make builds from, is sha256-" made_from_vendor
check "noticed: another nix/vendor-hash" noticed hash "what go mod vendor makes is sha256-" modules_current
check "noticed: a Go tree with one line more" noticed go "and nix/go-tree.nix wants" seeded
check "noticed: a unit that is edited in units/ alone" noticed unit podvm-guard modules_hold
check "noticed: a build with the time in a program" noticed build "may not be deterministic" rebuilds programs
check "noticed: a program of make's with the time in it" noticed program podvm-guard same_programs
check "noticed: another unit in make's tree" noticed units podvm-guard.service same_tree units
check "noticed: another file in make's OCI images" noticed oci meshproxy same_tree oci
check "noticed: an output that refers to the store" noticed output "trial refers to" refers_to_nothing trial

echo "$passed passed, $failed failed in $((SECONDS - began)) s"
[ "$failed" = 0 ]
