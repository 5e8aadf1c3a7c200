#!/usr/bin/env bash
# Boots a guest with 1 processor while interpreter and translator are compared, and prints what was compared: each
# translation alone, then chains of translations. Fails at the first difference, and shows it; also if one
# did not show again, unless a device wrote to RAM in between.
set -euo pipefail
export LC_ALL=C

# Far beyond what a boot takes with every translation compared.
readonly LIMIT=1800

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VIREO_GUEST_CACHE:-$here/guests/cache}

compare() { # WHAT END APPEND
    local log status=0 began=$SECONDS
    log=$(mktemp)
    VIREO_TRANSLATOR=$1 timeout "$LIMIT" "$vireo" run --engine soft --kernel "$cache/$guest/vmlinuz" \
        --initrd "$cache/$guest/initrd.img" --memory 512M --cpus 1 --no-reboot \
        --append "console=ttyS0 panic=-1 $3" </dev/null >"$log" 2>&1 || status=$?
    if [ "$status" != 0 ] || ! grep -q "^$2" "$log" ||
        ! grep -q '^lock step: [1-9][0-9]* compared.*, 0 differed once$' "$log"; then
        tail -n 200 "$log"
        echo "lock step of $guest, $1: FAILED (vireo exit code $status, 124 = no end within $LIMIT s)" >&2
        exit 1
    fi
    echo "$guest, $1, $((SECONDS - began)) s:"
    grep '^lock step: ' "$log"
    rm "$log"
}

if [ $# -lt 3 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: lockstep.sh VIREO N GUEST…   compares one of N runs" >&2
    exit 2
fi
vireo=$1 n=$2
shift 2
"$here/guests/build.sh" "$@" >/dev/null
for guest; do
    # A guest of small programs runs each for as short a time as it can.
    case $guest in
    *-bench) end=VIREO-BENCH-END append="vireo.mode=bench vireo.args=1" ;;
    *) end=VIREO-BOOT-OK append="vireo.mode=boot" ;;
    esac
    compare "lockstep:$n" "$end" "$append"
    # A chain is some thirty translations.
    compare "lockstep-chains:$(((n + 9) / 10))" "$end" "$append"
done
