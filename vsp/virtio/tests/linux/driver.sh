#!/bin/sh
# First process of the guest that tries the virtio devices with Linux's own drivers. Lines that start with VIRTIO- are for the test.
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
export PATH=/bin

fail() {
    echo "VIRTIO-FAILED $*"
    dmesg | tail -n 40
    poweroff -f
}

while read -r module; do
    insmod "/lib/modules/$module" || fail "insmod $module"
done </lib/modules/virtio.load
# Disks appear when their driver has asked them.
for _ in $(seq 100); do
    [ -b /dev/vdb ] && [ -c /dev/hvc0 ] && [ -c /dev/hwrng ] && break
    sleep 0.1
done
grep -i virtio /proc/interrupts
for device in /sys/bus/virtio/devices/*; do
    echo "VIRTIO-DEVICE $(cat "$device/device") features $(cat "$device/features")"
done

# The disk: what the host put there, what it says of itself.
echo "VIRTIO-HEAD $(head -c 16 /dev/vda)"
queue=/sys/block/vda/queue
echo "VIRTIO-DISK serial=$(cat /sys/block/vda/serial) sectors=$(cat /sys/block/vda/size)" \
    "queues=$(ls /sys/block/vda/mq | wc -l) discard=$(cat $queue/discard_max_bytes)" \
    "zeroes=$(cat $queue/write_zeroes_max_bytes) physical=$(cat $queue/physical_block_size) cache=$(cat $queue/write_cache)"
echo "VIRTIO-READ-ONLY $(cat /sys/block/vdb/ro) $(head -c 16 /dev/vdb)"
dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2>/dev/null && fail "a write to a read-only disk"

# Written, flushed, forgotten, read again; the host stops and moves the devices meanwhile.
echo "VIRTIO-BUSY"
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
for round in 1 2 3; do
    dd if=/tmp/data of=/dev/vda bs=96k seek=$((round * 128)) conv=fsync 2>/dev/null || fail "dd $round"
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/vda bs=96k skip=$((round * 128)) count=86 2>/dev/null | head -c 8388608 | cmp - /tmp/data || fail "cmp $round"
done
# Many small ones at once.
for job in 1 2 3 4; do
    dd if=/dev/vda of=/dev/null bs=4k count=2000 skip=$((job * 1000)) iflag=direct 2>/dev/null &
done
wait
printf 'written by Linux' | dd of=/dev/vda bs=512 seek=1 conv=fsync 2>/dev/null || fail "dd"
blkdiscard -o 1048576 -l 1048576 /dev/vda || fail "blkdiscard"
sync
echo "VIRTIO-IDLE"

# Random numbers.
echo "VIRTIO-RNG $(cat /sys/class/misc/hw_random/rng_current) $(head -c 256 /dev/hwrng | wc -c)"

# The console, both ways. It forgets its settings when nobody has it open.
exec 3<>/dev/hvc0
stty raw -echo <&3
echo "Linux says hello" >&3
seq 10000 >&3
echo "VIRTIO-TYPE"
read -r line <&3
echo "VIRTIO-TYPED $line"

# The disk grows while it is used.
echo "VIRTIO-GROW"
for _ in $(seq 100); do
    [ "$(cat /sys/block/vda/size)" = 131072 ] && break
    sleep 0.1
done
echo "VIRTIO-GREW $(cat /sys/block/vda/size)"

# Drivers go and come again: resets.
rmmod virtio_blk && insmod /lib/modules/virtio_blk.ko || fail "rmmod virtio_blk"
for _ in $(seq 100); do
    [ -b /dev/vda ] && break
    sleep 0.1
done
echo "VIRTIO-AGAIN $(dd if=/dev/vda bs=512 skip=1 count=1 2>/dev/null | head -c 16)"
dmesg | grep -iE 'virtio|vd[ab]:|hvc|irq.*nobody' | head -n 20
echo "VIRTIO-OK"
stty -F /dev/console opost
poweroff -f
