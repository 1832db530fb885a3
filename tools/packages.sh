#!/bin/sh
# Makes sure that the named Debian packages are installed. As root it installs what is missing; otherwise it prints the
# one command that does. Usage: packages.sh PACKAGE...
set -eu
missing=
for package; do
	dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || { echo "missing here, by Debian's names:$missing" >&2; exit 1; }
if [ "$(id -u)" != 0 ]; then
	echo "missing packages; run as root: apt-get install -y$missing" >&2
	exit 1
fi
echo "installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # a list of names
apt-get install -y -q --no-install-recommends $missing >/dev/null 2>&1 ||
	{ apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends $missing >/dev/null; }
