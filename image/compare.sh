#!/bin/bash
# compare.sh A B: are two folders of build products the same, byte for byte? If not, says which files differ, and where: with
# diffoscope where that is installed, and by the files inside otherwise (for which it wants root).
set -euo pipefail
export LC_ALL=C
a=$1 b=$2
work=$(mktemp -d)
# shellcheck disable=SC2317 # the trap calls it
cleanup() {
	for side in a b; do ! mountpoint -q "$work/$side" || umount "$work/$side"; done
	rm -rf "$work"
}
trap cleanup EXIT
mkdir "$work/a" "$work/b"

list() { (cd "$1" && find . -type f -printf '%P\n' -o -type l -printf 'link %P %l\n' | sort); }
different=0
if ! diff <(list "$a") <(list "$b") >"$work/lists"; then
	echo "the folders hold other files:" >&2
	awk '{ print "  " $0 }' "$work/lists" >&2
	different=1
fi

# inside FILE MOUNT-OPTIONS compares what two file systems hold.
inside() {
	mount -o "ro,loop$2" -t erofs "$a/$1" "$work/a"
	mount -o "ro,loop$2" -t erofs "$b/$1" "$work/b"
	{ diff -rq --no-dereference "$work/a" "$work/b" | sed "s|$work/||g"; diff <(cd "$work/a" && find . -printf '%P %m %U:%G %T@\n' | sort) \
		<(cd "$work/b" && find . -printf '%P %m %U:%G %T@\n' | sort); } | head -20 | awk '{ print "  " $0 }' >&2 || true
	umount "$work/a" "$work/b"
}

while read -r file; do
	if [ ! -f "$b/$file" ] || cmp -s "$a/$file" "$b/$file"; then continue; fi
	different=1
	echo "$file differs: $(cmp "$a/$file" "$b/$file" 2>&1 | sed 's/.*differ: //' || true)" >&2
	if command -v diffoscope >/dev/null; then
		diffoscope --max-report-size 20000 "$a/$file" "$b/$file" >&2 || true
		continue
	fi
	case $file in
	*disk.raw) inside "$file" ,offset=1048576 ;;
	*.raw) inside "$file" '' ;;
	*.txt | *.json | *SUMS | *cmdline) diff "$a/$file" "$b/$file" | head -10 | awk '{ print "  " $0 }' >&2 || true ;;
	esac
done < <(cd "$a" && find . -type f -printf '%P\n' | sort)
exit $different
