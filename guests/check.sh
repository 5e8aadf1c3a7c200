#!/usr/bin/env bash
# Boots guests with a disk in QEMU and checks that they and their tests do what README.md says: that the tests pass on a
# machine whose disks are known to be good, and fail where they must. Not part of `make test`: minutes for each guest.
# shellcheck disable=SC2016,SC2046,SC2054 # the guest's shell expands; disk prints words; options have commas in them
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${VIREO_GUEST_CACHE:-$here/cache}
readonly GUESTS="debian-6.1-cloud-amd64 debian-5.10-cloud-amd64 debian-6.12-cloud-amd64 debian-6.1-686-pae"
readonly CHECKS="verify_virtio verify_ide verify_fails hotplug grow crash panic bench unmap shell no_root"
# Of anything that a guest is waited for.
readonly PATIENCE=${VIREO_CHECK_SECONDS:-300}

usage() {
    cat <<USAGE
usage: check.sh [--only CHECK]… [NAME…]
  NAME     guests, without "-disk"; all of them are: $GUESTS
  --only   one of: $CHECKS
USAGE
}

check_die() {
    echo "check: $guest: $check: $*" >&2
    tail -n 15 "$work/log" | sed 's/^/    /' >&2
    exit 1
}

# Starts the guest on a machine without disks, besides those of the QEMU options. Its console goes to log; what is
# written to descriptor 3 goes into the console, to 4 into the monitor.
start() { # APPEND QEMU-OPTION…
    local append=$1 folder=$CACHE/$guest-disk
    shift
    : >"$work/log"
    qemu-system-x86_64 -accel tcg -machine pc -m 512 -display none -nodefaults -no-reboot -serial stdio \
        -chardev "pipe,id=monitor,path=$work/monitor" -mon monitor \
        -kernel "$folder/vmlinuz" -initrd "$folder/initrd.img" -append "console=ttyS0 panic=-1 $append" \
        "$@" <"$work/console" >>"$work/log" 2>&1 &
    qemu=$!
}

# Waits until the console has a line that matches.
wait_for() { # PATTERN
    local deadline=$((SECONDS + PATIENCE))
    until grep -aqE "$1" "$work/log"; do
        kill -0 "$qemu" 2>/dev/null || grep -aqE "$1" "$work/log" || check_die "ended without a line '$1'"
        [ "$SECONDS" -lt "$deadline" ] || check_die "no line '$1' in $PATIENCE s"
        sleep 0.2
    done
}

# Waits until the machine is off.
wait_for_end() {
    local deadline=$((SECONDS + PATIENCE))
    while kill -0 "$qemu" 2>/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || check_die "does not end in $PATIENCE s"
        sleep 0.2
    done
    wait "$qemu" || check_die "QEMU failed"
}

finish() { # TEST EXIT-CODE
    wait_for "^vireo: $1 ended $2"
    wait_for_end
}

# Sets root_disk and root_disk_ide to the options for the root disk, which is never written to: each start has it new.
attach_root() {
    local drive=file=$CACHE/$guest-disk/root.img,format=raw,snapshot=on
    root_disk=(-drive "$drive,if=none,id=root" -device virtio-blk-pci,drive=root)
    root_disk_ide=(-drive "$drive,if=ide")
}

# Prints the options for a disk in the work folder, by virtio.
disk() { # FILE [DRIVE-OPTIONS]
    echo "-drive file=$work/$1,format=raw,if=none,id=$1${2:+,$2} -device virtio-blk-pci,drive=$1,serial=$1"
}

# Makes a blank disk in the work folder.
blank() { # FILE SIZE
    rm -f "$work/$1"
    truncate -s "$2" "$work/$1"
}

check_verify_virtio() {
    blank data 64M
    start "root=LABEL=vireo-root vireo.run=verify vireo.disk=data vireo.rounds=2" "${root_disk[@]}" $(disk data)
    wait_for '^vireo: root on /dev/vda1 '
    wait_for '^vireo: verify round=2 target=/dev/vdb .* ok'
    finish verify 0
}

check_verify_ide() {
    start "root=/dev/sda1 vireo.run=verify" "${root_disk_ide[@]}"
    wait_for '^vireo: root on /dev/sda1 '
    finish verify 0
}

# A disk that forgets: what verify is for.
check_verify_fails() {
    start "root=LABEL=vireo-root vireo.run=verify vireo.disk=/dev/vdb" "${root_disk[@]}" \
        -drive driver=null-co,size=64M,read-zeroes=on,if=none,id=data -device virtio-blk-pci,drive=data
    wait_for '^vireo: verify round=1 .* FAILED'
    finish verify 1
}

plug() { # FILE SERIAL
    echo "drive_add 0 if=none,id=$1,file=$work/$1,format=raw" >&4
    echo "device_add scsi-hd,id=disk-$1,drive=$1,serial=$2" >&4
}

check_hotplug() {
    blank one 32M
    blank two 48M
    start "root=LABEL=vireo-root vireo.run=hotplug" "${root_disk[@]}" -device virtio-scsi-pci
    wait_for '^vireo: hotplug ready, disks: vda'
    plug one SERIAL-1
    wait_for '^vireo: hotplug \+ sda bytes=33554432 serial=SERIAL-1'
    wait_for '^vireo: hotplug sda written ok'
    plug two SERIAL-2
    wait_for '^vireo: hotplug \+ sdb bytes=50331648 serial=SERIAL-2'
    wait_for '^vireo: hotplug sdb written ok'
    echo "device_del disk-one" >&4
    wait_for '^vireo: hotplug - sda'
    plug one SERIAL-3
    wait_for '^vireo: hotplug \+ sd. bytes=33554432 serial=SERIAL-3'
    wait_for '^vireo: hotplug sd. kept ok'
    echo stop >&3
    wait_for '^vireo: hotplug events=4 failures=0'
    finish hotplug 0
}

check_grow() {
    blank data 64M
    start "root=LABEL=vireo-root vireo.run=grow vireo.disk=data" "${root_disk[@]}" $(disk data)
    wait_for '^vireo: grow vdb bytes=67108864'
    echo "block_resize data 96M" >&4
    wait_for '^vireo: grow vdb bytes=100663296'
    echo stop >&3
    finish grow 0
}

# Kills the machine while it writes; what it had acknowledged must be there. Then asks for more than was written.
check_crash() {
    local acknowledged
    blank data 64M
    start "root=LABEL=vireo-root vireo.run=crash vireo.disk=data" "${root_disk[@]}" $(disk data cache=none)
    wait_for '^vireo: crash acknowledged 40'
    kill -KILL "$qemu"
    wait "$qemu" 2>/dev/null || true
    # The last line may be cut short.
    acknowledged=$(tr -d '\r' <"$work/log" | sed -n '$!s/^vireo: crash acknowledged //p' | tail -n1)
    start "root=LABEL=vireo-root vireo.run=crash-check vireo.disk=data vireo.acknowledged=$acknowledged" \
        "${root_disk[@]}" $(disk data)
    wait_for "^vireo: crash-check records=[0-9]* acknowledged=$acknowledged consistent=yes ok"
    finish crash-check 0
    start "root=LABEL=vireo-root vireo.run=crash-check vireo.disk=data vireo.acknowledged=100000" \
        "${root_disk[@]}" $(disk data)
    wait_for '^vireo: crash-check records=[0-9]* acknowledged=100000 consistent=yes FAILED'
    finish crash-check 1
}

check_panic() {
    start "root=LABEL=vireo-root vireo.run=panic" "${root_disk[@]}"
    wait_for 'Kernel panic'
    wait_for_end
}

check_bench() {
    blank data 64M
    local parameters="vireo.disk=data vireo.seconds=1 vireo.depths=1,4 vireo.kinds=randread,write"
    start "root=LABEL=vireo-root vireo.run=fio-bench $parameters" "${root_disk[@]}" $(disk data)
    finish fio-bench 0
    local line='^vireo: fio-bench kind=.* iops=[1-9][0-9]* .* lat_p99_us=[1-9][0-9]* .* error=0'
    [ "$(grep -acE "$line" "$work/log")" = 8 ] || check_die "not 8 lines of results"
}

check_unmap() {
    blank data 96M
    start "root=LABEL=vireo-root vireo.run=unmap vireo.disk=DATA-1" "${root_disk[@]}" -device virtio-scsi-pci \
        -drive "file=$work/data,format=raw,if=none,id=data,discard=unmap" -device scsi-hd,drive=data,serial=DATA-1
    wait_for '^vireo: unmap range reads as zeros'
    wait_for '^vireo: unmap fstrim bytes=[1-9]'
    finish unmap 0
}

# The programs that no test runs, and the power button.
check_shell() {
    blank data 64M
    start "root=LABEL=vireo-root" "${root_disk[@]}" -device virtio-scsi-pci \
        -drive "file=$work/data,format=raw,if=none,id=data" -device scsi-hd,drive=data,serial=SERIAL-1
    wait_for '^vireo: root on /dev/vda1 '
    wait_for '^/ # '
    echo 'cd /dev && sg_inq sda && sg_readcap -l sda && sg_vpd -p 0x80 sda && sg_luns sda && echo scsi-$((1 + 1))' >&3
    wait_for '^scsi-2'
    echo 'lsblk && sfdisk -d vda && hdparm -V && tune2fs -l vda1 && resize2fs -P vda1 && echo disk-$((1 + 1))' >&3
    wait_for '^disk-2'
    echo 'modprobe -a sg loop isofs vfat && ls /dev/sg0 && echo modules-$((1 + 1))' >&3
    wait_for '^modules-2'
    echo system_powerdown >&4
    wait_for '^vireo: powering off'
    wait_for_end
}

check_no_root() {
    start "root=LABEL=nowhere" "${root_disk[@]}"
    wait_for '^VIREO-ERROR no root=LABEL=nowhere after 30 s; block devices here: .*vda1'
    wait_for '^Welcome to Vireo'
    echo exit >&3
    wait_for_end
}

# Ends what is running and removes what was written.
clean_up() {
    [ -z "$qemu" ] || kill -KILL "$qemu" 2>/dev/null || true
    rm -rf "$work"
}

main() {
    local only=''
    while [ $# -gt 0 ]; do
        case $1 in
            --only) only+=" $2" && shift 2 ;;
            -h | --help) usage && return ;;
            -*) usage >&2 && exit 2 ;;
            *) break ;;
        esac
    done
    # shellcheck disable=SC2086 # names are words
    [ $# -gt 0 ] || set -- $GUESTS
    "$here/build.sh" "${@/%/-disk}"
    work=$(mktemp -d) qemu=''
    trap clean_up EXIT
    mkfifo "$work"/{console,monitor.in,monitor.out}
    # Opened for both directions, so that neither waits for the other end. Nobody reads what the monitor says.
    exec 3<>"$work/console" 4<>"$work/monitor.in"
    for guest in "$@"; do
        attach_root
        for check in ${only:-$CHECKS}; do
            local began=$SECONDS
            "check_$check"
            printf '%s: %s ok, %d s\n' "$guest" "$check" $((SECONDS - began))
        done
    done
}

main "$@"
