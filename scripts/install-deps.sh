#!/usr/bin/env bash
# Installs by apt what a bare Debian 12 with Rust lacks. Silent and instant when nothing is missing.
# Never removes or downgrades a package and leaves the apt configuration as it is.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=apt-root.sh
. "$here/apt-root.sh"
# shellcheck source=qemu-version.sh
. "$here/qemu-version.sh"

# COMMAND:PACKAGE pairs. demo builds and boots a guest; test adds the host lab, PVH kernels and the
# stress guest; bench adds the peers measured against; io and net the tools that measure disks and networks; tlb is for
# `make bench-tlb` alone, fuzz for `make fuzz`.
readonly DEMO="gcc:gcc make:make cpio:cpio xz:xz-utils depmod:kmod readelf:binutils mke2fs:e2fsprogs debugfs:e2fsprogs"
readonly TEST="$DEMO ip:iproute2 zstd:zstd lz4:lz4 iasl:acpica-tools dmidecode:dmidecode qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils 7zz:7zip vhdiinfo:libvhdi-utils xorriso:xorriso"
readonly QEMU=qemu-system-x86
readonly BENCH="$DEMO qemu-system-x86_64:qemu-system-x86"
readonly IO="fio:fio"
readonly NET="ip:iproute2 iperf3:iperf3 qperf:qperf"
readonly TLB="gcc:gcc make:make python3:python3"
readonly FUZZ="g++:g++"

# Prints the missing packages of the groups given.
missing_packages() {
    local group pair pairs=''
    for group in "$@"; do
        case $group in
            demo) pairs+=" $DEMO" ;;
            test) pairs+=" $TEST" ;;
            bench) pairs+=" $BENCH" ;;
            io) pairs+=" $IO" ;;
            net) pairs+=" $NET" ;;
            tlb) pairs+=" $TLB" ;;
            fuzz) pairs+=" $FUZZ" ;;
            *) apt_die "no group '$group'; there are demo, test, bench, io, net, tlb and fuzz" ;;
        esac
    done
    for pair in $pairs; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
    [[ " $* " != *" test "* ]] || lab_qemu_suffices "$(installed_qemu)" || echo "$QEMU"
    [[ " $* " != *" test "* ]] || perl -MNet::VNC -e 1 2>/dev/null || echo libnet-vnc-perl
    # Packages that are seen by a file instead of a command.
    [ -e /usr/include/stdio.h ] || echo libc6-dev
    [ -e "$APT_KEYRING" ] || echo debian-archive-keyring
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
}

install_packages() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends --no-remove "$@" 2>&1
}

# QEMU's packages conflict across releases: a host that has some of them from the backports archive
# can only get the others from there. Uses a private apt root that sees this host's installed state.
install_with_backports() { # PACKAGE…
    local release root
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    root=$(mktemp -d)
    # shellcheck disable=SC2064 # expanded now
    trap "rm -rf '$root'" EXIT
    apt_root "$root" "$release" "$(dpkg --print-architecture)" backports
    install_packages -c "$root/apt.conf" -o Dir::State::status=/var/lib/dpkg/status \
        -o Dir::State::extended_states=/var/lib/apt/extended_states -o Debug::NoLocking=false \
        -t "$release-backports" install "$@"
}

# Whether the lab's QEMU is among the missing and the host's own archive has only an older one.
needs_newer_qemu() { # PACKAGE…
    local offered
    [[ " $* " = *" $QEMU "* ]] || return 1
    offered=$(apt-cache policy "$QEMU" | sed -n 's/^ *Candidate: *//p')
    ! lab_qemu_suffices "${offered/(none)/}"
}

install_missing() { # GROUP… -- PACKAGE…
    local groups=''
    local -a older newer
    while [ "$1" != -- ]; do
        groups+=" $1 "
        shift
    done
    shift
    if [[ $groups != *" test "* ]] || ! needs_newer_qemu "$@"; then
        install_packages install "$@" || install_with_backports "$@"
        return
    fi
    echo "QEMU $LAB_QEMU or newer comes from Debian's backports archive" >&2
    # QEMU's packages have to be of one release.
    mapfile -t newer < <(printf '%s\n' "$@" | grep -x 'qemu-.*')
    mapfile -t older < <(printf '%s\n' "$@" | grep -vx 'qemu-.*')
    [ ${#older[@]} = 0 ] || install_packages install "${older[@]}" || return
    install_with_backports "${newer[@]}"
}

main() {
    local log outdated=''
    local -a missing
    [ $# -gt 0 ] || apt_die "usage: install-deps.sh demo|test|bench|io|net|tlb…"
    missing_packages "$@" >/dev/null
    mapfile -t missing < <(missing_packages "$@" | sort -u)
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || apt_die "missing: ${missing[*]}; no apt-get here, install them yourself"
    [ "$(id -u)" = 0 ] || apt_die "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}"
    echo "Installing ${missing[*]}" >&2
    # One archive out of step with its signature fails the update as a whole; the packages may be there all the same.
    log=$(apt-get -qq update 2>&1) || outdated="; apt-get update failed: $(apt_first_error "$log")"
    log=$(install_missing "$@" -- "${missing[@]}") ||
        apt_die "cannot install ${missing[*]} without removing packages: $(apt_first_error "$log")$outdated"
}

main "$@"
