# Sourced, not run. Puts programs of unpacked packages into a tree, with the shared libraries they need and nothing else.
# shellcheck shell=bash

# Names in the NEEDED entries of an ELF file.
needed_libraries() { # ELF
    readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]$/\1/p'
}

# Copies LIBRARY and what it needs from the unpacked packages. Cannot use ldd: the guest's libraries
# may be of another architecture than the host.
install_library() { # PACKAGES-DIR TREE LIBRARY
    local found next
    [ ! -e "$2/lib/$3" ] || return 0
    found=$(find "$1/lib" "$1/usr/lib" -name "$3" | LC_ALL=C sort | head -n1)
    [ -n "$found" ] || apt_die "the guest's programs need $3, which none of their packages has"
    install -m 755 "$(realpath "$found")" "$2/lib/$3"
    for next in $(needed_libraries "$2/lib/$3"); do install_library "$1" "$2" "$next"; done
}

# Copies PROGRAM, a path below both folders, with its libraries and its loader.
install_program() { # PACKAGES-DIR TREE PROGRAM
    local interpreter library
    install -D -m 755 "$1/$3" "$2/$3"
    for library in $(needed_libraries "$2/$3"); do install_library "$1" "$2" "$library"; done
    # The program loader is found by its full path: /lib64/ld-linux-x86-64.so.2 or /lib/ld-linux.so.2.
    interpreter=$(readelf -l "$2/$3" | sed -n 's/.*interpreter: \(.*\)\]$/\1/p')
    install_library "$1" "$2" "$(basename "$interpreter")"
    if [ ! -e "$2$interpreter" ] && [ ! -L "$2$interpreter" ]; then
        mkdir -p "$2$(dirname "$interpreter")"
        ln -s "/lib/$(basename "$interpreter")" "$2$interpreter"
    fi
}
