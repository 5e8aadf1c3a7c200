#!/usr/bin/env bash
# Cuts the power of machines while their guests write, and looks at what is left: N times, in turn on VHDX, VHD and a
# differencing chain of three. vireo is killed (SIGKILL) at a random moment while the guest test `crash` writes records
# to the disk, and acknowledges each that fsync has brought there. Then `vireo disk check` looks at the image and its
# parents, `qemu-img check` too where it can (VHDX), and another boot (`crash-check`) looks for each acknowledged record
# and at ext4, after its journal. A disk goes through many cuts; each tenth of its kind begins with a new one.
# Prints counts; keeps in target/power-cuts what belongs to a failure.
set -euo pipefail
export LC_ALL=C

readonly GUEST=debian-6.1-cloud-amd64-disk
readonly KINDS=(vhdx vhd chain)
# Far beyond what a boot takes; the longest that a guest may write before the cut, in ms.
readonly LIMIT=240 WRITES=6000

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${VIREO_GUEST_CACHE:-$here/guests/cache}/$GUEST
work=$here/target/power-cuts

# Starts the guest with a root disk of its own and the disk under test; its console goes to log.
start() { # APPEND
    rm -f root.vhdx
    "$vireo" disk create root.vhdx --parent base.vhdx
    exec 3>"$1"
    "$vireo" run --kernel "$folder/vmlinuz" --initrd "$folder/initrd.img" --no-reboot \
        --append "console=ttyS0 panic=-1 root=LABEL=vireo-root vireo.disk=$serial $2" \
        --disk root.vhdx --disk "$image" </dev/null >&3 2>&1 &
    pid=$!
    exec 3>&-
}

# Makes a new disk of a kind; a child has its grandparent's and its parent's content below its own.
make_disk() { # KIND
    rm -f "$1".* "$1"-*
    case $1 in
        chain)
            "$vireo" disk create chain-base.vhdx --size 256M
            "$vireo" disk create chain-middle.vhdx --parent chain-base.vhdx
            image=chain-middle.vhdx
            serial_of "$image"
            # Something to be kept in the parents.
            start fill.log "vireo.run=crash vireo.count=20"
            wait "$pid"
            "$vireo" disk create chain.vhdx --parent chain-middle.vhdx
            acknowledged[chain]=20
            ;;
        *)
            "$vireo" disk create "$1.$1" --size 256M
            acknowledged[$1]=0
            ;;
    esac
}

serial_of() { # IMAGE
    serial=$("$vireo" disk info "$1" -o json | sed -n 's/.*"id": "\(.*\)".*/\1/p')
    serial=${serial//-/}
}

# The last number in a log that the guest printed in a whole line.
last_acknowledged() { # LOG
    tr -d '\r' <"$1" | sed -n '$!s/^vireo: crash acknowledged \([0-9]*\)$/\1/p' | tail -n1
}

# Lets the guest write for a random time, from its first record on, and kills the machine.
cut() {
    local deadline=$((SECONDS + LIMIT)) last
    start cut.log vireo.run=crash
    until grep -aq '^vireo: crash writes to ' cut.log; do
        if ! kill -0 "$pid" 2>/dev/null || [ "$SECONDS" -gt "$deadline" ]; then
            kill -KILL "$pid" 2>/dev/null || true
            wait "$pid" 2>/dev/null || true
            echo "the guest does not write" && return 1
        fi
        sleep 0.05
    done
    sleep "$(printf '%d.%03d' $((RANDOM * RANDOM % WRITES / 1000)) $((RANDOM % 1000)))"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null || true
    last=$(last_acknowledged cut.log)
    acknowledged[$kind]=${last:-${acknowledged[$kind]}}
}

# What is left must open, be sound, and have each record that was acknowledged.
look() {
    local line status=0
    "$vireo" disk check "$image" >check.log 2>&1 || { echo "vireo disk check: $(tail -n1 check.log)" && return 1; }
    ! grep -qi 'replay' check.log || replays=$((replays + 1))
    # It knows no chains, and of VHD nothing.
    if [ "$kind" = vhdx ]; then
        cp --sparse=always "$image" copy.vhdx
        qemu-img check -q -r all -f vhdx copy.vhdx >qemu.log 2>&1 ||
            { echo "qemu-img check: $(tail -n1 qemu.log)" && return 1; }
        rm copy.vhdx
    fi
    start look.log "vireo.run=crash-check vireo.acknowledged=${acknowledged[$kind]}"
    timeout "$LIMIT" tail --pid="$pid" -f /dev/null || kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" || status=$?
    line=$(tr -d '\r' <look.log | grep -a '^vireo: crash-check records=' || true)
    if [ "$status" != 0 ] || [[ $line != *" consistent=yes ok" ]]; then
        echo "crash-check: exit code $status, ${line:-no line}" && return 1
    fi
    "$vireo" disk check "$image" >check.log 2>&1 || { echo "after crash-check: $(tail -n1 check.log)" && return 1; }
    line=${line#*records=}
    records=$((records + ${acknowledged[$kind]} - before))
}

summary() {
    local k
    for k in "${KINDS[@]}"; do
        printf '%-6s %4d cuts, %d failed\n' "$k" "${cuts[$k]}" "${failed[$k]}"
    done
    echo "power-cuts: $records records acknowledged before a cut and looked for; $replays images had a log to replay"
}

if [ $# != 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: power-cuts.sh VIREO N" >&2
    exit 2
fi
vireo=$(realpath "$1") count=$2 records=0 replays=0 failures=0 pid=''
"$here/scripts/install-deps.sh" test
"$here/guests/build.sh" "$GUEST" >/dev/null
rm -rf "$work"
mkdir -p "$work"
cd "$work"
trap '[ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true' EXIT
"$vireo" disk convert "$folder/root.img" base.vhdx
declare -A cuts failed acknowledged
for kind in "${KINDS[@]}"; do cuts[$kind]=0 failed[$kind]=0; done
for ((n = 0; n < count; n++)); do
    kind=${KINDS[n % ${#KINDS[@]}]}
    [ $((cuts[$kind] % 10)) != 0 ] || make_disk "$kind"
    image=$kind.vhdx
    [ "$kind" != vhd ] || image=vhd.vhd
    serial_of "$image"
    before=${acknowledged[$kind]}
    cuts[$kind]=$((cuts[$kind] + 1))
    if ! { cut && look; } >why; then
        failed[$kind]=$((failed[$kind] + 1)) failures=$((failures + 1))
        mkdir -p "failed-$n" && cp --sparse=always "$kind"[.-]* ./*.log why "failed-$n"
        echo "cut $((n + 1)) on $kind: $(cat why); see $work/failed-$n" >&2
        make_disk "$kind"
    fi
    [ $(((n + 1) % 10)) != 0 ] || { echo "after $((n + 1)) of $count:" && summary; }
done
summary
[ "$failures" = 0 ] || { echo "power-cuts: $failures FAILED" >&2 && exit 1; }
rm -rf "$work"
