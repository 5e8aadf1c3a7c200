#!/usr/bin/env bash
# Adds and takes away a disk N times while fio checks its neighbour on the same SCSI controller: the guest formats and
# fills a disk that comes new, or checks what it has left on one that it knows (tests `hotplug` and `verify` of the guest,
# both at once). In turn a VHDX, a VHD and a raw disk; every tenth time, a new one. In the end each image must be sound,
# the neighbour too. Prints counts.
set -euo pipefail
export LC_ALL=C

readonly GUEST=debian-6.1-cloud-amd64-disk
readonly NAMES=(a.vhdx b.vhd c.img)
# Far beyond what a disk takes to come, be written and be read.
readonly LIMIT=120

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${VIREO_GUEST_CACHE:-$here/guests/cache}/$GUEST
work=$here/target/hotplug-cycles

die() {
    echo "hotplug-cycles: cycle $n: $*; see $work/log" >&2
    tail -n 15 log | sed 's/^/    /' >&2
    exit 1
}

# Waits until the console has so many lines that match.
wait_for() { # PATTERN TIMES
    local deadline=$((SECONDS + LIMIT))
    until [ "$(grep -acE "$1" log)" -ge "$2" ]; do
        kill -0 "$pid" 2>/dev/null || die "the machine has ended"
        [ "$SECONDS" -lt "$deadline" ] || die "no line '$1' number $2 in $LIMIT s"
        sleep 0.1
    done
}

vm() { # COMMAND ARGUMENT…
    local command=$1
    shift
    "$vireo" vm disk "$command" --control control "$@"
}

cycle() {
    local name=${NAMES[n % 3]} what=kept place
    if [ $((n / 3 % 10)) = 0 ]; then
        rm -f "$name"
        "$vireo" disk create "$name" --size 32M
        what=written
    fi
    # Its name comes first. It is not that of the disk that went last: the guest may not have let go of that yet.
    place=$(vm add "$name" | grep -om1 'scsi0:[0-9]*')
    wait_for '^vireo: hotplug \+ sd' $((n + 1))
    wait_for '^vireo: hotplug sd[a-z]* (kept|written) ' $((n + 1))
    tail -n 200 log | grep -aE '^vireo: hotplug sd' | tail -n1 | grep -q " $what ok" || die "not $what"
    vm remove "$place"
    wait_for '^vireo: hotplug - sd' $((n + 1))
}

# The images must be sound for us, and for others what they can tell: QEMU copies, e2fsck looks.
check_images() {
    local name format
    for name in "${NAMES[@]}" neighbour.vhdx root.vhdx; do
        "$vireo" disk check "$name" >check.log || die "$name: $(tail -n1 check.log)"
    done
    qemu-img check -q -f vhdx neighbour.vhdx || die "qemu-img check of the neighbour"
    for name in "${NAMES[@]:0:count}"; do
        case $name in *.vhdx) format=vhdx ;; *.vhd) format=vpc ;; *) format=raw ;; esac
        qemu-img convert -f "$format" -O raw "$name" copy.img
        e2fsck -f -n copy.img >check.log 2>&1 || die "e2fsck of $name: $(tail -n1 check.log)"
    done
}

if [ $# != 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: hotplug-cycles.sh VIREO N" >&2
    exit 2
fi
vireo=$(realpath "$1") count=$2 n=0
"$here/scripts/install-deps.sh" test
"$here/guests/build.sh" "$GUEST" >/dev/null
rm -rf "$work"
mkdir -p "$work"
cd "$work"
"$vireo" disk convert "$folder/root.img" root.vhdx
for name in "${NAMES[@]}"; do "$vireo" disk create "$name" --size 32M; done
"$vireo" disk create neighbour.vhdx --size 64M
serial=$("$vireo" disk info neighbour.vhdx -o json | sed -n 's/.*"id": "\(.*\)".*/\1/p')
mkfifo console
exec 3<>console
"$vireo" run --kernel "$folder/vmlinuz" --initrd "$folder/initrd.img" --cpus 2 --no-reboot --control control \
    --append "console=ttyS0 panic=-1 root=LABEL=vireo-root vireo.size=8 vireo.rounds=1000000 vireo.disk=${serial//-/}" \
    --disk root.vhdx --disk neighbour.vhdx <console >log 2>errors.log &
pid=$!
trap 'kill -KILL "$pid" 2>/dev/null || true' EXIT
wait_for '^/ # ' 1
echo '                                /vireo/tests/verify & /vireo/tests/hotplug; kill %1; poweroff' >&3
wait_for '^vireo: hotplug ready, disks: sda sdb' 1
for ((n = 0; n < count; n++)); do
    cycle
    [ $(((n + 1) % 10)) != 0 ] || echo "after $((n + 1)) of $count: $(grep -ac '^vireo: verify round=' log) rounds of the neighbour"
done
# The neighbour has been at work to the end, and is for another round.
rounds=$(grep -ac '^vireo: verify round=.* ok' log || true)
wait_for '^vireo: verify round=.* ok' $((rounds + 1))
echo stop >&3
wait_for '^vireo: hotplug events=' 1
grep -aq "^vireo: hotplug events=$((2 * count)) failures=0" log || die "the guest counts otherwise"
timeout "$LIMIT" tail --pid="$pid" -f /dev/null || die "the guest does not switch itself off"
wait "$pid" || die "vireo ended with exit code $?: $(tail -n1 errors.log)"
[ ! -s errors.log ] || die "vireo said: $(tail -n1 errors.log)"
! grep -aqE 'FAILED|WARNING:|BUG:|I/O error' log || die "$(grep -aE 'FAILED|WARNING:|BUG:|I/O error' log | head -n1)"
check_images
echo "hotplug-cycles: $count disks added, written or read, and taken away, none failed;" \
    "$(grep -ac '^vireo: verify round=.* ok' log) rounds of fio --verify on the neighbour, none failed; all images sound"
cd /
rm -rf "$work"
