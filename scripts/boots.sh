#!/usr/bin/env bash
# Boots each guest, or each one named, N times in a row with 1, 2 and 4 processors, or with each number in $CPUS.
# Prints counts and times; keeps the log of each failure in target/boots.
set -euo pipefail
export LC_ALL=C

# Far beyond what a boot takes.
readonly LIMIT=240
readonly ALL="debian-5.10-cloud-amd64 debian-6.1-cloud-amd64 debian-6.12-cloud-amd64 debian-6.1-686 debian-6.1-686-pae"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VIREO_GUEST_CACHE:-$here/guests/cache}
logs=$here/target/boots

# Boots once; the console goes to LOG. Prints the time in milliseconds.
boot() { # GUEST CPUS LOG
    local start end status=0
    start=$(date +%s%N)
    timeout "$LIMIT" "$vireo" run --kernel "$cache/$1/vmlinuz" --initrd "$cache/$1/initrd.img" \
        --memory 512M --cpus "$2" --append "console=ttyS0 panic=-1 vireo.mode=boot" --no-reboot --stats \
        </dev/null >"$3" 2>&1 || status=$?
    end=$(date +%s%N)
    if [ "$status" != 0 ] || ! grep -q "^VIREO-BOOT-OK .* cpus=$2 " "$3"; then
        echo "exit code $status" >>"$3"
        return 1
    fi
    echo $(((end - start) / 1000000))
}

series() { # GUEST CPUS
    local i time failed=0 log
    local -a times=()
    for ((i = 1; i <= count; i++)); do
        log=$logs/$1-$2cpu-$i.log
        if time=$(boot "$1" "$2" "$log"); then
            times+=("$time")
            rm "$log"
        else
            failed=$((failed + 1))
            echo "$1 with $2 CPU(s), boot $i failed: $log" >&2
        fi
    done
    failures=$((failures + failed))
    printf '%-26s %5d %7d %8d' "$1" "$2" "$count" "$failed"
    [ ${#times[@]} = 0 ] || printf '%s\n' "${times[@]}" | sort -n | awk '
        { t[NR] = $1 / 1000 }
        END { printf " %8.1f %8.1f %8.1f", t[1], t[int((NR + 1) / 2)], t[NR] }'
    echo
}

if [ $# -lt 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: boots.sh VIREO N [GUEST…]" >&2
    exit 2
fi
vireo=$1 count=$2 failures=0
shift 2
# shellcheck disable=SC2086 # names are words
[ $# != 0 ] || set -- $ALL
"$here/scripts/install-deps.sh" demo
"$here/guests/build.sh" "$@" >/dev/null
mkdir -p "$logs"
printf '%-26s %5s %7s %8s %8s %8s %8s\n' guest CPUs boots failed "min s" "median s" "max s"
for guest in "$@"; do
    # This kernel knows one processor.
    if [[ $guest == *-686 ]]; then some=1; else some="1 2 4"; fi
    for cpus in ${CPUS:-$some}; do series "$guest" "$cpus"; done
done
[ "$failures" = 0 ] || { echo "boots: $failures failed; logs are in $logs" >&2 && exit 1; }
