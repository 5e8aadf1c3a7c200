# Sourced, not run, after parameters.sh. Disks by their name or serial number.
# shellcheck shell=sh

# Prints the serial number of a disk, without blanks around it: virtio's, or SCSI's vital product data page 80h.
disk_serial() { # NAME
    if [ -e "/sys/block/$1/serial" ]; then
        cat "/sys/block/$1/serial"
    elif [ -e "/sys/block/$1/device/vpd_pg80" ]; then
        tail -c +5 "/sys/block/$1/device/vpd_pg80" 2>/dev/null | tr -d '\0' | sed 's/^ *//; s/ *$//'
    fi
}

# Prints the size of a disk in bytes, 0 when it is gone.
disk_bytes() { # NAME
    _sectors=0
    read -r _sectors 2>/dev/null <"/sys/block/$1/size"
    echo $((_sectors * 512))
}

# Prints the names of all disks: no loop devices, RAM disks, floppies and CDs.
disks() {
    for _block in /sys/block/*; do
        case ${_block##*/} in loop* | ram* | fd* | sr* | zram* | '*') ;; *) echo "${_block##*/}" ;; esac
    done
}

# Prints the name of the disk that the root file system is on.
root_disk() {
    _device=$(sed -n 's|^/dev/\([^ ]*\) / ext4 .*|\1|p' /proc/mounts)
    _path=$(readlink -f "/sys/class/block/$_device")
    if [ -e "$_path/partition" ]; then _path=${_path%/*}; fi
    echo "${_path##*/}"
}

# Prints the path of the disk that vireo.disk= names by path or serial number, waiting for it up to 30 s.
wanted_disk() {
    _wanted=$(parameter disk)
    [ -n "$_wanted" ] || return 1
    _deadline=$(($(uptime_seconds) + 30))
    while [ "$(uptime_seconds)" -lt "$_deadline" ]; do
        if [ -b "$_wanted" ]; then
            echo "$_wanted"
            return
        fi
        for _name in $(disks); do
            if [ "$(disk_serial "$_name")" = "$_wanted" ]; then
                echo "/dev/$_name"
                return
            fi
        done
        sleep 0.2
    done
    echo "vireo: no disk $_wanted after 30 s; there are $(disks | tr '\n' ' ')" >&2
    return 1
}

# Forgets what is cached, so that the next read is one of the disk.
drop_caches() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}
