#!/usr/bin/env bash
# Builds test guests from Debian packages: a kernel as Debian ships it and an initrd around it.
# Needs no root, mounts nothing. See README.md.
set -euo pipefail
umask 022
# A user's PATH may lack where Debian has mke2fs and depmod.
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${VIREO_GUEST_CACHE:-$here/cache}
# shellcheck source=../scripts/apt-root.sh
. "$here/../scripts/apt-root.sh"
# shellcheck source=packages.sh
. "$here/packages.sh"
# shellcheck source=initrd.sh
. "$here/initrd.sh"
# shellcheck source=programs.sh
. "$here/programs.sh"
# shellcheck source=disk.sh
. "$here/disk.sh"
# shellcheck source=services.sh
. "$here/services.sh"
# shellcheck source=bench.sh
. "$here/bench.sh"
# shellcheck source=systemd.sh
. "$here/systemd.sh"

readonly BENCH=$here/../bench
# What guests exist with as well, as NAME-VARIANT: all of them, and those of amd64.
readonly VARIANTS="stress disk"
readonly AMD64_VARIANTS="bench programs parallel systemd splash services net"
# Of the variant "net"; the modules are of Perl, which the variant's own programs (net/) are in.
readonly NET_MODULES="strict.pm warnings.pm warnings/register.pm constant.pm"
readonly NET_PROGRAMS="usr/bin/iperf3 usr/bin/qperf usr/bin/perl sbin/ip sbin/bridge sbin/ethtool"
# NAME RELEASE ARCH KERNEL-METAPACKAGE.
readonly GUESTS="
debian-5.10-cloud-amd64 bullseye amd64 linux-image-cloud-amd64
debian-6.1-cloud-amd64  bookworm amd64 linux-image-cloud-amd64
debian-6.12-cloud-amd64 trixie   amd64 linux-image-cloud-amd64
debian-6.1-686          bookworm i386  linux-image-686
debian-6.1-686-pae      bookworm i386  linux-image-686-pae
"

usage() {
    cat <<'EOF'
usage: build.sh [--update] NAME…   build guests into cache/NAME/{vmlinuz,initrd.img,version}
       build.sh --list             names of all guests
  --update   ask Debian again for the newest packages and rebuild
EOF
}

list_guests() {
    awk -v all="$VARIANTS" -v amd64="$AMD64_VARIANTS" '
        function list(variants,    i, count, variant) {
            count = split(variants, variant)
            for (i = 1; i <= count; i++) print $1 "-" variant[i]
        }
        NF { print $1; list(all) }
        $3 == "amd64" { list(amd64) }' <<<"$GUESTS"
}

# Prints what a guest is besides a kernel and busybox: one of the variants, or nothing.
guest_variant() { # NAME
    [[ " $VARIANTS $AMD64_VARIANTS " != *" ${1##*-} "* ]] || echo "${1##*-}"
}

# Prints "RELEASE ARCH METAPACKAGE" of a guest.
guest_recipe() { # NAME
    local variant
    variant=$(guest_variant "$1")
    awk -v name="${1%"${variant:+-$variant}"}" -v variant="$variant" -v amd64="$AMD64_VARIANTS" '
        $1 == name && ($3 == "amd64" || index(" " amd64 " ", " " variant " ") == 0) { print $2, $3, $4; found = 1 }
        END { exit !found }' <<<"$GUESTS"
}

# What a built guest depends on besides packages: these scripts, and what its variant adds of files of ours.
recipe_fingerprint() { # NAME
    (
        cat "$here"/{build,packages,initrd,programs,bench,systemd}.sh "$here/init" "$here/power-button"
        case $(guest_variant "$1") in
            disk) cd "$here" && find disk.sh disk -type f -print0 | sort -z | xargs -0 cat ;;
            services) cd "$here" && find disk.sh disk services.sh services -type f -print0 | sort -z | xargs -0 cat ;;
            systemd | splash) cat "$here"/systemd-mark* ;;
            net) cat "$here"/net/* "$here/disk/lib/dhcp" ;;
            bench | programs | parallel) cd "$BENCH" && find "${BENCH_SOURCES[@]}" -type f -print0 | sort -z | xargs -0 cat ;;
        esac
    ) | sha256sum | cut -c1-64
}

require_tools() {
    local tool
    for tool in apt-get dpkg cpio depmod xz readelf mke2fs debugfs; do
        command -v "$tool" >/dev/null || apt_die "$tool is missing: run scripts/install-deps.sh demo"
    done
}

lay_out_net() { # TREE PACKAGES-DIR
    local name perl
    for name in $NET_PROGRAMS; do install_program "$2" "$1" "$name"; done
    perl=$(cd "$2" && echo usr/lib/*/perl-base)
    for name in $NET_MODULES; do install -D -m 644 "$2/$perl/$name" "$1/$perl/$name"; done
    install -m 755 "$here"/net/* "$1/bin/"
    install -D -m 755 "$here/disk/lib/dhcp" "$1/etc/udhcpc/default.script"
}

build_tree() { # WORK KERNEL-DIR KERNEL-RELEASE USERLAND-DIR VARIANT
    local tree=$1/tree group
    if [ "$5" = systemd ] || [ "$5" = splash ]; then
        lay_out_systemd "$tree" "$4" "$here"
        [ "$5" = systemd ] || add_splash "$tree" "$2" "$3"
        return
    fi
    lay_out_base "$tree" "$4/bin/busybox" "$here/init"
    install -D -m 755 "$here/power-button" "$tree/etc/acpi/PWRF/00000080"
    for group in hyperv virtio virtio_scsi nic ata disk power; do install_modules "$2" "$3" "$tree" "$group"; done
    case $5 in
        stress) install_program "$4" "$tree" usr/bin/stress-ng ;;
        net) lay_out_net "$tree" "$4" ;;
        disk | services) build_root_image "$1" "$2" "$3" "$4" "$here/disk" "$5" ;;
        bench) install_bench "$BENCH" "$tree" "$1/out" ;;
        programs | parallel)
            install_bench "$BENCH" "$tree" "$1/out"
            install_commands "$BENCH/$5/commands" "$4" "$tree" "$1/out"
            ;;&
        parallel) install_project "$BENCH" "$tree" ;;
    esac
}

# Prints the packages that a variant needs besides busybox.
variant_packages() { # USERLAND-ROOT VARIANT
    case $2 in
        stress) package_closure "$1" stress-ng ;;
        net)
            package_closure "$1" iperf3 iproute2 ethtool qperf perl-base |
                awk '/^(iperf3|iproute2|ethtool|qperf|perl-base)$/ || /^(lib|zlib)/'
            ;;
        disk) disk_packages "$1" ;;
        services) services_packages "$1" ;;
        programs) package_closure "$1" "${REAL_PROGRAMS[@]}" ;;
        parallel) package_closure "$1" "${BUILD_TOOLS[@]}" ;;
        systemd) minbase_packages "$1" ;;
        splash) minbase_packages "$1" "${SPLASH[@]}" ;;
    esac
}

build_guest() { # NAME FINGERPRINT
    local name=$1 work=$CACHE/.build.$BASHPID release arch meta root userland kernel image epoch variant
    local -a packages=(busybox-static)
    read -r release arch meta <<<"$(guest_recipe "$name")"
    variant=$(guest_variant "$name")
    # shellcheck disable=SC2064 # expanded now: the variable is gone when the trap runs
    trap "rm -rf '$work'" EXIT
    mkdir -p "$work/out"
    root=$(apt_root_for "$release" "$arch")
    userland=$(apt_root_for "$USERLAND_RELEASE" "$arch")
    kernel=$(kernel_package "$root" "$meta")
    mapfile -t -O 1 packages < <(variant_packages "$userland" "$variant")
    unpack_packages "$root" "$work/kernel" "$kernel"
    unpack_packages "$userland" "$work/userland" "${packages[@]}"
    image=$(echo "$work"/kernel/boot/vmlinuz-*)
    epoch=${SOURCE_DATE_EPOCH:-$(stat -c %Y "$image")}
    build_tree "$work" "$work/kernel" "${image##*/vmlinuz-}" "$work/userland" "$variant"
    pack_initrd "$work/tree" "$work/out/initrd.img" "$epoch"
    install -m 644 "$image" "$work/out/vmlinuz"
    touch -d "@$epoch" "$work/out"/*
    echo "$kernel $(package_version "$root" "$kernel")" >"$work/out/version"
    echo "$2" >"$work/out/recipe"
    rm -rf "${CACHE:?}/$name"
    mv -T "$work/out" "$CACHE/$name"
}

report() { # NAME VERB
    local size
    size=$(stat -c %s "$CACHE/$1/initrd.img")
    echo "$1: $2, $(<"$CACHE/$1/version"), initrd $((size / 1024)) KiB"
}

ensure_guest() { # NAME FINGERPRINT UPDATE?
    local current=
    [ ! -e "$CACHE/$1/recipe" ] || current=$(<"$CACHE/$1/recipe")
    if [ "$current" = "$2" ] && [ -z "$3" ]; then
        report "$1" "up to date"
        return
    fi
    require_tools
    (build_guest "$1" "$2")
    report "$1" built
}

main() {
    local update='' name fingerprint
    case ${1:-} in
        --list) list_guests && return ;;
        -h | --help) usage && return ;;
        --update) update=yes && shift ;;
    esac
    [ $# -gt 0 ] || { usage >&2 && exit 2; }
    for name in "$@"; do
        guest_recipe "$name" >/dev/null || apt_die "no guest named '$name'; see build.sh --list"
    done
    mkdir -p "$CACHE/packages" || apt_die "cannot write to $CACHE"
    # One builder at a time; the others find the work done.
    exec {lock}>"$CACHE/.lock"
    flock "$lock"
    [ -z "$update" ] || rm -rf "${CACHE:?}/apt"
    for name in "$@"; do
        fingerprint=$(recipe_fingerprint "$name")
        ensure_guest "$name" "$fingerprint" "$update"
    done
}

main "$@"
