# Sourced, not run. The system on a disk (disk.sh), with the daemons of integration services.
# shellcheck shell=bash

readonly SERVICE_DAEMONS="usr/sbin/hv_kvp_daemon usr/sbin/hv_vss_daemon usr/sbin/hv_fcopy_daemon"

services_packages() { # USERLAND-ROOT
    disk_packages "$1"
    # Of what these depend on, the C library is there already.
    echo hyperv-daemons
    echo base-files
}

# Adds them to the tree of a disk.
lay_out_services() { # TREE PACKAGES-DIR SERVICES-DIR
    local daemon
    for daemon in $SERVICE_DAEMONS; do install_program "$2" "$1" "$daemon"; done
    mv "$1/sbin/init" "$1/sbin/init.disk"
    install -m 755 "$3/init" "$1/sbin/init"
    install -m 755 "$3/reboot" "$1/sbin/reboot"
    # By this the daemon of key-value exchange tells which system it is; its pairs are in the folder.
    cp "$2/usr/lib/os-release" "$1/etc/os-release"
    mkdir -p "$1/var/lib/hyperv"
    # And these give it a name.
    echo vireo >"$1/etc/hostname"
    echo "127.0.1.1 vireo.test vireo" >"$1/etc/hosts"
}
