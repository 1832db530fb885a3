#!/bin/sh
# Puts etcd, kube-apiserver and kubectl into the cache, built from the pinned sources of tests/cluster/kube (no registry carries
# these binaries), and prints the folder. The folder is named by the digest of that module's go.mod and go.sum: the same pins are
# never built twice. A cold build is some 8 minutes on two cores. It has a Go build cache of its own, 2.7 GB, which an interrupted
# build goes on from and a finished one deletes: what stays is 210 MB. Usage: cluster.sh CACHE
set -eu
version=v1.37.2

cache=$1
module=$(cd "$(dirname "$0")/../tests/cluster/kube" && pwd)
digest=$(cat "$module/go.mod" "$module/go.sum" | sha256sum | cut -c 1-16)
dir=$cache/cluster-$digest

mkdir -p "$cache"
exec 9>"$cache/cluster.lock"
if ! flock --nonblock 9; then
	echo "cluster.sh: waiting for another build of the test cluster" >&2
	flock 9
fi
if [ -d "$dir" ]; then
	echo "test cluster: $dir is there, nothing to build" >&2
	echo "$dir"
	exit 0
fi

work=$dir.building
mkdir -p "$work/gocache" "$work/bin"
echo "building etcd, kube-apiserver $version and kubectl into $dir: once, about 8 minutes on two cores" >&2
x=k8s.io/component-base/version # without these the server says that it is a placeholder
start=$(date +%s)
for package in k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl go.etcd.io/etcd/server/v3; do
	case $package in
	*/etcd/*) name=etcd ;;
	*) name=${package##*/} ;;
	esac
	{
		GOCACHE="$work/gocache" CGO_ENABLED=0 GOFLAGS='' GOTOOLCHAIN=local nice go -C "$module" build -v -trimpath -buildvcs=false -mod=readonly \
			-ldflags "-s -w -X $x.gitVersion=$version -X $x.gitMajor=1 -X $x.gitMinor=37 -X $x.gitTreeState=clean" \
			-o "$work/bin/$name" "$package" 2>&1 || echo FAILED
	} | awk -v name="$name" '
		/^FAILED$/ { failed = 1; next }
		/^[^ ]+$/ { if (++n % 250 == 0) print "  " name ": " n " packages" > "/dev/stderr"; next }
		/^go: downloading / { next }
		{ print > "/dev/stderr" }
		END { exit failed }'
	echo "  $name after $(($(date +%s) - start)) s" >&2
done
mv "$work/bin" "$dir" # the last step: a folder of that name is whole
chmod -R u+w "$work"
rm -rf "$work"

for other in "$cache"/cluster-*; do # what earlier pins left
	case $other in "$dir" | *.lock) ;; *) rm -rf "$other" ;; esac
done
echo "$dir"
