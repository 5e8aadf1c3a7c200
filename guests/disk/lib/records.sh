# Sourced, not run, after disks.sh. The file of numbered records that crash writes and crash-check reads.
# shellcheck shell=sh disable=SC2034 # the constants are for the tests that source this

readonly RECORDS=/mnt/crash/records
readonly RECORD_LINES=64

# Prints a record: 4096 bytes, its number in each line of 64.
record() { # NUMBER
    _block=$(printf 'record %-56s' "$1")
    for _ in 1 2 3 4 5 6; do
        _block="$_block
$_block"
    done
    echo "$_block"
}

# Prints how many records there are, whole and in order, from the first on.
whole_records() {
    awk -v lines="$RECORD_LINES" '
        BEGIN { count = 0 }
        $1 != "record" || $2 != count + 1 || length($0) != 63 { exit }
        NR % lines == 0 { count++ }
        END { print count }' "$RECORDS"
}

# Mounts the disk vireo.disk=, or the root file system in its place, where the records are. Formats a disk that has no
# ext4. Sets device.
mount_records() {
    mkdir -p /mnt/crash
    if [ -z "$(parameter disk)" ]; then
        device=$(sed -n 's|^\([^ ]*\) / ext4 .*|\1|p' /proc/mounts)
        mkdir -p /vireo/crash
        mount -o bind /vireo/crash /mnt/crash
        return
    fi
    device=$(wanted_disk) || return
    if [ "$(blkid -s TYPE -o value "$device")" != ext4 ]; then
        mkfs.ext4 -q -F "$device" || return
    fi
    mount -t ext4 "$device" /mnt/crash
}
