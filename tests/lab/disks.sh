#!/bin/sh
# In the lab: boots a guest from /guest/root.vhdx on KVM and gives it a disk, takes it away and gives it back. What the
# guest prints goes to standard output. Argument: number of processors.
control=/tmp/control log=/tmp/log disk=/tmp/hot.img

fail() {
    cat "$log"
    echo "disks: $*"
    exit 1
}

# Waits until the guest has printed it.
wait_for() { # TEXT
    until grep -q -- "$1" "$log"; do
        kill -0 "$vireo" 2>/dev/null || fail "vireo ended before: $1"
        sleep 1
    done
}

truncate -s 64M "$disk"
mkfifo /tmp/keyboard
vireo run --engine kvm --cpus "$1" --memory 512M --no-reboot --stats --control "$control" \
    --kernel /guest/vmlinuz --initrd /guest/initrd.img --disk /guest/root.vhdx \
    --append "console=ttyS0 panic=-1 root=LABEL=vireo-root vireo.run=hotplug" </tmp/keyboard >"$log" 2>&1 &
vireo=$!
exec 3>/tmp/keyboard

wait_for 'hotplug ready'
vireo vm disk add --control "$control" "$disk" || fail "the disk was not added"
wait_for 'written ok'
name=$(vireo vm disk list --control "$control" | awk -v file="$disk" 'index($0, file) { print $1 }')
vireo vm disk remove --control "$control" "$name" || fail "the disk $name was not removed"
wait_for 'hotplug - '
vireo vm disk add --control "$control" "$disk" || fail "the disk was not added again"
wait_for 'kept ok'
echo stop >&3
wait "$vireo" || fail "vireo ended with $?"
cat "$log"
