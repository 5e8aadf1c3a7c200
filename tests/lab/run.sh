#!/usr/bin/env bash
# Runs a program on a host with a genuine /dev/kvm: a Debian kernel under QEMU's software emulation
# of AMD SVM. Needs neither root nor hardware virtualization. See README.md.
set -euo pipefail
umask 022
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${VIREO_GUEST_CACHE:-$here/../../guests/cache}
# shellcheck source=../../scripts/apt-root.sh
. "$here/../../scripts/apt-root.sh"
# shellcheck source=../../scripts/qemu-version.sh
. "$here/../../scripts/qemu-version.sh"
# shellcheck source=../../guests/packages.sh
. "$here/../../guests/packages.sh"
# shellcheck source=../../guests/initrd.sh
. "$here/../../guests/initrd.sh"

readonly LAB=$CACHE/lab-host
readonly LAB_FAILED=125
# Modules that only a lab host has.
# shellcheck disable=SC2034 # read by name
readonly MODULES_tap="tun"
timeout=120 cpus=2 memory=3072 keep_console='' mend='' scratch=''

usage() {
    cat <<'EOF'
usage: run.sh PROGRAM [--file SRC:DST]… [OPTION]… -- COMMAND…
  PROGRAM         executable put into the lab host's /bin with its shared libraries
  --file SRC:DST  also put file SRC there as DST; executables with their shared libraries
  --timeout S     give up after S seconds (120)
  --cpus N        processors of the lab host (2)
  --memory MIB    memory of the lab host (3072)
  --console FILE  keep the lab host's kernel console in FILE
  COMMAND…        runs there as root; its exit code is ours, 124 = timeout, 125 = the lab failed
EOF
}

lab_die() {
    echo "lab: $*" >&2
    exit "$LAB_FAILED"
}

# Copies an executable's shared libraries to the same paths.
add_libraries() { # FILE TREE
    local library
    # A static executable makes ldd fail: nothing to add. A missing library is not nothing.
    { ldd "$1" 2>/dev/null || true; } | sed '/linux-vdso/d' | while read -r library; do
        [[ $library != *"not found"* ]] || lab_die "$1: ${library//$'\t'/}"
        library=$(grep -o '/[^ ]*' <<<"$library" | head -n1) || continue
        install -D -m 755 "$library" "$2$library"
    done
}

add_file() { # SRC DST TREE
    [ -f "$1" ] || lab_die "$1: no such file"
    [[ $2 = /* ]] || lab_die "--file $1:$2: the destination must begin with /"
    mkdir -p "$3$(dirname "$2")"
    cp -L "$1" "$3$2"
    [ ! -x "$1" ] || add_libraries "$1" "$3"
}

# Writes the words of the command as one line of shell, each quoted.
write_command() { # TREE WORD…
    local tree=$1 word
    shift
    mkdir -p "$tree/lab"
    for word in "$@"; do printf "'%s' " "${word//\'/\'\\\'\'}"; done >"$tree/lab/command"
}

# The part of the lab host that is the same every time: kernel, busybox, modules, what mends QEMU. Cached.
build_host() {
    local fingerprint work root kernel image group
    fingerprint=$(cat "$here/init" "$here/run.sh" "$here/vmrun.c" "$here"/../../guests/{packages,initrd}.sh | sha256sum)
    mkdir -p "$CACHE/packages"
    exec {lock}>"$CACHE/.lock"
    flock "$lock"
    if [ ! -e "$LAB/recipe" ] || [ "$(<"$LAB/recipe")" != "$fingerprint" ]; then
        work=$CACHE/.build.$BASHPID
        # shellcheck disable=SC2064 # expanded now: the variable is gone when the trap runs
        trap "rm -rf '$work'" EXIT
        mkdir -p "$work/out"
        root=$(apt_root_for bookworm amd64)
        kernel=$(kernel_package "$root" linux-image-cloud-amd64)
        unpack_packages "$root" "$work/kernel" "$kernel"
        unpack_packages "$root" "$work/userland" busybox-static
        image=$(echo "$work"/kernel/boot/vmlinuz-*)
        lay_out_base "$work/tree" "$work/userland/bin/busybox" "$here/init"
        for group in virtio kvm tap; do
            install_modules "$work/kernel" "${image##*/vmlinuz-}" "$work/tree" "$group"
        done
        pack_initrd "$work/tree" "$work/out/initrd.img" "$(stat -c %Y "$image")"
        "$here/../../guests/extract-vmlinux.sh" "$image" "$work/out/vmlinux"
        cc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$work/out/vmrun.so" "$here/vmrun.c" ||
            lab_die "cannot build vmrun.so"
        echo "$fingerprint" >"$work/out/recipe"
        rm -rf "$LAB"
        mv -T "$work/out" "$LAB"
        rm -rf "$work"
    fi
    flock -u "$lock"
}

# Virtual time is the count of instructions executed, 2 ns each, idle time is skipped, and all processors share one
# thread: with a thread for each, the lab host now and then hangs with SVM's global interrupt flag clear (README.md).
readonly VIRTUAL_TIME="-accel tcg,thread=single -icount shift=1,sleep=off"
# The TSC then ticks once per virtual nanosecond; the lab host need not measure it.
readonly TSC_PARAMETERS="tsc_early_khz=1000000 tsc=reliable"

# Puts what mends QEMU where the loader finds it, into $mend: LD_PRELOAD is divided at spaces and colons, and what it names in vain
# is left out with a word that nobody reads.
place_mend() { # WORK
    mend=$1/vmrun.so
    if [[ $mend = *[[:space:]:]* ]]; then
        scratch=$(mktemp -d /tmp/vireo-lab.XXXXXX)
        mend=$scratch/vmrun.so
    fi
    cp "$LAB/vmrun.so" "$mend"
    # The loader lists what it would load, and runs nothing.
    LD_TRACE_LOADED_OBJECTS=1 LD_PRELOAD=$mend qemu-system-x86_64 2>/dev/null | grep -F "$mend" >/dev/null ||
        lab_die "the loader does not take $mend, which mends QEMU"
}

# The command's output comes out of our standard output, which must be a pipe: QEMU opens it by name.
boot_host() { # WORK
    # shellcheck disable=SC2086 # the options are words
    timeout --foreground --kill-after=2 "$timeout" env LD_PRELOAD="$mend" qemu-system-x86_64 \
        -machine q35,smm=off $VIRTUAL_TIME -cpu max -smp "$cpus" -m "$memory" \
        -nodefaults -display none -no-reboot \
        -kernel "$LAB/vmlinux" -initrd "$1/initrd.img" \
        -append "console=ttyS0 panic=-1 $TSC_PARAMETERS" \
        -serial "file:$1/console" \
        -device virtio-serial-pci \
        -chardev file,id=output,path=/proc/self/fd/1,append=on -device virtserialport,chardev=output,nr=1 \
        -chardev "file,id=result,path=$1/result" -device virtserialport,chardev=result,nr=2 \
        </dev/null
}

# Says what went wrong and shows the end of the console.
report_failure() { # CONSOLE MESSAGE
    echo "lab: $2; the lab host's console ended with:" >&2
    tail -n 15 "$1" 2>/dev/null | tr -d '\r' | sed 's/^/lab | /' >&2
}

parse_arguments() {
    [ $# -gt 0 ] || { usage >&2 && exit 2; }
    [ "$1" != --help ] || { usage && exit 0; }
    program=$1 files=() command=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        [ $# -ge 2 ] || { usage >&2 && exit 2; }
        case $1 in
            --file) files+=("$2") ;;
            --timeout) timeout=$2 ;;
            --cpus) cpus=$2 ;;
            --memory) memory=$2 ;;
            --console) keep_console=$2 ;;
            *) usage >&2 && exit 2 ;;
        esac
        shift 2
    done
    [ $# -ge 2 ] || { usage >&2 && exit 2; }
    shift
    command=("$@")
}

main() {
    local work status=0 result='' file
    parse_arguments "$@"
    command -v cc >/dev/null || lab_die "cc is missing: run scripts/install-deps.sh test"
    command -v qemu-system-x86_64 >/dev/null || lab_die "qemu-system-x86_64 is missing: run scripts/install-deps.sh test"
    lab_qemu_suffices "$(installed_qemu)" ||
        lab_die "QEMU $(installed_qemu) is too old, the lab needs $LAB_QEMU: run scripts/install-deps.sh test"
    (build_host) || exit "$LAB_FAILED"
    work=$(mktemp -d "${TMPDIR:-/tmp}/vireo-lab.XXXXXX")
    # shellcheck disable=SC2064 # expanded now: the variable is gone when the trap runs
    trap "rm -rf '$work' \"\$scratch\"" EXIT
    place_mend "$work"
    add_file "$program" "/bin/$(basename "$program")" "$work/tree"
    for file in "${files[@]}"; do add_file "${file%%:*}" "${file#*:}" "$work/tree"; done
    write_command "$work/tree" "${command[@]}"
    # The kernel unpacks archives one after the other: first the cached part, then this run's.
    pack_initrd "$work/tree" "$work/run.img" 0
    cat "$LAB/initrd.img" "$work/run.img" >"$work/initrd.img"
    rm -rf "$work/tree" "$work/run.img"

    boot_host "$work" | cat || status=$?
    [ -z "$keep_console" ] || cp "$work/console" "$keep_console"
    [ ! -e "$work/result" ] || result=$(sed -n 's/^exit \([0-9]*\)$/\1/p' "$work/result")
    # A result counts even when the host failed to switch itself off.
    [ -z "$result" ] || exit "$result"
    if [ "$status" = 124 ] || [ "$status" = 137 ]; then
        report_failure "$work/console" "no end after $timeout s"
        exit 124
    fi
    report_failure "$work/console" "the lab host ended (QEMU exit code $status) before the command did"
    exit "$LAB_FAILED"
}

main "$@"
