#!/usr/bin/env bash
# Boots an unmodified Debian kernel whose root file system is a VHDX on the synthetic SCSI controller, with a network adapter whose
# network needs no privileges, fetches a page that the guest serves, and adds a second disk while it runs: on a terminal with a
# shell to type in, elsewhere a scripted visit that ends by itself.
set -euo pipefail

# A visit takes seconds; this ends one that hangs.
readonly LIMIT=300

[ $# = 2 ] || { echo "usage: demo.sh VIREO GUEST-FOLDER" >&2 && exit 2; }
vireo=$1 guest=$2
place=$(mktemp -d)
end() {
    jobs -p | xargs -r kill 2>/dev/null || true
    rm -rf "$place"
}
trap end EXIT
log=$place/log control=$place/control
fail() { echo "demo: $*" >&2 && exit 1; }

# A port that nobody has now.
free_port() {
    local port
    for port in $(seq 8080 8180); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port" && return; }
    done
    fail "no free port from 8080 to 8180"
}
# Prints what a web server on this host's loopback answers, without what needs installing.
fetch() { # PORT
    exec 4<>"/dev/tcp/127.0.0.1/$1" && printf 'GET / HTTP/1.0\r\n\r\n' >&4 && timeout 30 sed '1,/^\r*$/d' <&4
}

# Waits until the guest has said something, or is gone.
heard() { # PATTERN
    until grep -q "$1" "$log" 2>/dev/null; do
        sleep 0.2
        if ! kill -0 "$machine" 2>/dev/null; then
            grep -q "$1" "$log" || fail "the guest never said: $1"
        fi
    done
}
show() { echo "\$ ${*/#$vireo/vireo}" && "$@"; }

port=$(free_port)
echo "Guest:  Debian's $(<"$guest/version"), unmodified"
echo "Engine: $("$vireo" host info | sed -n 's/^engine \([a-z]*\) .*chosen.*/\1/p') (why: $vireo host info)"
echo "Disks:  two VHDX, one from the start and one that comes while the guest runs"
echo "Net:    a private network; port $port of this host's loopback leads to the guest's port 80"
echo
"$vireo" disk convert "$guest/root.img" "$place/root.vhdx"
"$vireo" disk create --size 64M "$place/second.vhdx"
show "$vireo" disk info "$place/root.vhdx"
run=("$vireo" run --kernel "$guest/vmlinuz" --initrd "$guest/initrd.img" --memory 512M --cpus 2
    --disk "$place/root.vhdx" --nic "nat,forward=tcp:127.0.0.1:$port:80" --control "$control")
append="console=ttyS0 quiet panic=-1 root=LABEL=vireo-root"

if [ -t 0 ] && [ -t 1 ]; then
    echo
    echo "Leave:  'exit' in the guest's shell powers it off; Ctrl-A x ends the machine at once; Ctrl-A h helps"
    echo "See:    lsblk; ten seconds from now there is one disk more. From another terminal:"
    echo "        $vireo vm disk list --control $control"
    echo "        curl http://127.0.0.1:$port/"
    echo
    (sleep 10 && "$vireo" vm disk add --control "$control" "$place/second.vhdx" >/dev/null 2>&1) &
    status=0
    "${run[@]}" --append "$append" || status=$?
    exit "$status"
fi

mkfifo "$place/keys"
(exec timeout "$LIMIT" "${run[@]}" --stats --no-reboot --append "$append vireo.run=hotplug" <"$place/keys" >"$log" 2>&1) &
machine=$!
exec 3>"$place/keys"
tail -n +1 -F --pid="$machine" "$log" 2>/dev/null | sed -u 's/\r//' &
heard 'hotplug ready'
heard 'vireo: network eth0 10'
show "$vireo" vm nic list --control "$control"
echo "\$ curl http://127.0.0.1:$port/"
fetch "$port" | tee "$place/page"
grep -q 'says hello' "$place/page" || fail "the guest's page did not come"
show "$vireo" vm disk add --control "$control" "$place/second.vhdx"
heard 'written ok'
show "$vireo" vm disk list --control "$control"
show "$vireo" vm disk remove --control "$control" scsi0:1
heard 'hotplug - sd'
echo stop >&3
status=0
wait "$machine" || status=$?
sleep 0.5
[ "$status" = 0 ] || fail "the guest did not end its visit (vireo exit code $status, 124 = no end within $LIMIT s)"
show "$vireo" disk check "$place/root.vhdx"
show "$vireo" disk check "$place/second.vhdx"
echo
echo "demo: the guest booted from its VHDX, served a page over its network, found a disk that was added while it ran, used it, saw it go, and switched its machine off."
