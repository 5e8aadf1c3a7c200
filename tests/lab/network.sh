#!/bin/sh
# In the lab: network adapters of guests on KVM. Two guests with two processors, with synthetic adapters on a TAP device of this host,
# on a switch between them and on a private network, and a virtio one; then a guest with Intel's card of old. What passes is compared by
# checksum, with short packets and with long ones; an adapter comes and goes meanwhile.
# shellcheck source=SCRIPTDIR/machine.sh
. /bin/machine.sh
readonly CYCLES=10 MIB=2 FLOWS=4 WEB=/tmp/web
# Addresses of adapters end in the guest's number and these.
readonly ON_TAP=01 ON_SWITCH=02 ON_NAT=03 ON_VIRTIO=04 HOT=05

# Files in /tmp/web, served by this host, and their checksums.
make_payload() {
    mkdir -p "$WEB"
    for flow in $(seq $FLOWS); do head -c "$((MIB << 20))" /dev/urandom >"$WEB/f$flow"; done
    (cd "$WEB" && sha256sum f*) >/tmp/sums
    cp /tmp/sums "$WEB/sums"
    ip link set lo up
    httpd -p 80 -h "$WEB"
}

# A TAP device of this host, with an address.
make_tap() { # NAME NETWORK
    tunctl -t "$1" >/dev/null
    ip address add "$2.1/24" dev "$1"
    ip link set "$1" up
}

# Functions for the guest's shell, once it is there.
# shellcheck disable=SC2016 # expanded in the guest
teach() { # NAME
    wait_for "$1" "exit. powers the machine off"
    # Which adapter has this address: their names are chance.
    guest "$1" 'nic() { grep -l "$1" /sys/class/net/*/address | cut -d/ -f5; }'
    guest "$1" 'up() { ip link set $(nic $1) up && ip address add $2/24 dev $(nic $1); }'
    guest "$1" 'sent() { cat /sys/class/net/$(nic $1)/statistics/tx_packets; }'
    # All flows at once.
    guest "$1" 'get() { cd /tmp/got; rm -f *; for f in 1 2 3 4; do wget -q http://$1/f$f & done; wait; wget -q http://$1/sums && sha256sum -c sums >/dev/null; }'
    guest "$1" 'mkdir -p /tmp/got; httpd -h /tmp/got'
    guest "$1" 'echo "#!/bin/sh" >/tmp/dhcp; chmod +x /tmp/dhcp; echo '"'"'[ "$1" != bound ] || ip address add $ip/24 dev $interface'"'"' >>/tmp/dhcp'
    now "$1: the guest is there"
}

# All files come from what this address serves to the guest, and back to this host, all flows at once.
both_ways() { # NAME FROM GUEST'S-ADDRESS
    guest "$1" "get $2"
    rm -rf /tmp/back && mkdir /tmp/back
    (
        cd /tmp/back || exit 1
        for flow in $(seq $FLOWS); do wget -q "http://$3/f$flow" & done
        wait
        sha256sum -c /tmp/sums >/dev/null
    ) || fail "$1: what came back from $3 is not what was sent: $(ls -l /tmp/back)"
    now "$1: $FLOWS flows from $2 and back, the same"
}

# Both queues of an adapter have carried packets, each way.
by_both_queues() { # NAME ADDRESS
    guest "$1" "ethtool -S \$(nic $2) | sed -n 's/ *[rt]x_queue_[01]_packets: //p' | xargs"
    case " $(cat /tmp/said) " in
        *' 0 '*) fail "$1: a queue is idle: $(cat /tmp/said)" ;;
        ' '*' '*' '*' '*' ') now "$1: packets by queue: $(cat /tmp/said)" ;;
        *) fail "$1: no two queues: $(cat /tmp/said)" ;;
    esac
}

# A guest with an adapter on each network.
start_one() { # NAME NUMBER OPTION…
    _guest=$1 _number=$2
    shift 2
    make_tap "tap$_number" "10.9.$_number"
    start "$_guest" /guest quiet --memory 512M --nic "tap=tap$_number,mac=02:00:00:00:0$_number:$ON_TAP" \
        --nic "switch=lab,mac=02:00:00:00:0$_number:$ON_SWITCH" \
        --nic "nat,forward=tcp:127.0.0.1:808$_number:80,mac=02:00:00:00:0$_number:$ON_NAT" "$@"
}

over_tap() {
    guest a "up 01:$ON_TAP 10.9.1.2 && ping -c 3 -W 5 10.9.1.1"
    both_ways a 10.9.1.1 10.9.1.2
    by_both_queues a 01:$ON_TAP
    ip link set tap1 mtu 9000
    guest a "ip link set \$(nic 01:$ON_TAP) mtu 9000; before=\$(sent 01:$ON_TAP)"
    # One of 8900 bytes is one packet, not seven.
    guest a "ping -c 5 -W 5 -s 8900 10.9.1.1 && [ \$((\$(sent 01:$ON_TAP) - before)) -lt 20 ]"
    both_ways a 10.9.1.1 10.9.1.2
}

over_switch() {
    guest a "up 01:$ON_SWITCH 10.8.1.1"
    guest b "up 02:$ON_SWITCH 10.8.1.2 && ping -c 3 -W 5 10.8.1.1 && get 10.8.1.1"
    guest a "ip link set \$(nic 01:$ON_SWITCH) mtu 9000"
    guest b "ip link set \$(nic 02:$ON_SWITCH) mtu 9000; before=\$(sent 02:$ON_SWITCH)"
    guest b "ping -c 5 -W 5 -s 8900 10.8.1.1 && [ \$((\$(sent 02:$ON_SWITCH) - before)) -lt 20 ] && get 10.8.1.1"
    guest a "get 10.8.1.2"
    vireo switch show lab
    now "the same between two guests, with short and with long packets"
}

over_nat() {
    guest a "ip link set \$(nic 01:$ON_NAT) up && udhcpc -q -n -i \$(nic 01:$ON_NAT) -s /tmp/dhcp"
    guest a "ping -c 3 -W 5 10.0.2.2"
    both_ways a 10.0.2.2 127.0.0.1:8081
    by_both_queues a 01:$ON_NAT
}

over_virtio() {
    guest a "up 01:$ON_VIRTIO 10.9.4.2 && ping -c 3 -W 5 10.9.4.1"
    both_ways a 10.9.4.1 10.9.4.2
}

# An adapter comes, carries something and goes while it does, and its neighbour carries what is compared.
hotplug() {
    # shellcheck disable=SC2016 # expanded in the guest
    guest a 'same() { sum=$(wget -q -O - http://$1/f1 | sha256sum); grep -q "^${sum%% *}  f1" /tmp/got/sums; }'
    guest a '{ until [ -e /tmp/stop ]; do same 10.9.1.1 || echo broken; sleep 0.2; done; echo all; } >/tmp/traffic 2>&1 & true'
    for cycle in $(seq $CYCLES); do
        vm a nic add tap=hot,mac=02:00:00:00:01:$HOT
        hot=$(awk 'NR == 2 { print $1 }' /tmp/answer)
        guest a "until [ -n \"\$(nic 01:$HOT)\" ]; do sleep 0.1; done; up 01:$HOT 10.9.5.2 && ping -c 1 -W 5 10.9.5.1"
        guest a '{ ping -i 0.01 10.9.5.1 & while wget -T 5 -q -O /dev/null http://10.9.5.1/f1; do :; done; } >/dev/null 2>&1 & sleep 0.2'
        vm a nic remove "$hot"
        guest a "killall ping; while [ -n \"\$(nic 01:$HOT)\" ]; do sleep 0.1; done"
        now "cycle $cycle of $CYCLES"
    done
    guest a 'touch /tmp/stop; until grep all /tmp/traffic; do sleep 0.2; done; cat /tmp/traffic'
    ! grep -q broken /tmp/said || fail "a: the neighbour's traffic broke"
}

# A guest with the card of old, for which the others have no driver.
over_e1000() {
    make_tap card 10.9.3
    start c /guest-686 quiet --memory 256M --nic tap=card,model=e1000,mac=02:00:00:00:03:01
    teach c
    guest c "up 03:01 10.9.3.2 && ping -c 3 -W 5 10.9.3.1"
    both_ways c 10.9.3.1 10.9.3.2
    switch_off c
}

switch_off() { # NAME
    echo exit >"/tmp/$1.keys"
    ends "$1" 0
}

make_payload
vireo switch create lab --mtu 9000 || fail "no switch"
make_tap hot 10.9.5
make_tap virtio 10.9.4
start_one a 1 --nic tap=virtio,model=virtio,mac=02:00:00:00:01:$ON_VIRTIO
start_one b 2
teach a
teach b
over_tap
over_switch
over_nat
over_virtio
switch_off b
hotplug
switch_off a
vireo switch delete lab
over_e1000
echo 'network: all ok'
