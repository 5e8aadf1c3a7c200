# Sourced, not run. Which QEMU the host lab can use. Debian 12 has 7.2, its backports archive a newer one.
# shellcheck shell=bash

# Before 8.1 -icount lets one processor starve the others: a machine with two hangs as soon as the first waits for the
# second. The processor that 7.2 emulates also lacks RDSEED, RDPID and PREFETCHW, so that no CPU model can be had.
readonly LAB_QEMU=8.1

# Whether a version (as in 7.2 or 1:10.0.2+ds-2~bpo12+1) will do.
lab_qemu_suffices() { # VERSION
    local version=${1#*:}
    [ -n "$version" ] && [ "$(printf '%s\n' "$LAB_QEMU" "$version" | sort -V | head -n1)" = "$LAB_QEMU" ]
}

# Prints the version of the QEMU that is installed; nothing when there is none.
installed_qemu() {
    { qemu-system-x86_64 --version 2>/dev/null || true; } | sed -n '1s/.*version \([0-9.]*\).*/\1/p'
}
