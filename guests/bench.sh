# Sourced, not run. Adds what the benchmarks measure to an initrd tree: the programs of bench/cpu, and real programs.
# shellcheck shell=bash disable=SC2034 # the constants are for the scripts that source this

readonly BENCH_SOURCES=(cpu/build.sh cpu/programs programs/commands)
readonly REAL_PROGRAMS=(gzip openssl python3-minimal sqlite3)

# Builds bench/cpu's programs into TREE, and one of the very same files beside the initrd, to be run natively.
install_bench() { # BENCH-DIR TREE OUTPUT-DIR
    "$1/cpu/build.sh" "$2/bin" || apt_die "the programs of bench/cpu do not build: see above"
    install -m 755 "$2/bin/cpu-programs" "$2/bin/cpu-programs-exit" "$3/"
}

# Adds real programs as Debian packages them, without their documentation, and the list of the commands to measure.
install_programs() { # BENCH-DIR PACKAGES-DIR TREE OUTPUT-DIR
    rm -rf "$2"/usr/share/{doc,locale,man}
    cp -a --no-clobber "$2"/. "$3/"
    install -m 644 "$1/programs/commands" "$3/etc/bench-commands"
    install -m 644 "$1/programs/commands" "$4/bench-commands"
}
