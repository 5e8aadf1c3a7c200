#!/usr/bin/env bash
# Builds the CPU benchmark's programs: DIR/cpu-programs and DIR/cpu-programs-exit, static, for any x86-64 (SSE2). One
# file runs natively and in all guests.
set -euo pipefail
export LC_ALL=C

[ $# = 1 ] || { echo "usage: build.sh DIR" >&2 && exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/programs"
output=$(mktemp -d)
trap 'rm -rf "$output"' EXIT

# The loops are measured as written: not replaced by the library's functions, which choose their code by the processor.
flags=(-std=gnu11 -Wall -Wextra -Werror -march=x86-64 -mtune=generic -fno-pie -fcf-protection=none
    -fno-stack-protector -fno-builtin -fno-tree-loop-distribute-patterns -fno-math-errno -ffp-contract=off)
for source in *.c; do
    case $source in
        exit.c) continue ;;
        packed.c) level=-O3 ;;
        *) level=-O2 ;;
    esac
    gcc "${flags[@]}" "$level" -c "$source" -o "$output/${source%.c}.o"
done
gcc -static -no-pie -s "$output"/*.o -o "$output/cpu-programs"
gcc "${flags[@]}" -O2 -static -no-pie -nostdlib -s exit.c -o "$output/cpu-programs-exit"
install -m 755 "$output/cpu-programs" "$output/cpu-programs-exit" "$1"
