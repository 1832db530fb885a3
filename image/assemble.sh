#!/bin/bash
# In the tools' root: /debs, /work/packages and /work/overlay become /work/out. Run by build.sh; the first argument is what to
# add to the kernel's command line. Everything that could differ from one machine or day to another is fixed here.
set -euo pipefail
umask 022
out=/work/out root=/tmp/root initrd=/tmp/initrd
say() { echo "image: $*" >&2; }

# What identifies the disk is no secret and no accident.
uuid=7b1f3f4e-0c2d-4d55-9a51-6f9f1c0d2e01
salt=$(printf 'Portcullis podVM' | sha256sum | cut -d' ' -f1)
# Where the pod is, what may not come from the host, and that nothing waits after an accident: docs/image.md explains each word.
cmdline="systemd.unit=kata-containers.target systemd.import_credentials=no panic=1${1:+ $1}"

say "unpacking $(wc -l </work/packages) packages"
mkdir -p "$root" "$initrd"
while read -r _ name; do dpkg-deb -x "/debs/$name" "$root"; done </work/packages
awk '{ split($2, f, "_"); sub("%3a", ":", f[2]); sub(".deb", "", f[3]); print f[1], f[2], f[3] }' /work/packages >"$out/packages.txt"
kernel=$(basename "$root"/usr/lib/modules/*)
install -m 644 "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"

# Only what runs in a podVM. A pattern that finds nothing is a change of Debian's that somebody has to look at.
shopt -s nullglob dotglob
while read -r pattern; do
	eval "found=(\"$root\"/$pattern)" # braces too
	[ -e "${found[0]:-}" ] || [ -L "${found[0]:-}" ] || say "WARNING: image/prune.txt: nothing is called $pattern"
	rm -rf "${found[@]}"
done < <(grep -v -e '^#' -e '^$' /image/prune.txt)
find "$root" -mindepth 1 -depth -type d -empty -delete
mkdir -p "$root"/{dev,proc,sys,run,tmp,var,root,etc,mnt,home,opt,srv,media}
chmod 700 "$root/root"
chmod 1777 "$root/tmp"
cp -a /work/overlay/. "$root/"
chown -R 0:0 "$root"

# An identity of its own is what a podVM gets in memory, in each boot. Kata binds its file over the one for DNS.
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
echo podvm >"$root/etc/hostname"
systemd-sysusers --root="$root" >/dev/null 2>&1
rm -f "$root"/etc/{passwd,group,shadow,gshadow}-
depmod --basedir "$root" "$kernel"

say "checking that the programs find their libraries"
linker=/lib64/ld-linux-x86-64.so.2
find "$root" -xdev -type f \( -perm /111 -o -name '*.so*' \) ! -name '*.ko*' -printf '/%P\n' | while read -r file; do
	[ "$(head -c4 "$root$file" | tr -d '\0')" = $'\x7fELF' ] || continue
	chroot "$root" "$linker" --verify "$file" >/dev/null 2>&1 || continue # a program that wants none
	chroot "$root" "$linker" --list "$file" 2>&1 | sed -n "s|^[[:space:]]*\(.*\) => not found.*|$file wants \1|p
		s|.*error while loading shared libraries: \([^:]*\):.*|$file wants \1|p" || true # to fail is its answer
done >/tmp/missing
[ ! -s /tmp/missing ] || { sort -u /tmp/missing >&2; say "add the packages to image/packages.txt, or the programs to image/prune.txt"; exit 1; }
# What the image is not to have, whatever brings it.
unwanted=$(find "$root" -xdev \( -perm /6000 -o -type f \( -name 'bash' -o -name 'dash' -o -name 'sh' -o -name 'busybox' -o -name 'dpkg' -o -name 'apt*' \
	-o -name 'sshd' -o -name 'agetty' -o -name 'systemd-networkd' \) -o -path '*/system-generators/*' \) -printf '/%P\n')
[ -z "$unwanted" ] || { echo "$unwanted" >&2; say "these have no place in a podVM"; exit 1; }

# The kernel's own modules are the package's; the other files are ours to know.
find "$root" -xdev ! -path "$root/usr/lib/modules/*" -printf '%m %u:%g %y /%P %l\n' | sed 's/ *$//' | sort -k4 >"$out/contents.txt"

say "making the initrd"
mkdir -p "$initrd"/{dev,proc,sys,sysroot,modules}
install -m 755 /work/init "$initrd/init"
n=100
for module in virtio_blk dm-verity erofs; do
	modprobe -d "$root" -S "$kernel" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
done | awk '!seen[$0]++' | while read -r path; do
	n=$((n + 1))
	xz -dc "$path" >"$initrd/modules/$n-$(basename "$path" .xz)"
done
# Where the command line is part of the program that the firmware starts, no other is accepted: see image/init.
mkdir -p /tmp/pinned
archive() {
	find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
	(cd "$1" && find . -print0 | sort -z | cpio --quiet -o0 -H newc --reproducible -R 0:0) | zstd -q -19 -T1
}
archive "$initrd" >"$out/initrd"

say "making the root"
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkfs.erofs --quiet -zlz4hc -C65536 -T"$SOURCE_DATE_EPOCH" -U "$uuid" /tmp/root.erofs "$root" >/dev/null
veritysetup format --uuid="$uuid" --salt="$salt" --root-hash-file="$out/roothash" /tmp/root.erofs /tmp/root.verity >/dev/null
hash=$(cat "$out/roothash")

# A disk as the Discoverable Partitions Specification has it: the partitions are called by the hash.
id() { echo "${1:0:8}-${1:8:4}-${1:12:4}-${1:16:4}-${1:20:12}"; }
mebibytes() { echo $((($(stat -c %s "$1") + 1048575) / 1048576)); }
data=$(mebibytes /tmp/root.erofs) tree=$(mebibytes /tmp/root.verity)
truncate -s $(((data + tree + 2) * 1048576)) "$out/disk.raw"
sfdisk -q "$out/disk.raw" <<TABLE
label: gpt
label-id: $uuid
start=2048, size=$((data * 2048)), type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, uuid=$(id "${hash:0:32}"), name=root
start=$((2048 + data * 2048)), size=$((tree * 2048)), type=2c7357ed-ebd2-46d9-aec1-23d437ec2bf5, uuid=$(id "${hash:32:32}"), name=root-verity
TABLE
dd if=/tmp/root.erofs of="$out/disk.raw" bs=1M seek=1 conv=notrunc status=none
dd if=/tmp/root.verity of="$out/disk.raw" bs=1M seek=$((1 + data)) conv=notrunc status=none

say "making the UKI"
printf '%s roothash=%s' "$cmdline" "$hash" >"$out/cmdline"
cp "$out/cmdline" /tmp/pinned/cmdline
archive /tmp/pinned >/tmp/pinned.cpio.zst
ukify build --linux="$out/vmlinuz" --initrd="$out/initrd" --initrd=/tmp/pinned.cpio.zst --cmdline="@$out/cmdline" \
	--os-release="@$root/usr/lib/os-release" --uname="$kernel" --output="$out/podvm.efi" >/dev/null 2>&1
