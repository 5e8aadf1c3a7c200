#!/usr/bin/env bash
# Each guest, or each one named, boots from a VHDX on the synthetic controller and checks what it writes (`verify`) to a
# VHD, a VHDX and a differencing chain on it. Then others look at the images: qemu-img (check of VHDX, compare of VHD and
# VHDX with a copy that vireo made), 7zz (extracts the chain, compared with such a copy). Prints a line for each.
set -euo pipefail
export LC_ALL=C

readonly ALL="debian-5.10-cloud-amd64 debian-6.1-cloud-amd64 debian-6.12-cloud-amd64 debian-6.1-686-pae"
readonly KINDS="vhd vhdx chain"
# Far beyond what a boot and a round take.
readonly LIMIT=240

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VIREO_GUEST_CACHE:-$here/guests/cache}
work=${VIREO_WORK:-$here/target}/disks

die() {
    echo "disks: $guest: $kind: $*; see $work" >&2
    tail -n 15 log | sed 's/^/    /' >&2
    exit 1
}

serial_of() { # IMAGE
    "$vireo" disk info "$1" -o json | sed -n 's/.*"id": "\(.*\)".*/\1/p' | tr -d -
}

# Runs the guest with a root disk of its own. A chain has the serial number of its base.
verify() { # IMAGE BASE
    local status=0
    rm -f root.vhdx
    "$vireo" disk create root.vhdx --parent base.vhdx
    timeout "$LIMIT" "$vireo" run --kernel "$cache/$guest-disk/vmlinuz" --initrd "$cache/$guest-disk/initrd.img" \
        --cpus 2 --no-reboot --disk root.vhdx --disk "$1" \
        --append "console=ttyS0 panic=-1 root=LABEL=vireo-root vireo.run=verify vireo.disk=$(serial_of "$2")" \
        </dev/null >log 2>errors.log || status=$?
    [ "$status" = 0 ] || die "exit code $status"
    grep -aq '^vireo: root on /dev/sd[a-z]1 ' log || die "no root on SCSI"
    grep -aq '^vireo: verify ended 0' log || die "verify failed"
    ! grep -aqE 'WARNING:|BUG:|I/O error' log || die "the kernel complains"
    [ ! -s errors.log ] || die "vireo said: $(tail -n1 errors.log)"
}

check() { # IMAGE
    "$vireo" disk check "$1" >check.log || die "vireo disk check: $(tail -n1 check.log)"
}

# What vireo reads of a disk, in copy.img.
copy() { # IMAGE
    rm -f copy.img
    "$vireo" disk convert "$1" copy.img
    # A disk that stayed empty would prove nothing.
    ! cmp -s -n 1048576 copy.img /dev/zero || die "nothing has been written"
}

look_vhd() {
    check disk.vhd
    copy disk.vhd
    qemu-img compare -q -f vpc -F raw disk.vhd copy.img || die "QEMU reads something else"
}

look_vhdx() {
    check disk.vhdx
    qemu-img check -q -f vhdx disk.vhdx || die "qemu-img check"
    copy disk.vhdx
    qemu-img compare -q -f vhdx -F raw disk.vhdx copy.img || die "QEMU reads something else"
}

look_chain() {
    check disk.vhd
    copy disk.vhd
    rm -rf out
    7zz x -tVHD -bso0 -bsp0 -oout disk.vhd || die "7zz"
    cmp copy.img out/* || die "7zz reads something else"
}

make() { # sets image and base
    rm -f disk* chain-*
    case $kind in
        vhd | vhdx) image=disk.$kind base=$image && "$vireo" disk create "$image" --size 64M ;;
        chain)
            "$vireo" disk create chain-base.vhd --size 64M
            verify chain-base.vhd chain-base.vhd
            base=chain-base.vhd
            "$vireo" disk create chain-middle.vhd --parent chain-base.vhd
            "$vireo" disk create disk.vhd --parent chain-middle.vhd
            image=disk.vhd
            ;;
    esac
}

[ $# -ge 1 ] || { echo "usage: disks.sh VIREO [GUEST…]" >&2 && exit 2; }
vireo=$(realpath "$1")
shift
# shellcheck disable=SC2086 # names are words
[ $# != 0 ] || set -- $ALL
"$here/scripts/install-deps.sh" test
"$here/guests/build.sh" "${@/%/-disk}" >/dev/null
rm -rf "$work"
mkdir -p "$work"
cd "$work"
for guest in "$@"; do
    kind=root
    rm -f base.vhdx root.vhdx
    "$vireo" disk convert "$cache/$guest-disk/root.img" base.vhdx
    for kind in $KINDS; do
        began=$SECONDS
        make
        verify "$image" "$base"
        "look_$kind"
        check root.vhdx
        printf '%-26s %-6s ok, %d s\n' "$guest" "$kind" $((SECONDS - began))
    done
done
cd /
rm -rf "$work"
