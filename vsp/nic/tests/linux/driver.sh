#!/bin/sh
# First process of the guest that tries a network card with Linux's own driver, against the host. Lines that start with NET- are for
# the test, which says by net.rounds= how often to send everything there and back.
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
export PATH=/bin

fail() {
    echo "NET-FAILED $*"
    dmesg | tail -n 40
    ip -s addr
    poweroff -f
}

rounds=1 mtu=
for word in $(cat /proc/cmdline); do
    case $word in
        net.rounds=*) rounds=${word#*=} ;;
        net.mtu=*) mtu=${word#*=} ;;
    esac
done
for group in virtio nic; do
    [ ! -e /lib/modules/$group.load ] || while read -r module; do
        [ -d "/sys/module/${module%.ko}" ] || insmod "/lib/modules/$module" || fail "insmod $module"
    done </lib/modules/$group.load
done
for _ in $(seq 100); do
    [ -d /sys/class/net/eth0 ] && break
    sleep 0.1
done
read -r address </sys/class/net/eth0/address
# A card that does not know the network's is told it.
[ -z "$mtu" ] || ip link set eth0 mtu "$mtu" || fail "mtu"
read -r mtu </sys/class/net/eth0/mtu
ip addr add 10.9.8.2/24 dev eth0
ip link set lo up
ip link set eth0 up || fail "up"
for _ in $(seq 100); do
    [ "$(cat /sys/class/net/eth0/carrier)" = 1 ] && break
    sleep 0.1
done
driver=$(readlink /sys/class/net/eth0/device/driver)
echo "NET-CARD ${driver##*/} $address mtu=$mtu carrier=$(cat /sys/class/net/eth0/carrier) speed=$(cat /sys/class/net/eth0/speed)" \
    "queues=$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
ping -c 3 -s 1000 10.9.8.1 || fail "ping"
ping -c 2 -s 20000 10.9.8.1 || fail "a long ping"

echo "NET-BUSY"
for round in $(seq "$rounds"); do
    nc 10.9.8.1 7001 >/tmp/data </dev/null || fail "receive $round"
    nc 10.9.8.1 7002 </tmp/data >/dev/null || fail "send $round"
done
echo "NET-ERRORS $(cat /sys/class/net/eth0/statistics/rx_errors) $(cat /sys/class/net/eth0/statistics/tx_errors)" \
    "$(awk '/^Tcp:/ { n++; if (n == 2) print $13, $14, $16 }' /proc/net/snmp)"
grep -E 'eth0|virtio' /proc/interrupts
ip link set eth0 down
ip link set eth0 up
for _ in $(seq 20); do ping -c 1 -W 1 10.9.8.1 >/dev/null && break; done || fail "up again"
dmesg | grep -iE 'eth0|e1000|virtio_net|nobody cared|WARNING|hang' | head -n 30
echo "NET-OK"
stty -F /dev/console opost
poweroff -f
