# Sourced, not run. Lays out and packs an initial RAM file system, reproducibly.
# shellcheck shell=bash disable=SC2034 # the groups are read by name

# Modules by the hardware that asks for them; /init loads a group when the machine has that hardware.
# A module that a kernel has built in, or does not have, is left out.
readonly MODULES_hyperv="hv_vmbus hv_storvsc sd_mod hv_netvsc hv_utils hv_balloon hid-hyperv hyperv-keyboard hyperv_fb hyperv_drm"
readonly MODULES_virtio="virtio virtio_ring virtio_pci virtio_blk virtio_net virtio_console virtio-rng"
readonly MODULES_power="button evdev"
readonly MODULES_kvm="irqbypass kvm kvm-amd"

# Folder that holds lib/modules in an unpacked kernel package (trixie moved it below /usr).
module_base() { # KERNEL-DIR
    [ -d "$1/lib/modules" ] && echo "$1" || echo "$1/usr"
}

# Installs a group's modules, decompressed, and writes the order to load them in, dependencies first.
install_modules() { # KERNEL-DIR RELEASE TREE GROUP
    local base list="MODULES_$4" names name path dep target
    base=$(module_base "$1")/lib/modules/$2
    [ -e "$base/modules.dep" ] || depmod -b "$(module_base "$1")" "$2"
    names=${!list}
    mkdir -p "$3/lib/modules"
    for name in $names; do
        # modules.dep: "PATH: DEPENDENCY…", a module's dependencies in the reverse of load order.
        awk -v want="$name.ko" -F '[: ]+' '
            { file = $1; sub(/.*\//, "", file); sub(/\.(xz|zst|gz)$/, "", file) }
            file == want { for (i = NF; i > 1; i--) if ($i != "") print $i; print $1 }' "$base/modules.dep"
    done | awk '!seen[$0]++' | while read -r path; do
        dep=$(basename "$path" | sed 's/\.\(xz\|zst\|gz\)$//')
        target=$3/lib/modules/$dep
        case $path in
            *.xz) xz -dc "$base/$path" >"$target" ;;
            *.zst) zstd -qdc "$base/$path" >"$target" ;;
            *.gz) gzip -dc "$base/$path" >"$target" ;;
            *) cp "$base/$path" "$target" ;;
        esac
        chmod 644 "$target"
        echo "$dep"
    done >"$3/lib/modules/$4.load"
}

# The tree every initrd starts from: mount points, busybox and the given /init.
lay_out_base() { # TREE BUSYBOX INIT
    mkdir -p "$1"/{bin,dev,etc,lib,proc,root,run,sys,tmp}
    install -m 755 "$2" "$1/bin/busybox"
    ln -s busybox "$1/bin/sh"
    install -m 755 "$3" "$1/init"
}

# Packs TREE: sorted names, fixed times and owners, numbered inodes. Not compressed: the guest would
# spend longer unpacking than the host saves in reading.
pack_initrd() { # TREE OUTPUT EPOCH
    find "$1" -exec touch -h -d "@$3" {} +
    (cd "$1" && find . -print0 | LC_ALL=C sort -z |
        cpio --null --quiet --create --format=newc --owner=0:0 --reproducible) >"$2"
}
