#!/usr/bin/env bash
# Boots an unmodified Debian kernel in Vireo: on a terminal to a shell to type in, elsewhere a
# scripted visit that shows what the guest says and ends by itself.
set -euo pipefail

# A visit takes seconds; this ends one that hangs.
readonly LIMIT=300

[ $# = 2 ] || { echo "usage: demo.sh VIREO GUEST-FOLDER" >&2 && exit 2; }
vireo=$1 guest=$2
machine=(run --kernel "$guest/vmlinuz" --initrd "$guest/initrd.img" --memory 512M)

echo "Guest:  Debian's $(<"$guest/version"), unmodified"
echo "Engine: $("$vireo" host info | sed -n 's/^engine \([a-z]*\) .*chosen.*/\1/p') (why: $vireo host info)"

if [ -t 0 ] && [ -t 1 ]; then
    echo "Leave:  'exit' in the guest's shell powers it off; Ctrl-A x ends the machine at once; Ctrl-A h helps"
    echo
    exec "$vireo" "${machine[@]}" --cpus 2 --append "console=ttyS0 quiet"
fi

echo
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
timeout --foreground "$LIMIT" "$vireo" "${machine[@]}" --cpus 2 --stats \
    --append "console=ttyS0 quiet panic=-1 vireo.mode=visit" --no-reboot </dev/null | tr -d '\r' | tee "$log" || status=$?
if [ "$status" != 0 ] || ! grep -q '^VIREO-VISIT-OK$' "$log"; then
    echo "demo: the guest did not end its visit (vireo exit code $status, 124 = no end within $LIMIT s)" >&2
    exit 1
fi
echo
echo "demo: the guest booted, told about itself and switched its machine off."
