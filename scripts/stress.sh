#!/usr/bin/env bash
# stress-ng --verify (cpu, vm, switch) in the guest for 2 minutes on 4 processors.
set -euo pipefail

readonly GUEST=debian-6.1-cloud-amd64-stress
readonly SECONDS_OF_STRESS=120 LIMIT=900

[ $# = 1 ] || { echo "usage: stress.sh VIREO" >&2 && exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${VIREO_GUEST_CACHE:-$here/guests/cache}/$GUEST
"$here/scripts/install-deps.sh" demo
"$here/guests/build.sh" "$GUEST"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
timeout --foreground "$LIMIT" "$1" run --kernel "$folder/vmlinuz" --initrd "$folder/initrd.img" \
    --memory 1G --cpus 4 --no-reboot --stats \
    --append "console=ttyS0 panic=-1 vireo.mode=stress vireo.seconds=$SECONDS_OF_STRESS" </dev/null |
    tr -d '\r' | tee "$log" || status=$?
complaints=$(grep -E 'WARNING:|BUG:|Oops|Call Trace|lockup|detected stall' "$log" || true)
if [ "$status" != 0 ] || ! grep -q '^VIREO-STRESS-OK$' "$log"; then
    echo "stress: FAILED (vireo exit code $status, 124 = no end within $LIMIT s)" >&2
    exit 1
fi
[ -z "$complaints" ] || { echo "stress: passed, but the kernel complains:"$'\n'"$complaints" >&2 && exit 1; }
echo "stress: ok, $SECONDS_OF_STRESS s of stress-ng --verify on 4 processors"
