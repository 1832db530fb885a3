#!/bin/bash
# measure.sh DIR PORTCULLIS: writes DIR/measurements.json, what a verifier needs to know of the image in DIR. With OVMF=PATH, the
# firmware that the podVMs start with, and VCPUS="1 2 4" it has the launch measurements of AMD SEV-SNP as well.
set -euo pipefail
dir=$1 portcullis=$2
sum() { sha256sum "$dir/$1" | cut -d' ' -f1; }
{
	printf '{\n  "rootHash": "%s",\n  "commandLine": "%s",\n  "sha256": {' "$(cat "$dir/roothash")" "$(cat "$dir/cmdline")"
	separator=''
	for file in disk.raw initrd podvm.efi vmlinuz; do
		printf '%s\n    "%s": "%s"' "$separator" "$file" "$(sum "$file")"
		separator=,
	done
	printf '\n  }\n}\n'
} >"$dir/measurements.json"
