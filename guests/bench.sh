# Sourced, not run. Adds what the benchmarks measure to an initrd tree: the programs of bench/cpu, and real programs.
# shellcheck shell=bash disable=SC2034 # the constants are for the scripts that source this

readonly BENCH_SOURCES=(cpu/build.sh cpu/programs programs parallel)
readonly REAL_PROGRAMS=(gzip openssl python3-minimal sqlite3)
readonly BUILD_TOOLS=(coreutils dash gcc grep libc6-dev make mawk sed tcc)
# Of the compiler's packages, what a build of C does not touch: two thirds of them.
readonly BUILD_UNUSED="usr/bin/*-lto-dump-12 usr/bin/*-dwp usr/bin/*-ld.gold usr/bin/*-gcov* usr/bin/*gprofng* usr/lib/*/gprofng
    usr/lib/gcc/*/12/lto* usr/lib/gcc/*/12/lib*san*.a usr/lib/*/lib*san.so* usr/lib/*/libc.a usr/lib/*/libm*.a usr/lib/*/libgprofng*
    usr/lib/*/libcrypto.so.3 usr/lib/*/libssl.so.3"

# Builds bench/cpu's programs into TREE, and one of the very same files beside the initrd, to be run natively.
install_bench() { # BENCH-DIR TREE OUTPUT-DIR
    "$1/cpu/build.sh" "$2/bin" || apt_die "the programs of bench/cpu do not build: see above"
    install -m 755 "$2/bin/cpu-programs" "$2/bin/cpu-programs-exit" "$3/"
}

# Adds programs as Debian packages them, without their documentation, and the list of the commands to measure.
install_commands() { # COMMANDS PACKAGES-DIR TREE OUTPUT-DIR
    rm -rf "$2"/usr/share/{doc,locale,man}
    cp -a --no-clobber "$2"/. "$3/"
    install -m 644 "$1" "$3/etc/bench-commands"
    install -m 644 "$1" "$4/bench-commands"
}

# Adds the project that the parallel loads build, and the loads. What they do not use of the compiler's packages goes.
install_project() { # BENCH-DIR TREE
    (
        cd "$2"
        # shellcheck disable=SC2086 # patterns are words
        rm -rf $BUILD_UNUSED
    )
    mkdir -p "$2/usr/src/parallel"
    cp "$1"/parallel/{build,pipes,Makefile,units.awk} "$2/usr/src/parallel/"
}
