#!/bin/bash
# In the tools' root: /work/tree becomes /work/out/portcullis.raw and a Debian package. Run by sysext.sh with the version.
set -euo pipefail
umask 022
version=$1
cd /work

mkdir -p /tmp/deb/DEBIAN
cp -a tree/. /tmp/deb/
# No maintainer scripts: the links that make the agent require the gate are files of the package.
cat >/tmp/deb/DEBIAN/control <<CONTROL
Package: portcullis-podvm
Version: $version
Architecture: amd64
Maintainer: The Portcullis authors
Section: admin
Priority: optional
Depends: systemd (>= 252)
Description: gate of a confidential podVM
 The guard that closes a podVM's network before its Kata agent starts, the
 service that verifies the pod's initdata, and the one that hands out evidence
 of the TEE. The agent's unit requires them as soon as they are installed.
CONTROL
(cd /tmp/deb && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
find /tmp/deb -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --threads-max=1 --build /tmp/deb "out/portcullis-podvm_${version}_amd64.deb" >/dev/null

# An extension may hold /usr and /opt alone, and says which systems it is for: these programs want nothing of any.
mkdir -p /tmp/sysext/usr/lib/extension-release.d
cp -a tree/usr/. /tmp/sysext/usr/
printf 'ID=_any\nARCHITECTURE=x86-64\n' >/tmp/sysext/usr/lib/extension-release.d/extension-release.portcullis
chown -R 0:0 /tmp/sysext
find /tmp/sysext -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkfs.erofs --quiet -zlz4hc -T"$SOURCE_DATE_EPOCH" -U 0d6a6a0e-54c9-4b0e-8f0b-7d0d2f6f3a11 out/portcullis.raw /tmp/sysext >/dev/null
(cd out && sha256sum portcullis.raw ./*.deb >SHA256SUMS)
