#!/bin/sh
# In the lab: boots a guest with two processors on KVM from /guest/root.vhdx, on VMBus, virtio and IDE in turn. On VMBus a
# disk comes, is written, goes and comes again; on virtio the root disk is written and verified; on IDE the guest panics.
# What the guests print goes to standard output.
readonly LOG=/tmp/log CONTROL=/tmp/control HOT=/tmp/hot.vhdx

fail() {
    cat "$LOG"
    echo "disks: $*"
    exit 1
}

# Starts a machine whose guest runs a test (guests/disk/tests).
start() { # BUS APPEND OPTION…
    bus=$1 append=$2
    shift 2
    echo "disks: root on $bus, $append"
    vireo run --engine kvm --cpus 2 --memory 512M --no-reboot --stats --kernel /guest/vmlinuz --initrd /guest/initrd.img \
        --disk "/guest/root.vhdx,bus=$bus" --append "console=ttyS0 panic=-1 quiet root=LABEL=vireo-root $append" \
        "$@" </tmp/keyboard >"$LOG" 2>&1 &
    vireo=$!
}

# Waits until the guest has printed it.
wait_for() { # TEXT
    echo "disks: waiting for: $1"
    until grep -q -- "$1" "$LOG"; do
        kill -0 "$vireo" 2>/dev/null || fail "vireo ended before: $1"
        sleep 0.5
    done
}

# The machine ends, with this exit code, and has said this.
ends() { # CODE TEXT…
    code=$1
    shift
    wait "$vireo"
    status=$?
    [ "$status" = "$code" ] || fail "vireo ended with $status, expected $code"
    for text in "$@"; do grep -q -- "$text" "$LOG" || fail "the machine did not say: $text"; done
    cat "$LOG"
}

change() { # COMMAND ARGUMENT…
    command=$1
    shift
    vireo vm disk "$command" --control "$CONTROL" "$@" || fail "disk $command $*"
}

hot_name() {
    vireo vm disk list --control "$CONTROL" | awk -v file="$HOT" 'index($0, file) { print $1 }'
}

mkfifo /tmp/keyboard
exec 3<>/tmp/keyboard
vireo disk create --size 64M "$HOT" || exit 1

start scsi "vireo.run=hotplug" --control "$CONTROL"
wait_for 'hotplug ready'
change add "$HOT"
wait_for 'written ok'
change remove "$(hot_name)"
wait_for 'hotplug - '
change add "$HOT"
wait_for 'kept ok'
echo stop >&3
ends 0 'root on /dev/sd' 'hotplug events=3 failures=0'

start virtio "vireo.run=verify vireo.size=4"
ends 0 'root on /dev/vd' 'verify rounds=1 ok'

start ide "vireo.run=panic"
ends 6 'root on /dev/sd' "vireo: the guest's kernel crashed" \
    'vireo: | .*Kernel panic - not syncing: sysrq triggered crash'
echo 'disks: all ok'
