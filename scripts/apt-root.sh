# Sourced, not run. A private apt root: its own package lists, cache and (empty) installed state, so
# that packages of any Debian release and architecture can be resolved and downloaded, signatures
# verified by apt as always, without root and without touching the host's own apt configuration.
#
#   apt_root DIR RELEASE ARCH [RELEASE-SUFFIX…]    create or reuse DIR, fetch the lists when absent
#   apt_in DIR TOOL ARGS…                          run apt-get or apt-cache inside it
# shellcheck shell=bash

APT_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

apt_die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Prints "MAIN SECURITY", the archive addresses the host itself uses; VIREO_DEBIAN_MIRROR and
# VIREO_DEBIAN_SECURITY_MIRROR override them (a host that is not Debian has neither).
apt_mirrors() {
    local targets main security
    # One line per source of the host: "ADDRESS RELEASE"; understands both source file formats.
    targets=$(apt-get indextargets --format "\$(REPO_URI) \$(RELEASE)" 'Created-By: Packages' 2>/dev/null | sort -u) || true
    main=${VIREO_DEBIAN_MIRROR:-$(awk '$1 ~ /\/debian\/?$/ && $2 !~ /-/ { print $1; exit }' <<<"$targets")}
    security=${VIREO_DEBIAN_SECURITY_MIRROR:-$(awk '$1 ~ /debian-security/ { print $1; exit }' <<<"$targets")}
    [ -n "$main" ] || apt_die "no Debian mirror in this host's apt sources; set VIREO_DEBIAN_MIRROR to one"
    echo "$main $security"
}

# The host's proxy and certificate settings stay in force; everything that would touch the host, or
# depend on what it has installed, is replaced.
apt_write_config() {
    local dir=$1 arch=$2
    cat >"$dir/apt.conf" <<EOF
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Default-Release "";
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
Dir::State "$dir";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
EOF
}

apt_in() {
    local dir=$1 tool=$2
    shift 2
    "$tool" -q -c "$dir/apt.conf" "$@"
}

# Writes the sources; an empty SECURITY address leaves the security archive out.
apt_write_sources() {
    local dir=$1 release=$2 main=$3 security=$4 suffix
    local options="signed-by=$APT_KEYRING target=Packages"
    shift 4
    {
        echo "deb [$options] $main $release main"
        [ -z "$security" ] || echo "deb [$options] $security $release-security main"
        for suffix in "$@"; do echo "deb [$options] $main $release-$suffix main"; done
    } >"$dir/sources.list"
}

# apt's first complaint on one line.
apt_first_error() {
    grep -m1 '^[EW]:' <<<"$1" || tail -n1 <<<"$1"
}

apt_root() {
    local dir=$1 release=$2 arch=$3 mirrors main security log
    shift 3
    [ ! -e "$dir/complete" ] || return 0
    [ -r "$APT_KEYRING" ] || apt_die "$APT_KEYRING is missing: install debian-archive-keyring"
    mirrors=$(apt_mirrors) || exit 1
    read -r main security <<<"$mirrors"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    : >"$dir/status"
    apt_write_config "$dir" "$arch"
    apt_write_sources "$dir" "$release" "$main" "$security" "$@"
    if ! log=$(apt_in "$dir" apt-get update 2>&1); then
        # A mirror's security archive may be out of step with its signature, and apt then refuses
        # it. The main archive, just as signed, has the kernels of the last point release.
        apt_write_sources "$dir" "$release" "$main" "" "$@"
        if [ -z "$security" ] || ! apt_in "$dir" apt-get update >/dev/null 2>&1; then
            apt_die "cannot fetch the package lists of Debian $release ($arch): $(apt_first_error "$log")"
        fi
        echo "${0##*/}: Debian $release ($arch) without its security archive: $(apt_first_error "$log")" >&2
    fi
    touch "$dir/complete"
}
