# Sourced, not run. Debian packages: which one a metapackage means today, and its content.
# Needs CACHE (folder) set, and scripts/apt-root.sh sourced.
# shellcheck shell=bash disable=SC2034 # the constants are for the scripts that source this

# The userland of every guest comes from this release, so that guests differ in their kernel only.
readonly USERLAND_RELEASE=bookworm

apt_root_for() { # RELEASE ARCH: prepares the private apt root and prints its folder
    apt_root "$CACHE/apt/$1-$2" "$1" "$2" && echo "$CACHE/apt/$1-$2"
}

# Prints the package a kernel metapackage depends on: "linux-image-6.1.0-56-cloud-amd64".
kernel_package() { # ROOT METAPACKAGE
    local name
    name=$(apt_in "$1" apt-cache depends "$2" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n1)
    [ -n "$name" ] || apt_die "Debian's $2 leads to no kernel package"
    echo "$name"
}

# Downloads PACKAGEs into the package cache unless they are there, and prints their file paths. apt
# checks each download against the signed lists.
fetch_packages() { # ROOT PACKAGE…
    local root=$1 uris file log partial=$CACHE/packages/partial.$BASHPID
    local -a names=() files=()
    shift
    uris=$(apt_in "$root" apt-get download --print-uris "$@" 2>&1) ||
        apt_die "no such package in ${root##*/}: $(apt_first_error "$uris")"
    # A line: 'ADDRESS' FILE SIZE HASH; FILE starts with the package's name and an underscore.
    while read -r _ file _; do
        files+=("$CACHE/packages/$file")
        [ -e "$CACHE/packages/$file" ] || names+=("${file%%_*}")
    done < <(grep "^'" <<<"$uris")
    if [ ${#names[@]} -gt 0 ]; then
        mkdir -p "$partial"
        if ! log=$(cd "$partial" && apt_in "$root" apt-get download "${names[@]}" 2>&1); then
            rm -rf "$partial"
            apt_die "cannot download ${names[*]}: $(apt_first_error "$log")"
        fi
        mv "$partial"/*.deb "$CACHE/packages/"
        rmdir "$partial"
    fi
    printf '%s\n' "${files[@]}"
}

# Unpacks PACKAGEs into DIR.
unpack_packages() { # ROOT DIR PACKAGE…
    local root=$1 dir=$2 files file
    shift 2
    files=$(fetch_packages "$root" "$@") || exit 1
    mkdir -p "$dir"
    while read -r file; do
        dpkg -x "$file" "$dir" || apt_die "cannot unpack $file: delete it and try again"
    done <<<"$files"
}

# Prints PACKAGEs and everything they depend on, from an empty system.
package_closure() { # ROOT PACKAGE…
    local root=$1 plan
    shift
    plan=$(apt_in "$root" apt-get -s install "$@" 2>&1) ||
        apt_die "cannot resolve what $* needs: $(apt_first_error "$plan")"
    awk '/^Inst/ { print $2 }' <<<"$plan" | sed 's/:.*//' | sort
}

# Prints the version of the named package in ROOT.
package_version() { # ROOT PACKAGE
    apt_in "$1" apt-cache policy "$2" | sed -n 's/^ *Candidate: //p'
}
