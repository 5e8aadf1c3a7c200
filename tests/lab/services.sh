#!/bin/sh
# In the lab: integration services, screen and keyboard of a guest with two processors on KVM, by the commands that a user has.
. /bin/machine.sh

# Bytes of this host that a machine's memory takes, in MiB.
resident() { # NAME
    awk '/^RssShmem:/ { print int($2 / 1024) }' "/proc/$(cat "/tmp/$1.pid")/status"
}

# MiB that the guest has left.
available() { # NAME
    guest "$1" "awk '/^MemAvailable:/ { print int(\$2 / 1024) }' /proc/meminfo"
    tail -n 1 /tmp/said
}

# The answer to a question has this in it.
tells() { # NAME PATTERN COMMAND…
    _machine=$1 _pattern=$2
    shift 2
    vireo vm "$@" --control "/tmp/$_machine.control" >/tmp/answer 2>&1 && grep -qE -- "$_pattern" /tmp/answer
}

# Seconds that the clocks of guest and host are apart.
apart() { # NAME
    guest "$1" 'date +%s'
    echo $(($(tail -n 1 /tmp/said) - $(date +%s))) | tr -d -
}

info() {
    until_so a 60 "a heartbeat" tells a '^heartbeat +ok' info
    until_so a 60 "a report of the system" tells a '^system +Debian GNU/Linux 12' info
    until_so a 60 "its addresses" tells a '10\.0\.2\.15' info
    for service in shutdown heartbeat "time synchronisation" "key-value exchange" "file copy" "dynamic memory"; do
        grep -q "$service" /tmp/answer || fail "a: no $service"
    done
    cat /tmp/answer
}

pairs() {
    vm a kvp set greeting 'Good day'
    vm a kvp get greeting --from host
    [ "$(cat /tmp/answer)" = 'Good day' ] || fail "a: it was $(cat /tmp/answer)"
    guest a "tr '\\000' '\\n' </var/lib/hyperv/.kvp_pool_0 | grep -cx -e greeting -e 'Good day'"
    [ "$(cat /tmp/said)" = 2 ] || fail "a: the guest has no such pair"
    vm a kvp get OSName
    grep -qx 'Debian GNU/Linux' /tmp/answer || fail "a: it is $(cat /tmp/answer)"
    vm a kvp delete greeting
}

copies() {
    head -c 3000000 /dev/urandom >/tmp/file
    vm a copy /tmp/file /srv/new/ --create-path
    guest a 'sha256sum </srv/new/file'
    [ "$(cat /tmp/said)" = "$(sha256sum </tmp/file)" ] || fail "a: the copy differs"
}

freezes() {
    vm a freeze --for 120
    guest a 'touch /frozen & sleep 1; test ! -e /frozen'
    vm a thaw
    guest a 'wait; test -e /frozen'
}

memory() {
    # Linux is silent about its needs for 45 s, unless it is told otherwise; and the driver comes again.
    guest a 'rmmod hv_balloon; modprobe hv_balloon pressure_report_delay=1'
    vm a memory 512M
    until_so a 120 "what memory the guest needs" tells a '"demand": ?[0-9]' memory -o json
    now "a: it needs $(sed -n 's/.*"demand": *\([0-9]*\).*/\1/p' /tmp/answer) bytes"
    guest a 'dd if=/dev/zero of=/tmp/fill bs=1M count=200 2>/dev/null; rm /tmp/fill'
    before=$(available a) taken=$(resident a)
    vm a memory 320M
    after=$(available a) left=$(resident a)
    [ $((before - after)) -gt 150 ] && [ $((taken - left)) -gt 100 ] ||
        fail "a: it gave back too little: $before to $after MiB in the guest, $taken to $left MiB of the host"
    now "a: it gave back $((taken - left)) MiB"
    vm a memory 512M
    again=$(available a)
    [ $((again - after)) -gt 150 ] || fail "a: what came back: $after to $again MiB"
    vm a memory 640M
    more=$(available a)
    [ $((more - before)) -gt 100 ] || fail "a: new memory: $before to $more MiB"
    now "a: it has $((more - again)) MiB more"
    # All of it is of use, what came back and what is new: copies of a file fill nearly all.
    copies=$(((more - 80) / 4))
    guest a "mount -o remount,size=100% /tmp; head -c 4194304 /dev/urandom >/tmp/r && seq $copies | while read n; do cp /tmp/r /tmp/f\$n; done"
    filled=$(resident a)
    [ "$filled" -gt 520 ] || fail "a: of the host, its memory takes $filled MiB, more than it had at its start"
    guest a 'sha256sum /tmp/r /tmp/f*0 | cut -c1-64 | uniq | wc -l'
    [ "$(cat /tmp/said)" = 1 ] || fail "a: copies differ"
    guest a 'rm /tmp/r /tmp/f*'
    now "MiB in the guest $before, $after, $again, $more; of the host $taken, $left, filled $filled"
}

boots() { # COUNT
    until_so a 300 "start $1" sh -c "[ \$(grep -c 'vireo: root on' /tmp/a.log) = $1 ]"
    until_so a 60 "a shell" sh -c "tail -n 1 /tmp/a.log | grep -q '/ # '"
}

ends_and_restarts() {
    vm a nmi
    wait_for a 'NMI received'
    # The clock of this host is put an hour forward: the guest asks for the time when it starts.
    [ "$(apart a)" -lt 5 ] || fail "a: its clock is $(apart a) s off"
    date -s "@$(($(date +%s) + 3600))" >/dev/null
    vm a reset
    boots 2
    [ "$(apart a)" -lt 5 ] || fail "a: after the reset, its clock is $(apart a) s off"
    until_so a 60 "a heartbeat after the reset" tells a '^heartbeat +ok' info
    shows_what_is_typed a
    vm a shutdown --restart --wait
    boots 3
    until_so a 60 "a heartbeat after the restart" tells a '^heartbeat +ok' info
    vm a shutdown --wait
    ends a 0
}

# The screen shows "Vireo" so often.
shows() { # NAME COUNT
    vireo vm screenshot --control "/tmp/$1.control" /tmp/shot.png && [ "$(vireo-picture /tmp/shot.png)" = "1024x768 $2" ]
}

# A shell on the guest's console gets what is typed, and the screen shows what it says.
shows_what_is_typed() { # NAME
    guest "$1" 'setsid sh -c "TERM=linux exec sh -i </dev/tty1 >/dev/tty1 2>&1" & true'
    vm "$1" type 'clear; echo Vireo Vireo; echo "typed-$((6*7))" >/dev/ttyS0\n'
    wait_for "$1" typed-42
    until_so "$1" 30 "the text is on the screen" shows "$1" 2
    vm "$1" type 'clear\n'
    until_so "$1" 30 "the screen is cleared" shows "$1" 0
    now "$1: the screen shows what is typed"
}

ip link set lo up
start a /guest "root=LABEL=vireo-root memhp_default_state=online console=tty0 console=ttyS0" --memory 512M \
    --disk /guest/root.vhdx --screen --nic nat --memory-min 256M --memory-max 640M
boots 1
for part in info pairs copies freezes memory "shows_what_is_typed a" ends_and_restarts; do
    $part
    now "$part: ok"
done
echo 'services: all ok'
