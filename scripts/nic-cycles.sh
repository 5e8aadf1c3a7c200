#!/usr/bin/env bash
# Adds a network adapter and takes it away N times, with traffic on it, while its neighbour is at work. Each time it has to come
# up, carry a payload there and back, and be busy both ways when it is taken away (program `cycles` of the guest); the neighbour
# has payloads sent there and back all the time. Both are ports of a switch, each in a VLAN of its own, with another guest as
# their peer. Ends at the first failure; prints counts.
set -euo pipefail
export LC_ALL=C

readonly LIMIT=60 # seconds: far beyond what a step takes
readonly ADDRESS=00:15:5d:00:00:09

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$here/target/nic-cycles

die() {
    echo "nic-cycles: cycle $n: $*; see $work" >&2
    tail -n 25 guest.log | sed 's/^/    /' >&2
    exit 1
}

# Waits until a console has a line that matches.
wait_for() { # LOG PATTERN
    local deadline=$((SECONDS + LIMIT))
    until grep -aqE "$2" "$1"; do
        ! grep -aq '^cycles: .*FAILED' guest.log || die "$(grep -a '^cycles: .*FAILED' guest.log)"
        [ "$(jobs -pr | wc -l)" = 2 ] || die "a machine has ended"
        [ "$SECONDS" -lt "$deadline" ] || die "no '$2' in $LIMIT s"
        sleep 0.05
    done
}

machine() { # NAME NIC…: its console is NAME.keys and NAME.log
    local name=$1 nic
    local -a nics=()
    shift
    for nic in "$@"; do nics+=(--nic "$nic"); done
    mkfifo "$name.keys"
    "$vireo" run --kernel "$folder/vmlinuz" --initrd "$folder/initrd.img" --no-reboot --cpus 2 --control "$name.control" \
        --append "console=ttyS0 panic=-1 quiet" "${nics[@]}" <>"$name.keys" >"$name.log" 2>"$name.errors" &
    pids+=($!)
}

# The shell loses what comes while it sets its terminal, after the prompt: blanks first.
shell() { # NAME COMMAND
    wait_for "$1.log" '^/ # '
    printf '%32s%s\n' '' "$2" >"$1.keys"
}

cycle() {
    local nic
    # Its name comes first in its line.
    nic=$("$vireo" vm nic add --control guest.control "switch=lab,vlan=8,mac=$ADDRESS" | awk 'END { print $1 }')
    wait_for guest.log "^cycles: $n busy"
    "$vireo" vm nic remove --control guest.control "$nic"
    wait_for guest.log "^cycles: $n gone"
}

finish() {
    local status=$?
    kill -KILL "${pids[@]}" 2>/dev/null || true
    "$vireo" switch delete lab 2>/dev/null || true
    exit "$status"
}

if [ $# -lt 2 ] || [ $# -gt 3 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: nic-cycles.sh VIREO N [GUEST]" >&2
    exit 2
fi
vireo=$(realpath "$1") count=$2 guest=${3:-debian-6.1-cloud-amd64-net} n=0 pids=()
folder=${VIREO_GUEST_CACHE:-$here/guests/cache}/$guest
"$here/scripts/install-deps.sh" demo
"$here/guests/build.sh" "$guest" >/dev/null
rm -rf "$work"
mkdir -p "$work"
cd "$work"
export VIREO_FOLDER=$work
trap finish EXIT
"$vireo" switch create lab
machine peer switch=lab,mac=00:15:5d:00:00:01 switch=lab,vlan=8,mac=00:15:5d:00:00:08
machine guest switch=lab,mac=00:15:5d:00:00:02
shell peer 'cycles peer 00:15:5d:00:00:08'
shell guest "cycles $count $ADDRESS; exit"
for ((n = 1; n <= count; n++)); do
    cycle
    [ $((n % 10)) != 0 ] || echo "after $n of $count, $SECONDS s"
done
wait_for guest.log '^cycles: done'
grep -aq '^cycles: done.*complaints: 0' guest.log || die "$(grep -a '^cycles: done' guest.log)"
timeout "$LIMIT" tail --pid="${pids[1]}" -f /dev/null || die "the guest does not switch itself off"
wait "${pids[1]}" || die "vireo ended with exit code $?: $(tail -n1 guest.errors)"
[ ! -s guest.errors ] || die "vireo said: $(tail -n1 guest.errors)"
[ ! -s peer.errors ] || die "the peer's vireo said: $(tail -n1 peer.errors)"
echo "nic-cycles: $count adapters of $guest added, tried, and taken away while busy, none failed;$(
    sed -n 's/^cycles: done,\(.* neighbour\).*/\1/p' guest.log), none failed; $SECONDS s"
kill -KILL "${pids[0]}"
"$vireo" switch delete lab
trap - EXIT
cd /
rm -rf "$work"
