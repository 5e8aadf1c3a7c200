// Runs one program of bench/cpu whose accesses are checked (or are not): "driver NAME REPEATS" prints the best time in
// nanoseconds of processor time, the check value, and how many accesses missed in all runs but the first.
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "programs.h"
#include "vcpu.h"

struct vcpu vcpu __attribute__((aligned(4096)));
static const uint8_t no_attention;
static uint64_t misses;

static void nothing(void) {}
#define PROGRAMS(X)                                                                                                    \
    X(imat, prepare_imat) X(crc32, prepare_crc32) X(bignum, nothing) X(sha256, prepare_sha256) X(fib, nothing)         \
    X(vcall, nothing) X(interp, nothing) X(json, prepare_json) X(qsort, prepare_qsort) X(tree, prepare_tree)           \
    X(list, prepare_list) X(sieve, nothing) X(hashtable, prepare_hashtable) X(strings, prepare_strings)                \
    X(lz, prepare_lz) X(edit, prepare_edit) X(nbody, nothing) X(saxpy, prepare_saxpy) X(dmat, prepare_dmat)
#define LIST(name, prepare) {#name, prepare, run_##name},
static const struct program {
    const char *name;
    void (*prepare)(void);
    uint64_t (*run)(void);
} programs[] = {PROGRAMS(LIST)};
enum { COUNT = sizeof programs / sizeof *programs };

_Noreturn void fail(const char *call) {
    perror(call);
    exit(1);
}

// An access to `linear` missed (runtime.S): guest and host are the same here.
void missed(uint64_t linear) {
    misses++;
    fill(linear & ~0xfffull, linear & ~0xfffull, &no_attention);
    vcpu.stack.tag = -(linear & ~0xfffull);
    vcpu.stack.host = linear & ~0xfffull;
}

// Starts anew with the stack where it always is: by chance, it would share entries of the tables with other pages.
static void stop_random_addresses(char **words) {
    int now = personality(0xffffffff);
    if (now != -1 && !(now & ADDR_NO_RANDOMIZE) && personality((unsigned)now | ADDR_NO_RANDOMIZE) != -1)
        execv("/proc/self/exe", words);
}

static void start_vcpu(void) {
    if (syscall(SYS_arch_prctl, 0x1001, &vcpu) != 0)
        fail("arch_prctl");
    for (size_t slot = 0; slot <= ENTRIES; slot++)
        vcpu.entries[slot].attention = vcpu.short_attention[slot] = &no_attention;
    vcpu.entries[ENTRIES].read = vcpu.entries[ENTRIES].write = 0x1000;
    vcpu.wide_attention[WIDE] = &no_attention;
    vcpu.stack.attention = &no_attention;
    vcpu.pick = 0x3ff000;
    vcpu.above = ~0xfffull;
}

// Has the program's stack begin near the end of a page: whether it crosses a page's border would else be chance.
static __attribute__((noinline)) uint64_t run_on_one_page(const struct program *program) {
    enum { PAGE = 4096, BEGIN = 3968 };
    uint64_t here = (uint64_t)__builtin_frame_address(0);
    volatile char *room = __builtin_alloca((here - BEGIN) % PAGE + 1);
    *room = 0;
    return program->run();
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int main(int count, char **words) {
    uint64_t best = UINT64_MAX, check = 0, before = 0;
    int at = 0, repeats = count == 3 ? atoi(words[2]) : 0;
    while (at < COUNT && (repeats < 1 || strcmp(programs[at].name, words[1]) != 0))
        at++;
    if (at == COUNT) {
        fprintf(stderr, "usage: driver NAME REPEATS\n");
        return 2;
    }
    stop_random_addresses(words);
    start_vcpu();
    programs[at].prepare();
    for (int i = 0; i <= repeats; i++) {
        uint64_t start = now();
        uint64_t value = run_on_one_page(&programs[at]);
        uint64_t taken = now() - start;
        if (i == 0)
            before = misses;
        else if (value != check)
            fail("another check value");
        best = i > 0 && taken < best ? taken : best;
        check = value;
    }
    printf("%" PRIu64 " %016" PRIx64 " %" PRIu64 "\n", best, check, misses - before);
    return 0;
}
