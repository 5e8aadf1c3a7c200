# Sourced, not run. A Debian minbase with systemd as the tree of an initrd: what debootstrap installs, laid out without
# running the packages' scripts (those need root and a chroot). What of their work a boot depends on is done here.
# shellcheck shell=bash

# Beside what Debian marks as essential or required. With udev and dbus, as on any Debian that one logs in to.
readonly MINBASE=(apt systemd-sysv udev dbus usr-is-merged)
# A picture while it boots.
readonly SPLASH=(kmod plymouth plymouth-themes)
readonly SPLASH_THEME=spinner
# What the packages' scripts enable: WANTING-UNIT UNIT.
readonly ENABLED_UNITS="
getty.target      getty@tty1.service
multi-user.target e2scrub_reap.service
multi-user.target remote-fs.target
sysinit.target    systemd-pstore.service
timers.target     apt-daily.timer
timers.target     apt-daily-upgrade.timer
timers.target     dpkg-db-backup.timer
timers.target     e2scrub_all.timer
timers.target     fstrim.timer
"

minbase_packages() { # USERLAND-ROOT FURTHER…
    local -a required
    mapfile -t required < <(apt_in "$1" apt-cache dumpavail | awk '
        /^Package: / { name = $2 }
        /^Essential: yes|^Priority: required/ { wanted = 1 }
        /^$/ { if (wanted) print name; wanted = 0 }' | sort -u)
    package_closure "$1" "${required[@]}" "${MINBASE[@]}" "${@:2}"
}

# Moves /bin, /sbin and /lib* below /usr and leaves links, as debootstrap lays them out.
merge_usr() { # TREE
    local name
    for name in bin sbin lib lib64; do
        [ -d "$1/$name" ] || continue
        mkdir -p "$1/usr/$name"
        cp -a "$1/$name/." "$1/usr/$name/"
        rm -rf "${1:?}/$name"
        ln -s "usr/$name" "$1/$name"
    done
}

# Debian's fixed users and groups, then those that packages declare in sysusers.d(5), numbered from 999 down.
create_users() { # TREE
    local masters=$1/usr/share/base-passwd
    cp "$masters/passwd.master" "$1/etc/passwd"
    cp "$masters/group.master" "$1/etc/group"
    awk -v passwd="$1/etc/passwd" -v group="$1/etc/group" '
        BEGIN { id = 999; while ((getline line <group) > 0) { split(line, field, ":"); known[field[1]] = 1 } }
        ($1 == "u" || $1 == "g") && !known[$2]++ {
            print $2 ":x:" id ":" >>group
            if ($1 == "u") print $2 ":!:" id ":" id "::/:/usr/sbin/nologin" >>passwd
            id--
        }' "$1"/usr/lib/sysusers.d/*.conf
    awk -F : '{ print $1 ":*:19000:0:99999:7:::" }' "$1/etc/passwd" >"$1/etc/shadow"
    chmod 640 "$1/etc/shadow"
}

enable_units() { # TREE
    local target unit file
    while read -r target unit; do
        [ -n "$unit" ] || continue
        file=/lib/systemd/system/${unit/@*./@.}
        [ -e "$1$file" ] || apt_die "Debian's systemd packages have no $file any more"
        mkdir -p "$1/etc/systemd/system/$target.wants"
        ln -s "$file" "$1/etc/systemd/system/$target.wants/$unit"
    done <<<"$ENABLED_UNITS"
}

# Lays out the tree of the systemd guest. Its mark (guests/systemd-mark) comes when multi-user.target is reached.
lay_out_systemd() { # TREE PACKAGES-DIR GUESTS-DIR
    local units=$1/etc/systemd/system
    mkdir -p "$1"
    cp -a "$2/." "$1/"
    # Documentation, and the sources of the hardware database, which only that database is made of.
    rm -rf "$1"/usr/share/{doc,info,locale,man} "$1"/lib/udev/hwdb.d
    merge_usr "$1"
    create_users "$1"
    enable_units "$1"
    echo vireo >"$1/etc/hostname"
    # A system that has booted before: its identity is set, and nothing in /usr is newer than /etc and /var.
    echo 00000000000040008000000000000001 >"$1/etc/machine-id"
    touch "$1/etc/.updated" "$1/var/.updated"
    install -D -m 755 "$3/systemd-mark" "$1/usr/local/sbin/vireo-mark"
    install -m 644 "$3/systemd-mark.service" "$units/vireo-mark.service"
    ln -s /lib/systemd/system/multi-user.target "$units/default.target"
    ln -s ../vireo-mark.service "$units/multi-user.target.wants/vireo-mark.service"
    ln -s sbin/init "$1/init"
}

# With a boot splash, and the modules of what it is shown on, for udev to find.
add_splash() { # TREE KERNEL-DIR RELEASE
    local base path modules=$1/lib/modules/$3
    base=$(module_base "$2")/lib/modules/$3
    mkdir -p "$modules"
    cp "$base"/modules.{builtin,builtin.modinfo,order} "$modules"
    # shellcheck disable=SC2086 # names are words
    module_paths "$2" "$3" $MODULES_hyperv | while read -r path; do
        mkdir -p "$modules/${path%/*}"
        install_module "$base/$path" "$modules/${path%.ko*}.ko"
    done
    depmod -b "$1" "$3"
    # A frame buffer is taken only when nothing better came within so many seconds: 8, where this is not said.
    printf '[Daemon]\nTheme=%s\nShowDelay=0\nDeviceTimeout=1\n' $SPLASH_THEME >"$1/etc/plymouth/plymouthd.conf"
}
