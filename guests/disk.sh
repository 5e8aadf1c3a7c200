# Sourced, not run. A disk image with a small system on it: busybox, fio, the tools that look at and care for disks and
# ext4, and the tests of disk/.
# shellcheck shell=bash disable=SC2154 # the groups of modules are initrd.sh's

readonly DISK_LABEL=vireo-root
readonly DISK_MIB=400
# The partition begins here, as partitioning tools of today have it; what is before it has room for a boot loader.
readonly DISK_PARTITION_MIB=1
readonly DISK_PROGRAMS="usr/bin/fio
    sbin/mke2fs sbin/e2fsck sbin/resize2fs sbin/tune2fs sbin/dumpe2fs sbin/debugfs
    sbin/blkdiscard sbin/blkid sbin/blockdev sbin/fstrim sbin/sfdisk bin/lsblk sbin/hdparm
    usr/bin/sg_inq usr/bin/sg_luns usr/bin/sg_persist usr/bin/sg_raw usr/bin/sg_readcap usr/bin/sg_reset usr/bin/sg_sync
    usr/bin/sg_unmap usr/bin/sg_vpd usr/bin/sg_write_same"
# Beside the groups that an initrd has.
readonly DISK_MODULES="sg loop nvme ahci vfat nls_ascii nls_cp437 nls_iso8859-1 pci-hyperv"

# Prints the packages that the programs and their libraries are in. Of what they depend on, only libraries are of use.
disk_packages() { # USERLAND-ROOT
    package_closure "$1" fio e2fsprogs util-linux fdisk hdparm sg3-utils |
        awk '/^(fio|e2fsprogs|util-linux|fdisk|hdparm|sg3-utils)$/ || (/^(lib|zlib)/ && !/^lib(perl|python)|-perl$/)'
}

# Modules as a distribution has them, for modprobe.
install_module_tree() { # KERNEL-DIR RELEASE TREE
    local base path target
    base=$(module_base "$1")/lib/modules/$2
    # shellcheck disable=SC2086 # names are words
    module_paths "$1" "$2" $MODULES_hyperv $MODULES_virtio $MODULES_virtio_scsi $MODULES_ata $MODULES_disk \
        $MODULES_power $DISK_MODULES | while read -r path; do
        target=$3/lib/modules/$2/${path%.ko*}.ko
        mkdir -p "$(dirname "$target")"
        install_module "$base/$path" "$target"
    done
    cp "$base"/modules.{builtin,builtin.modinfo,order} "$3/lib/modules/$2/"
    depmod -b "$3" "$2"
}

lay_out_disk() { # TREE KERNEL-DIR RELEASE PACKAGES-DIR DISK-DIR
    local program
    lay_out_base "$1" "$4/bin/busybox" "$5/init"
    mkdir -p "$1"/{sbin,usr/bin,usr/sbin,mnt,vireo}
    mv "$1/init" "$1/sbin/init"
    # What the kernel runs to shut down in good order, and acpid on the power button.
    install -m 755 "$5/poweroff" "$1/sbin/poweroff"
    mkdir -p "$1/etc/acpi/PWRF"
    ln -s /sbin/poweroff "$1/etc/acpi/PWRF/00000080"
    ln -s ../bin/busybox "$1/sbin/modprobe"
    for program in $DISK_PROGRAMS; do install_program "$4" "$1" "$program"; done
    ln -s mke2fs "$1/sbin/mkfs.ext4"
    ln -s e2fsck "$1/sbin/fsck.ext4"
    install -m 644 "$4/etc/mke2fs.conf" "$1/etc/mke2fs.conf"
    install_module_tree "$2" "$3" "$1"
    cp -r "$5/lib" "$5/tests" "$1/vireo/"
    chmod 755 "$1"/vireo/tests/* "$1/vireo/lib/dhcp"
    ln -s /run/resolv.conf "$1/etc/resolv.conf"
}

# Prints VALUE as COUNT bytes, the lowest first, in the notation of printf.
little_endian() { # VALUE COUNT
    local i
    for ((i = 0; i < $2; i++)); do printf '\\x%02x' $((($1 >> (8 * i)) & 255)); done
}

# Writes a partition table of one Linux partition from DISK_PARTITION_MIB to the end. Its disk signature is fixed.
write_partition_table() { # IMAGE
    local start=$((DISK_PARTITION_MIB * 2048)) sectors=$(((DISK_MIB - DISK_PARTITION_MIB) * 2048))
    # Flags, first CHS (none), type, last CHS (none), first sector, sectors.
    # shellcheck disable=SC2059 # the bytes are written as escapes
    printf "$(little_endian 0x6f657276 4)\0\0\x80\xfe\xff\xff\x83\xfe\xff\xff$(
        little_endian $start 4
        little_endian $sectors 4
    )" | dd of="$1" bs=1 seek=440 conv=notrunc status=none
    printf '\x55\xaa' | dd of="$1" bs=1 seek=510 conv=notrunc status=none
}

# Makes everything on the file system belong to root, whoever has built it. debugfs ends well whatever went wrong: it
# tells, after a line with its version.
own_by_root() { # FILE-SYSTEM TREE
    local complaints
    complaints=$( (cd "$2" && find . -mindepth 1 -printf '%P\n') |
        awk '{ print "set_inode_field \"/" $0 "\" uid 0"; print "set_inode_field \"/" $0 "\" gid 0" }' |
        debugfs -w -f - "$1" 2>&1 >/dev/null | sed 1d)
    [ -z "$complaints" ] || apt_die "cannot set the owners of files on $1: ${complaints%%$'\n'*}"
}

# Builds out/root.img. Features are named where mke2fs of a newer host would make what the oldest kernel cannot mount;
# the tables are written here, or the guest would write them while something is measured.
build_root_image() { # WORK KERNEL-DIR RELEASE PACKAGES-DIR DISK-DIR VARIANT
    local tree=$1/disk image=$1/out/root.img offset=$((DISK_PARTITION_MIB << 20))
    lay_out_disk "$tree" "$2" "$3" "$4" "$5"
    [ "$6" != services ] || lay_out_services "$tree" "$4" "$5/../services"
    truncate -s "${DISK_MIB}M" "$image"
    write_partition_table "$image"
    mke2fs -q -F -t ext4 -b 4096 -L "$DISK_LABEL" -U 56495245-4f00-4000-8000-000000000001 -m 0 -N 8192 \
        -O ^orphan_file,^metadata_csum_seed \
        -E "offset=$offset,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0" \
        -d "$tree" "$image" $(((DISK_MIB - DISK_PARTITION_MIB) * 1024))k ||
        apt_die "cannot make the file system of root.img"
    own_by_root "$image?offset=$offset" "$tree"
}
