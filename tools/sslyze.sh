#!/bin/sh
# Puts the pinned sslyze, a scanner of TLS servers that knows Mozilla's recommendations, into DIR: a Python environment with the
# packages of sslyze.txt, each checked against the digests there. It is for tests; nothing ships it. Usage: sslyze.sh DIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$1

if cmp -s "$here/sslyze.txt" "$dir/.installed"; then exit 0; fi
[ "$(uname -m)" = x86_64 ] || { echo "sslyze.sh: the pinned packages are for x86_64, this machine is $(uname -m)" >&2; exit 1; }

echo "fetching sslyze into $dir (12 MB)" >&2
mkdir -p "$(dirname "$dir")"
python3 -m venv --clear "$dir"
install() {
	"$dir/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes "$@"
}
install --only-binary :all: -r "$here/sslyze.txt"
# sslyze itself comes as source: it is built here, with the setuptools of sslyze.txt and nothing fetched beside it.
sed -n 's/^# sslyze, from source: //p' "$here/sslyze.txt" >"$dir/source.txt"
[ -s "$dir/source.txt" ] || { echo "sslyze.sh: sslyze.txt does not name sslyze" >&2; exit 1; }
install --no-build-isolation -r "$dir/source.txt"
"$dir/bin/python" -m sslyze --help >/dev/null
cp "$here/sslyze.txt" "$dir/.installed"
