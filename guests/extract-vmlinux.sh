#!/usr/bin/env bash
# Unpacks the ELF kernel out of a bzImage, for booting by PVH.
set -euo pipefail
export LC_ALL=C

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Prints the little-endian number of SIZE bytes at OFFSET of the image.
field() { # OFFSET SIZE
    local value
    value=$(od -An -v -t "u$2" -j "$1" -N "$2" "$image" | tr -d ' ')
    [ -n "$value" ] || die "$image is cut short"
    echo "$value"
}

# The command that unpacks a payload, by its first bytes (LZ4 in its legacy frame format).
unpacker() { # MAGIC
    case $1 in
        1f8b*) echo "gzip -dc" ;;
        fd377a585a00) echo "xz -dc" ;;
        28b52ffd*) echo "zstd -dcq" ;;
        02214c18*) echo "lz4 -dcq" ;;
        *) die "$image: kernel compressed in an unknown way (magic $1)" ;;
    esac
}

[ $# = 2 ] || die "usage: extract-vmlinux.sh BZIMAGE VMLINUX"
image=$1 output=$2
[ -f "$image" ] || die "$image: no such file"
# Linux x86 boot protocol: "HdrS" at 0x202, setup sectors at 0x1f1 (0 means 4), and since protocol
# 2.08 the payload's offset and length, counted from the protected-mode code, at 0x248 and 0x24c.
[ "$(field $((0x202)) 4)" = $((0x53726448)) ] || die "$image is not a bzImage"
[ "$(field $((0x206)) 2)" -ge $((0x208)) ] || die "$image: boot protocol too old (before 2.08)"
sectors=$(field $((0x1f1)) 1)
offset=$(((${sectors/#0/4} + 1) * 512 + $(field $((0x248)) 4)))
length=$(field $((0x24c)) 4)
magic=$(od -An -v -t x1 -j "$offset" -N 6 "$image" | tr -d ' \n')
command=$(unpacker "$magic")
command -v "${command%% *}" >/dev/null || die "${command%% *} is missing: run scripts/install-deps.sh test"

part=$output.part.$$
trap 'rm -f "$part"' EXIT
# The payload's last four bytes are its unpacked size: in gzip a part of the stream, otherwise
# appended by the kernel's build.
trailer=4
[ "${command%% *}" != gzip ] || trailer=0
dd if="$image" iflag=skip_bytes,count_bytes skip="$offset" count=$((length - trailer)) bs=1M status=none |
    $command >"$part" || die "$image: damaged payload"
expected=$(field $((offset + length - 4)) 4)
actual=$(stat -c %s "$part")
[ "$actual" = "$expected" ] || die "$image: unpacked to $actual bytes instead of $expected"
[ "$(head -c 4 "$part" | od -An -t x1 | tr -d ' ')" = 7f454c46 ] || die "$image: payload is no ELF file"
mv "$part" "$output"
