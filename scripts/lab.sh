#!/usr/bin/env bash
# The KVM engine on a genuine /dev/kvm: the host lab (tests/lab) runs the engine comparison and boots
# stock guests with it, and their devices; with --brief less of it. The lab is emulated in software: times inside mean nothing.
set -euo pipefail

readonly LIMIT=900
# A boot takes some 20 s, a minute and a half on a slow and loaded machine. Should the lab host itself die all the same
# (tests/lab/README.md says how), that says nothing about Vireo and is tried again, loudly. Silence until the time is over is not:
# it may be a guest of ours that hangs.
readonly BOOT_LIMIT=400 ATTEMPTS=3
readonly GUEST=debian-6.12-cloud-amd64
# Of all but the brief run.
readonly MORE_GUESTS="debian-6.1-cloud-amd64 debian-6.1-cloud-amd64-net debian-6.1-686" DISK_GUEST=debian-6.1-cloud-amd64-disk
readonly SERVICES_GUEST=debian-6.1-cloud-amd64-services

brief=''
[ "${1:-}" != --brief ] || { brief=yes && shift; }
[ $# = 1 ] || { echo "usage: lab.sh [--brief] VIREO" >&2 && exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VIREO_GUEST_CACHE:-$here/guests/cache}
vireo=$1
testkit=$(dirname "$vireo")/vireo-testkit
picture=$(dirname "$vireo")/vireo-picture
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Runs a command in the lab and leaves its output in $work/out. A failure shows it and ends the script.
in_lab() { # TITLE EXIT-CODE PATTERN PROGRAM [LAB-OPTION…] -- COMMAND…
    local title=$1 code=$2 pattern=$3 status=0 start=$SECONDS
    shift 3
    for attempt in $(seq "$ATTEMPTS"); do
        status=0
        "$here/tests/lab/run.sh" "$@" >"$work/out" 2>&1 || status=$?
        tr -d '\r' <"$work/out" >"$work/text"
        # 124: time over; 125: the lab host ended before the command did.
        [ "$status" = 125 ] || break
        [ "$attempt" = "$ATTEMPTS" ] || printf 'lab: THE LAB HOST DIED, attempt %s of %s: %s\n' "$attempt" "$ATTEMPTS" "$title"
    done
    if [ "$status" != "$code" ] || ! grep -qE -- "$pattern" "$work/text"; then
        tail -n 60 "$work/text" >&2
        echo "lab: FAILED: $title (exit code $status, expected $code and /$pattern/)" >&2
        exit 1
    fi
    printf 'lab: %-58s ok  %3d s\n' "$title" $((SECONDS - start))
}

files_of() { # GUEST [FOLDER]
    printf -- '--file\n%s\n' "$cache/$1/vmlinuz:${2:-/guest}/vmlinuz" "$cache/$1/initrd.img:${2:-/guest}/initrd.img"
}

# What scripts in the lab need besides guests.
script() { # NAME
    printf -- '--file\n%s\n' "$here/tests/lab/$1:/bin/$1" "$here/tests/lab/machine.sh:/bin/machine.sh" "$picture:/bin/vireo-picture"
}

# Boots a guest under KVM, with so many processors and this of Hyper-V's interface.
boot() { # GUEST CPUS ENLIGHTENMENTS
    local -a files
    local clock=
    # Who has the interface keeps time by it.
    [ "$3" = none ] || clock=hyperv_clocksource_tsc_page
    mapfile -t files < <(files_of "$1")
    in_lab "$1 under KVM, $2 CPU(s), $3" 0 "^VIREO-BOOT-OK .* cpus=$2 .* clock=$clock" \
        "$vireo" "${files[@]}" --timeout "$BOOT_LIMIT" -- \
        vireo run --engine kvm --enlightenments "$3" --cpus "$2" --memory 512M --no-reboot --stats \
        --kernel /guest/vmlinuz --initrd /guest/initrd.img \
        --append "console=ttyS0 panic=-1 vireo.mode=boot"
    if grep -E 'WARNING:|BUG:|Oops|Call Trace|lockup|detected stall|unchecked MSR' "$work/text" >&2; then
        echo "lab: FAILED: the kernel of $1 complains" >&2
        exit 1
    fi
}

# The guest resets on each boot: two boots prove that a reset works.
reset_twice() { # GUEST
    local -a files
    mapfile -t files < <(files_of "$1")
    # shellcheck disable=SC2016 # expanded in the lab
    in_lab "$1 starts again after a reset" 0 'two boots' \
        "$vireo" "${files[@]}" --timeout "$BOOT_LIMIT" -- sh -c '
            vireo run --engine kvm --memory 512M --kernel /guest/vmlinuz --initrd /guest/initrd.img \
                --append "console=ttyS0 panic=-1 quiet vireo.mode=reboot" >/tmp/log 2>&1 & pid=$!
            while kill -0 $pid 2>/dev/null; do
                [ $(grep -c VIREO-REBOOT /tmp/log) -lt 2 ] || { echo "two boots"; kill $pid; exit 0; }
                sleep 1
            done
            cat /tmp/log; exit 1'
}

# A guest's root and another disk on VMBus, virtio and IDE.
disks() {
    local -a files
    mapfile -t files < <(files_of "$DISK_GUEST")
    in_lab "VMBus, virtio and IDE disks under KVM, 2 CPUs" 0 '^disks: all ok' \
        "$vireo" "${files[@]}" --file "$work/root.vhdx:/guest/root.vhdx" --file "$here/tests/lab/disks.sh:/bin/disks.sh" \
        --timeout "$LIMIT" -- sh /bin/disks.sh
}

# Adapters on every network.
network() {
    local -a files
    mapfile -t files < <(files_of debian-6.1-cloud-amd64-net && files_of debian-6.1-686 /guest-686 && script network.sh)
    in_lab "network adapters, NAT, switch under KVM, 2 CPUs" 0 '^network: all ok' "$vireo" "${files[@]}" \
        --timeout "$LIMIT" -- sh /bin/network.sh
}

# Integration services, screen and keyboard.
services() {
    local -a files
    mapfile -t files < <(files_of "$SERVICES_GUEST" && script services.sh)
    "$vireo" disk convert "$cache/$SERVICES_GUEST/root.img" "$work/services.vhdx" >/dev/null
    in_lab "services, memory, screen and keyboard under KVM, 2 CPUs" 0 '^services: all ok' \
        "$vireo" "${files[@]}" --file "$work/services.vhdx:/guest/root.vhdx" --timeout "$LIMIT" -- sh /bin/services.sh
}

"$here/scripts/install-deps.sh" test
(cd "$here" && cargo build --release --quiet -p vireo-testkit)
"$here/guests/build.sh" "$GUEST" >/dev/null

in_lab "vireo host info: KVM is there and chosen" 0 '^engine kvm +usable, chosen' \
    "$vireo" --timeout "$LIMIT" -- vireo host info
in_lab "engine tests: KVM with all and with least, software" 0 ' [1-9][0-9]* passed, 0 failed' \
    "$testkit" --timeout "$LIMIT" -- vireo-testkit
grep -E '^SKIPPED| passed, ' "$work/text" | sed 's/^/lab:   /'
boot "$GUEST" 2 hyperv-1
if [ -n "$brief" ]; then
    echo "lab: NOT RUN, for it was asked to be brief: a boot without enlightenments, resets, disks, networks, services under KVM (make lab)"
    exit 0
fi
(cd "$here" && cargo build --release --quiet -p vireo-tests)
# shellcheck disable=SC2086 # names are words
"$here/guests/build.sh" $MORE_GUESTS "$DISK_GUEST" "$SERVICES_GUEST" >/dev/null
"$vireo" disk convert "$cache/$DISK_GUEST/root.img" "$work/root.vhdx" >/dev/null
boot debian-6.1-cloud-amd64 2 none
reset_twice debian-6.1-cloud-amd64
disks
network
services
echo "lab: all ok"
