#!/usr/bin/env bash
# Fuzzes what a guest, or who made an image, can reach: each target for so many seconds, from what earlier runs found
# (fuzz/corpus). Fails at the first input that does harm, which stays in fuzz/artifacts.
set -euo pipefail
export LC_ALL=C

# An input that takes longer, in seconds, or more memory, in MiB, is one that does harm.
readonly TOO_LONG=20 TOO_MUCH=2048

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 1 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: fuzz.sh SECONDS [TARGET…]" >&2
    exit 2
fi
seconds=$1
shift
tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools
[ -x "$tools/bin/cargo-fuzz" ] || cargo install --quiet --locked --root "$tools" --version 0.13.2 cargo-fuzz
export PATH="$tools/bin:$PATH"
# Coverage needs no sanitizer, and so no other compiler than ours; all of this code is safe Rust but for guest memory.
fuzz() { # COMMAND TARGET… -- ARGUMENT…
    local command=$1
    shift
    cargo fuzz "$command" --sanitizer none "$@"
}

if [ $# = 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
    set -- "${targets[@]}"
fi
fuzz build
for target; do
    log=$(mktemp)
    if ! fuzz run "$target" -- -max_total_time="$seconds" -timeout=$TOO_LONG -rss_limit_mb=$TOO_MUCH \
        -max_len=4096 -print_final_stats=1 >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "fuzz: $target: FAILED" >&2
        exit 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
    cover=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
    echo "fuzz: $target: $runs inputs in $seconds s, none did harm ($cover)"
    rm "$log"
done
