#!/bin/bash
# measure.sh DIR PORTCULLIS: writes DIR/measurements.json, what a verifier needs to know of the image in DIR.
#
# With OVMF=PATH, the firmware that the podVMs start with, it has AMD SEV-SNP's launch measurements as well, for QEMU with kernel
# hashes and the command line as it is: a runtime that adds words of its own launches something else (docs/image.md). VCPUS and
# VCPU_TYPE say for which machines.
set -euo pipefail
dir=$1 portcullis=$2
{
	printf '{\n  "rootHash": "%s",\n  "commandLine": "%s",\n  "sha256": {' "$(cat "$dir/roothash")" "$(cat "$dir/cmdline")"
	separator=''
	for file in disk.raw initrd podvm.efi vmlinuz; do
		printf '%s\n    "%s": "%s"' "$separator" "$file" "$(sha256sum "$dir/$file" | cut -d' ' -f1)"
		separator=,
	done
	printf '\n  },\n  "snp": ['
	separator=''
	[ -z "${OVMF:-}" ] || for vcpus in ${VCPUS:-1 2 4 8}; do
		measurement=$("$portcullis" measure snp --quiet --ovmf "$OVMF" --kernel "$dir/vmlinuz" --initrd "$dir/initrd" \
			--append "$(cat "$dir/cmdline")" --vcpus "$vcpus" --vcpu-type "${VCPU_TYPE:-EPYC-Milan}" | grep -oE '[0-9a-f]{96}')
		printf '%s\n    {"vcpus": %d, "vcpuType": "%s", "measurement": "%s"}' "$separator" "$vcpus" "${VCPU_TYPE:-EPYC-Milan}" "$measurement"
		separator=,
	done
	printf '%s]\n}\n' "${separator:+$'\n'  }"
} >"$dir/measurements.json"
