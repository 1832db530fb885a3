#!/bin/bash
# Runs a command with another root, and without a network:
#
#   nix/enter.sh ROOT [PATH=TARGET]... -- COMMAND...    each PATH is bound to TARGET in the root; NETWORK=yes keeps the network
#
# pivot_root, not chroot: the kernel forbids user namespaces in a chroot, and Nix' sandbox is made of them.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "enter.sh: want root" >&2; exit 1; }
network=--net
[ "${NETWORK:-}" != yes ] || network=''
# shellcheck disable=SC2016 # words for the inner shell to expand
exec unshare --mount $network --propagation private bash -euc '
	root=$1
	shift
	mount --bind "$root" "$root"
	while [ "$1" != -- ]; do
		mkdir -p "$root${1#*=}"
		mount --rbind "${1%%=*}" "$root${1#*=}"
		shift
	done
	shift
	for d in proc sys dev; do mount --rbind "/$d" "$root/$d"; done
	mount -t tmpfs -o mode=1777 tmp "$root/tmp"
	for f in resolv.conf hosts ssl/certs/ca-certificates.crt; do # for what has the network
		[ ! -e "/etc/$f" ] || cp -L "/etc/$f" "$root/etc/$f"
	done
	mkdir -p "$root/.outside"
	cd "$root"
	pivot_root . .outside
	umount --lazy /.outside
	ip link set lo up 2>/dev/null || true
	exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 ${GOPROXY:+GOPROXY="$GOPROXY"} "$@"' enter "$@"
