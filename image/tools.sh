# shellcheck shell=bash
# shellcheck disable=SC2154,SC2016 # variables of the caller's; words for others to expand
# Functions of build.sh and sysext.sh: the Debian root with the tools, the packages, and the list of what is ours.
# They read here, repo, cache, envoy, agent and PACKAGES of their caller, and want its say and die.

# mirrors prints a list of Debian 13's packages, from where this machine has its own.
mirrors() {
	local main='' security='' release uri
	while read -r release uri; do
		case $release in
		*-security) security=${security:-$uri} ;;
		*-*) ;;
		*) main=${main:-$uri} ;;
		esac
	done < <(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages')
	[ -n "$main" ] || die "this machine's apt knows no Debian mirror: apt-get update, and see /etc/apt"
	local key=signed-by=/usr/share/keyrings/debian-archive-keyring.gpg
	echo "deb [$key] $main trixie main"
	echo "deb [$key] $main trixie-updates main"
	[ -z "$security" ] || echo "deb [$key] $security trixie-security main"
}

# make_tools sets tools to a Debian root that has image/tools.txt, and makes it if it is not there.
make_tools() {
	tools=$cache/tools-$(sha256sum "$here/tools.txt" | cut -c1-16)
	if [ ! -e "$tools/.whole" ]; then
		say "making a Debian root with the tools, once: half a minute"
		rm -rf "$tools"
		mirrors >"$cache/trixie.list"
		mmdebstrap --quiet --mode=root --variant=apt --aptopt='APT::Install-Recommends "false"' \
			--include="$(grep -v '^#' "$here/tools.txt" | paste -sd,)" trixie "$tools" "$cache/trixie.list" >&2
		mkdir -p "$tools"/{work,debs,image}
		: >"$tools/.whole"
	fi
	# shellcheck disable=SC2046 # a list of names
	chroot "$tools" dpkg-query -W -f '${Package} ${Version}\n' $(grep -v '^#' "$here/tools.txt") >"$cache/tools.have"
	compare "$here/tools.lock" "$cache/tools.have" "remove $tools to make it anew, or"
}

# compare wants two lists to be equal, or says how they differ.
compare() {
	local difference
	difference=$(diff -U0 "$1" "$2" | grep '^[-+][^-+]' || true)
	[ -n "$difference" ] || return 0
	awk '{ print "  " $0 }' <<<"$difference" >&2
	if [ "${UPDATE_LOCKS:-}" = 1 ]; then
		cp "$2" "$1"
		say "$(basename "$1") is written anew"
	elif [ "$PACKAGES" = newest ]; then
		say "WARNING: these packages (+) are not those of image/$(basename "$1") (-): the image has other measurements than the release"
	else
		die "the packages to be had (+) are not those of image/$(basename "$1") (-); ${3:-} PACKAGES=newest takes what is there"
	fi
}

# fetch_packages LIST LOCK leaves in $cache/debs what the list names, and in $cache/packages.have what that is: checksums and names.
# With every file of the lock in the cache, the network is not asked.
fetch_packages() {
	if [ "$PACKAGES" != newest ] && [ "${UPDATE_LOCKS:-}" != 1 ] && (cd "$cache/debs" && sha256sum --quiet --check "$2") >/dev/null 2>&1; then
		cp "$2" "$cache/packages.have"
		return
	fi
	# Builds for tests come several at a time, and want what is new, not what is newer than the one before.
	if [ "$PACKAGES" = newest ] && [ -n "$(find "$cache" -maxdepth 1 -name packages.have -mmin -60)" ] &&
		(cd "$cache/debs" && sha256sum --quiet --check "$cache/packages.have") >/dev/null 2>&1; then
		compare "$2" "$cache/packages.have"
		return
	fi
	say "fetching the packages"
	mirrors >"$tools/etc/apt/sources.list.d/portcullis.list"
	find "$tools/etc/apt/sources.list.d" "$tools/etc/apt/sources.list" -name '*.list' ! -name portcullis.list -delete 2>/dev/null || true
	grep -v '^#' "$1" >"$tools/work/packages"
	unshare --mount --propagation private bash -euc "
		mount --bind '$cache/debs' '$tools/debs'
		mount -t proc proc '$tools/proc'
		for f in resolv.conf hosts; do [ ! -e /etc/\$f ] || cp -L /etc/\$f '$tools/etc/'; done
		exec chroot '$tools' bash -s" >"$cache/packages.have.new" <<'SCRIPT'
set -euo pipefail
cd /debs
apt-get -qq -o APT::Sandbox::User=root update >&2
while read -r name; do
	# A package that only names the kernel of the day.
	if [ "$name" = linux-image-cloud-amd64 ]; then
		name=$(apt-cache depends "$name" | awk '!found && $1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; found = 1 }')
	fi
	apt-cache show --no-all-versions "$name" | awk '
		/^$/ { done = 1 } done { next }
		$1 == "Package:" { p = $2 } $1 == "Version:" { v = $2 } $1 == "Architecture:" { a = $2 } $1 == "SHA256:" { s = $2 }
		END { gsub(":", "%3a", v); print s "  " p "_" v "_" a ".deb" }'
done </work/packages >/work/want
sort -k2 -o /work/want /work/want
awk '{ split($2, f, "_"); sub("%3a", ":", f[2]); print f[1] "=" f[2] }' /work/want >/work/exact
sha256sum --quiet --check /work/want >/dev/null 2>&1 || xargs apt-get -qq -o APT::Sandbox::User=root download </work/exact >&2
sha256sum --quiet --check /work/want >&2
cat /work/want
SCRIPT
	mv "$cache/packages.have.new" "$cache/packages.have"
	compare "$2" "$cache/packages.have"
}

# install_files "SET..." DIR lays what image/files.txt lists of these sets into DIR.
install_files() {
	GOFLAGS='' GOTOOLCHAIN=local go -C "$repo" run -mod=vendor ./image/install \
		--sets "$1" --to "$2" --envoy "${envoy:-}" --agent "${agent:-}" || die "could not lay out $1"
}

# in_tools DIR SCRIPT ARG... runs a script in the tools' root, with DIR at /work and the packages at /debs.
in_tools() {
	local dir=$1 script=$2
	shift 2
	unshare --mount --pid --fork --kill-child --propagation private bash -euc '
		tools=$1 dir=$2 debs=$3 image=$4 script=$5
		shift 5
		mount --bind "$dir" "$tools/work"
		mount --bind "$debs" "$tools/debs"
		mount --bind "$image" "$tools/image"
		mount -t proc proc "$tools/proc"
		mount -t tmpfs -o mode=1777 tmp "$tools/tmp"
		exec chroot "$tools" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C TZ=UTC HOME=/tmp SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" \
			bash "/image/$(basename "$script")" "$@"' in_tools "$tools" "$dir" "$cache/debs" "$here" "$script" "$@"
}
