# Sourced, not run. Lays out and packs an initial RAM file system, reproducibly.
# shellcheck shell=bash disable=SC2034 # the groups are read by name

# Modules by what asks for them; /init loads a group when the machine has that hardware or the mode needs it.
# A module that a kernel has built in, or does not have, is left out.
readonly MODULES_hyperv="hv_vmbus hv_storvsc sd_mod hv_netvsc hv_utils hv_balloon hid-hyperv hyperv-keyboard hyperv_fb hyperv_drm"
readonly MODULES_virtio="virtio virtio_ring virtio_pci virtio_blk virtio_net virtio_console virtio-rng"
readonly MODULES_virtio_scsi="virtio_scsi"
readonly MODULES_nic="e1000"
readonly MODULES_ata="ata_piix ata_generic"
readonly MODULES_disk="sd_mod sr_mod crc32c_generic ext4 isofs"
readonly MODULES_power="button evdev"
readonly MODULES_kvm="irqbypass kvm kvm-amd"

# Folder that holds lib/modules in an unpacked kernel package (trixie moved it below /usr).
module_base() { # KERNEL-DIR
    [ -d "$1/lib/modules" ] && echo "$1" || echo "$1/usr"
}

# Prints the paths of modules and of what they depend on, below lib/modules/RELEASE, in the order to load them in.
module_paths() { # KERNEL-DIR RELEASE NAME…
    local base
    base=$(module_base "$1")/lib/modules/$2
    [ -e "$base/modules.dep" ] || depmod -b "$(module_base "$1")" "$2"
    shift 2
    # modules.dep: "PATH: DEPENDENCY…", a module's dependencies in the reverse of load order.
    awk -v names="$*" '
        function show(path) { if (!seen[path]++) print path }
        { file = $1; sub(/.*\//, "", file); sub(/\.ko.*/, "", file); line[file] = $0 }
        END {
            count = split(names, name, " ")
            for (n = 1; n <= count; n++) {
                fields = split(line[name[n]], field, " ")
                for (i = fields; i > 1; i--) show(field[i])
                if (fields > 0) show(substr(field[1], 1, length(field[1]) - 1))
            }
        }' "$base/modules.dep"
}

# Writes a module decompressed.
install_module() { # MODULE TARGET
    case $1 in
        *.xz) xz -dc "$1" >"$2" ;;
        *.zst) zstd -qdc "$1" >"$2" ;;
        *.gz) gzip -dc "$1" >"$2" ;;
        *) cp "$1" "$2" ;;
    esac
    chmod 644 "$2"
}

# Installs a group's modules under the names that the kernel gives them, and writes the order to load them in.
install_modules() { # KERNEL-DIR RELEASE TREE GROUP
    local list="MODULES_$4" base path file
    base=$(module_base "$1")/lib/modules/$2
    mkdir -p "$3/lib/modules"
    # shellcheck disable=SC2086 # names are words
    module_paths "$1" "$2" ${!list} | while read -r path; do
        file=$(basename "$path" | sed 's/\.\(xz\|zst\|gz\)$//; s/-/_/g')
        [ -e "$3/lib/modules/$file" ] || install_module "$base/$path" "$3/lib/modules/$file"
        echo "$file"
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
