#!/usr/bin/env bash
# Everything that has to pass, in stages; the first failure ends it. Prints how long each stage took.
#
# Two builds, on purpose. What users run (vireo, and the engine tests of the lab) is the release build, here without link-time
# optimisation, which would take minutes.
# The tests are the dev build, which Cargo.toml optimises enough for engines: it keeps overflow checks
# and debug assertions, and skips link-time optimisation, which would run once per test program.
set -euo pipefail

# Lock step compares one of so many translations; `make lockstep` all.
readonly LOCKSTEP_ONE_OF=100
# Random cases of the CPU oracle; `make fuzz-cpu` does more.
readonly ORACLE_CASES=100000
readonly GUESTS="debian-5.10-cloud-amd64 debian-6.1-cloud-amd64 debian-6.12-cloud-amd64 debian-6.1-686 debian-6.1-686-pae
    debian-6.1-cloud-amd64-disk debian-6.1-686-pae-disk"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
release=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release
summary='' current='' began=$SECONDS

finish() {
    local status=$?
    [ ${#beside[@]} = 0 ] || kill "${beside[@]}" 2>/dev/null || true
    rm -rf "$logs"
    printf '\n%s' "$summary"
    if [ "$status" = 0 ] && [ "$current" = end ]; then
        echo "make test: all passed in $SECONDS s"
    else
        echo "make test: FAILED at: $current (after $((SECONDS - began)) s of it, $SECONDS s in all)"
        exit 1
    fi
}
trap finish EXIT

stage() { # TITLE COMMAND…
    current=$1 began=$SECONDS
    shift
    printf '\n=== %s: %s\n' "$current" "$*"
    "$@"
    summary+=$(printf '%6d s  %s' $((SECONDS - began)) "$current")$'\n'
}

# What leaves a processor idle goes on beside other stages; its output comes when it is waited for.
declare -A beside=()
logs=$(mktemp -d)
start_beside() { # NAME COMMAND…
    local name=$1
    shift
    "$@" >"$logs/$name" 2>&1 &
    beside[$name]=$!
}
end_beside() { # NAME
    local status=0
    wait "${beside[$1]}" || status=$?
    unset "beside[$1]"
    cat "$logs/$1"
    return "$status"
}

# shellcheck disable=SC2086 # names are words
build_guests() { guests/build.sh $GUESTS; }

stage "packages" scripts/install-deps.sh test
stage "format" cargo fmt --all --check
export CARGO_PROFILE_RELEASE_LTO=off
start_beside guests build_guests
stage "release build" cargo build --locked --release -p vireo-cli -p vireo-testkit -p vireo-tests
stage "lints" cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
stage "guests (began with the release build)" end_beside guests
# Built apart, so that the time of the tests is theirs.
# There are no tests in documentation.
readonly TESTS="--locked --workspace --lib --bins --tests"
# shellcheck disable=SC2086 # options are words
stage "test build" cargo test $TESTS --no-run --quiet
# The lab's emulated host keeps about one processor busy, the tests not always both.
start_beside lab scripts/lab.sh --brief "$release/vireo"
# shellcheck disable=SC2086
stage "tests" env VIREO_BIN="$release/vireo" cargo test $TESTS
stage "CPU oracle" make --no-print-directory fuzz-cpu CASES=$ORACLE_CASES
stage "lock step" scripts/lockstep.sh "$release/vireo" $LOCKSTEP_ONE_OF debian-6.1-cloud-amd64
# All of it by `make lab`.
stage "host lab (began with the tests)" end_beside lab
current=end
