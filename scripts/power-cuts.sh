#!/usr/bin/env bash
# Cuts the power of machines while their guests write, and looks at what is left: N times, in turn on VHDX, VHD and a
# differencing chain of three. vireo is killed (SIGKILL) at a random moment while the guest test `crash` writes records
# to the disk, and acknowledges each that fsync has brought there. Then `vireo disk check` looks at the image and its
# parents, `qemu-img check` too where it can (VHDX). The next boot with that disk looks first (`crash-check`) for each
# acknowledged record, and at ext4 after its journal. A disk goes through ten cuts, then comes a new one of its kind.
# Prints counts; keeps in target/power-cuts what belongs to a failure.
set -euo pipefail
export LC_ALL=C

readonly GUEST=debian-6.1-cloud-amd64-disk
readonly KINDS=(vhdx vhd chain)
# Seconds: far beyond what a boot takes; the longest that a guest may write before the cut.
readonly LIMIT=240 WRITES=5

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${VIREO_GUEST_CACHE:-$here/guests/cache}/$GUEST
work=${VIREO_WORK:-$here/target}/power-cuts

# Starts the guest with a root disk of its own and the disk under test; its console goes to log, and comes from
# descriptor 3.
start() { # LOG
    rm -f root.vhdx
    "$vireo" disk create root.vhdx --parent base.vhdx
    serial=$("$vireo" disk info "$image" -o json | sed -n 's/.*"id": "\(.*\)".*/\1/p' | tr -d -)
    # Now, not by the process that comes: the last boot's lines must not be found.
    : >"$1"
    "$vireo" run --kernel "$folder/vmlinuz" --initrd "$folder/initrd.img" --no-reboot --append \
        "console=ttyS0 panic=-1 root=LABEL=vireo-root vireo.disk=$serial vireo.acknowledged=${acknowledged[$kind]}" \
        --disk root.vhdx --disk "$image" <console >>"$1" 2>&1 &
    pid=$!
    wait_for "$1" '^/ # '
}

stop() {
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    pid=''
}

# Waits for a line of the console that matches; ends the machine and says so when it does not come.
wait_for() { # LOG PATTERN
    local deadline=$((SECONDS + LIMIT))
    until grep -aqE "$2" "$1"; do
        if ! kill -0 "$pid" 2>/dev/null || [ "$SECONDS" -gt "$deadline" ]; then
            stop
            echo "no line '$2'" && return 1
        fi
        sleep 0.05
    done
}

# Makes a new disk of a kind; a child has its grandparent's and its parent's content below its own.
make_disk() { # KIND
    rm -f "$1".* "$1"-*
    case $1 in
        chain)
            "$vireo" disk create chain-base.vhdx --size 256M
            "$vireo" disk create chain-middle.vhdx --parent chain-base.vhdx
            image=chain-middle.vhdx
            # Something to be kept in a parent.
            acknowledged[chain]=0
            cut && look
            "$vireo" disk create chain.vhdx --parent chain-middle.vhdx
            image=chain.vhdx
            ;;
        *)
            image=$1.$1
            "$vireo" disk create "$image" --size 256M
            acknowledged[$1]=0
            ;;
    esac
}

# The last number in a log that the guest printed in a whole line.
last_acknowledged() { # LOG
    tr -d '\r' <"$1" | sed -n '$!s/^vireo: crash acknowledged \([0-9]*\)$/\1/p' | tail -n1
}

# Boots, and looks for what earlier cuts must have left.
check_records() {
    local line
    start cut.log || return
    # The shell loses what comes while it sets its terminal: blanks first.
    echo '                                /vireo/tests/crash-check' >&3
    wait_for cut.log '^vireo: crash-check records=.*(ok|FAILED)' || return
    line=$(tr -d '\r' <cut.log | grep -a '^vireo: crash-check records=')
    [[ $line == *" consistent=yes ok" ]] || { stop && echo "$line" && return 1; }
    checked=$((checked + 1)) records=$((records + ${acknowledged[$kind]}))
}

# The same; then lets the guest write for a random time, from its first record on, and kills the machine.
cut() {
    local last
    check_records || return
    echo '                                /vireo/tests/crash' >&3
    wait_for cut.log '^vireo: crash writes to ' || return
    sleep "$((RANDOM % WRITES)).$((RANDOM % 1000))"
    stop
    last=$(last_acknowledged cut.log)
    acknowledged[$kind]=${last:-${acknowledged[$kind]}}
}

# What is left must open and be sound.
look() {
    "$vireo" disk check "$image" >check.log 2>&1 || { echo "vireo disk check: $(tail -n1 check.log)" && return 1; }
    # It knows no chains, and of VHD nothing. It replays the log, in a copy.
    [ "$kind" = vhdx ] || return 0
    cp --sparse=always "$image" copy.vhdx
    if ! qemu-img check -q -f vhdx copy.vhdx >qemu.log 2>&1; then
        replays=$((replays + 1))
        qemu-img check -q -r all -f vhdx copy.vhdx >qemu.log 2>&1 ||
            { echo "qemu-img check: $(tail -n1 qemu.log)" && return 1; }
    fi
    rm copy.vhdx
}

fail() {
    failed[$kind]=$((failed[$kind] + 1)) failures=$((failures + 1))
    mkdir -p "failed-$failures" && cp --sparse=always "$kind"[.-]* ./*.log why "failed-$failures"
    echo "cut ${cuts[$kind]} on $kind: $(cat why); see $work/failed-$failures" >&2
}

image_of() {
    if [ "$kind" = vhd ]; then echo vhd.vhd; else echo "$kind.vhdx"; fi
}

summary() {
    local k
    for k in "${KINDS[@]}"; do
        printf '%-6s %4d cuts, %d failed\n' "$k" "${cuts[$k]}" "${failed[$k]}"
    done
    echo "power-cuts: $checked times $records records in all looked for and found; $replays VHDX had a log to replay"
}

if [ $# != 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: power-cuts.sh VIREO N" >&2
    exit 2
fi
vireo=$(realpath "$1") count=$2 records=0 checked=0 replays=0 failures=0 pid=''
"$here/scripts/install-deps.sh" test
"$here/guests/build.sh" "$GUEST" >/dev/null
rm -rf "$work"
mkdir -p "$work"
cd "$work"
trap '[ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true' EXIT
mkfifo console
exec 3<>console
"$vireo" disk convert "$folder/root.img" base.vhdx
declare -A cuts failed acknowledged
for kind in "${KINDS[@]}"; do cuts[$kind]=0 failed[$kind]=0; done
for ((n = 0; n < count; n++)); do
    kind=${KINDS[n % ${#KINDS[@]}]}
    # The last cut of a disk is looked at before it goes.
    if [ $((cuts[$kind] % 10)) = 0 ]; then
        if [ "${cuts[$kind]}" != 0 ]; then
            image=$(image_of) && { check_records >why || fail; }
            stop
        fi
        make_disk "$kind" || { echo "no new $kind" >&2 && exit 1; }
    fi
    image=$(image_of)
    cuts[$kind]=$((cuts[$kind] + 1))
    if ! { cut && look; } >why; then
        fail
        make_disk "$kind" || { echo "no new $kind" >&2 && exit 1; }
    fi
    [ $(((n + 1) % 10)) != 0 ] || { echo "after $((n + 1)) of $count:" && summary; }
done
for kind in "${KINDS[@]}"; do
    [ "${cuts[$kind]}" != 0 ] || continue
    image=$(image_of)
    check_records >why || fail
    stop
done
summary
[ "$failures" = 0 ] || { echo "power-cuts: $failures FAILED" >&2 && exit 1; }
rm -rf "$work"
