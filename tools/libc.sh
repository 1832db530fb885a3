#!/bin/sh
# Puts the pinned Debian package of glibc into DIR: what the official Envoy is linked to, for the mesh proxy's image. It is
# checked against image/oci/pins.sha256; nothing is kept that does not match. Usage: libc.sh DIR
set -eu
pin=$(grep '  libc6_' "$(dirname "$0")/../image/oci/pins.sha256")
name=${pin#*  }
version=${name#libc6_}
version=${version%_amd64.deb}

dir=$1
verify() { [ -f "$1/$name" ] && (cd "$1" && echo "$pin" | sha256sum --check --status); }

if verify "$dir"; then exit 0; fi
echo "fetching glibc $version into $dir (3 MB)" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() { (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "libc6:amd64=$version" >/dev/null 2>&1); }
fetch || { [ "$(id -u)" != 0 ] || apt-get update -q >/dev/null; fetch; } ||
	{ echo "libc.sh: apt-get has no libc6 $version: it takes a mirror of Debian 12, or a newer version in image/oci/pins.sha256" >&2; exit 1; }
verify "$work" || { echo "libc.sh: $name has another SHA-256 than the pinned ${pin%% *}" >&2; exit 1; }
mkdir -p "$dir"
cp "$work/$name" "$dir/.$name.new"
mv "$dir/.$name.new" "$dir/$name"
