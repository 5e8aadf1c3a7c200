// The CPU benchmark's programs, each run in a process of its own and timed. README.md tells how it is used.
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "commands.h"
#include "programs.h"

struct program {
    const char *name, *group;
    void (*prepare)(void);
    uint64_t (*run)(void);
};

static const struct program programs[] = {
    {"bits", "integer", NULL, run_bits},
    {"popcount", "integer", NULL, run_popcount},
    {"bignum", "integer", NULL, run_bignum},
    {"imat", "integer", prepare_imat, run_imat},
    {"crc32", "integer", prepare_crc32, run_crc32},
    {"sha256", "integer", prepare_sha256, run_sha256},
    {"fib", "integer", NULL, run_fib},
    {"vcall", "integer", NULL, run_vcall},
    {"interp", "integer", NULL, run_interp},
    {"json", "integer", prepare_json, run_json},
    {"qsort", "integer", prepare_qsort, run_qsort},
    {"tree", "integer", prepare_tree, run_tree},
    {"list", "integer", prepare_list, run_list},
    {"sieve", "integer", NULL, run_sieve},
    {"hashtable", "integer", prepare_hashtable, run_hashtable},
    {"strings", "integer", prepare_strings, run_strings},
    {"lz", "integer", prepare_lz, run_lz},
    {"edit", "integer", prepare_edit, run_edit},
    {"nbody", "sse", NULL, run_nbody},
    {"mandel", "sse", NULL, run_mandel},
    {"filter", "sse", prepare_filter, run_filter},
    {"convert", "sse", NULL, run_convert},
    {"saxpy", "sse", prepare_saxpy, run_saxpy},
    {"dmat", "sse", prepare_dmat, run_dmat},
    {"packed16", "sse", prepare_packed16, run_packed16},
    {"sad", "sse", prepare_sad, run_sad},
    {"copy16", "sse", prepare_copy16, run_copy16},
    {"scan16", "sse", prepare_scan16, run_scan16},
    {"getppid", "system", NULL, run_getppid},
    {"clock", "system", NULL, run_clock},
    {"files", "system", NULL, run_files},
    {"mmap", "system", NULL, run_mmap},
    {"fault", "system", NULL, run_fault},
    {"protect", "system", NULL, run_protect},
    {"signal", "system", NULL, run_signal},
    {"segv", "system", NULL, run_segv},
    {"zero", "system", prepare_zero, run_zero},
    {"movsb", "system", prepare_movsb, run_movsb},
    {"fork", "system", NULL, run_fork},
    {"exec", "system", NULL, run_exec},
    {"pipe", "system", NULL, run_pipe},
    {"yield", "system", NULL, run_yield},
    {"futex", "system", NULL, run_futex},
    {"once", "rewrite", prepare_rewrite, run_once},
    {"soon", "rewrite", prepare_rewrite, run_soon},
    {"while", "rewrite", prepare_rewrite, run_while},
    {"patch", "rewrite", prepare_rewrite, run_patch},
    {"selfmod", "rewrite", prepare_rewrite, run_selfmod},
    {"beside", "rewrite", prepare_rewrite, run_beside},
};
enum { PROGRAMS = sizeof programs / sizeof *programs };

_Noreturn void fail(const char *call) {
    printf("VIREO-ERROR %s: %s\n", call, strerror(errno));
    fflush(stdout);
    _exit(1);
}

// Runs it so many times and prints "VIREO-CPU NAME BEST TOTAL CHECK": seconds of the best time, of all together.
static void measure(const struct program *program, long repeats) {
    double best = 1e9, total = 0;
    uint64_t check = 0;
    if (program->prepare)
        program->prepare();
    for (long i = 0; i < repeats; i++) {
        double start = seconds_now();
        uint64_t value = program->run();
        double taken = seconds_now() - start;
        if (i > 0 && value != check)
            printf("VIREO-ERROR %s: %016" PRIx64 " the first time, then %016" PRIx64 "\n", program->name, check, value);
        check = value;
        total += taken;
        best = taken < best ? taken : best;
    }
    printf("VIREO-CPU %s %.9f %.9f %016" PRIx64 "\n", program->name, best, total, check);
}

// In a process of its own: each starts from the same state, and one that crashes takes no other with it.
static void measure_apart(const struct program *program, long repeats) {
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        measure(program, repeats);
        fflush(stdout);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child)
        fail("waitpid");
    if (WIFSIGNALED(status))
        printf("VIREO-ERROR %s: ended by signal %d\n", program->name, WTERMSIG(status));
}

// Measures the programs of a list NAME,NAME,…, or all.
static int measure_list(char *names, long repeats) {
    int unknown = 0;
    if (!names) {
        for (int i = 0; i < PROGRAMS; i++)
            measure_apart(&programs[i], repeats);
        return 0;
    }
    for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
        int i = 0;
        while (i < PROGRAMS && strcmp(programs[i].name, name) != 0)
            i++;
        if (i < PROGRAMS)
            measure_apart(&programs[i], repeats);
        else
            unknown = printf("VIREO-ERROR %s: no such program\n", name);
    }
    return unknown != 0;
}

// Requests "REPEATS NAME" on standard input; "VIREO-READY" before each.
static void serve(int (*handle)(char *names, long repeats)) {
    char line[128];
    for (;;) {
        printf("VIREO-READY\n");
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin))
            return;
        char *names;
        long repeats = strtol(line, &names, 10);
        names += strspn(names, " ");
        names[strcspn(names, "\r\n")] = 0;
        if (strcmp(names, "end") == 0)
            return;
        handle(names, repeats);
    }
}

static void list_programs(void) {
    printf("VIREO-COMPILER gcc %s\n", __VERSION__);
    for (int i = 0; i < PROGRAMS; i++)
        printf("VIREO-PROGRAM %s %s\n", programs[i].name, programs[i].group);
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    long repeats = strtol(what, NULL, 10);
    if (strcmp(what, "list") == 0 && count == 2)
        list_programs();
    else if (strcmp(what, "list") == 0 && count == 3 && read_commands(words[2]))
        list_commands();
    else if (strcmp(what, "serve") == 0 && count == 2)
        serve(measure_list);
    else if (strcmp(what, "serve") == 0 && count == 3 && read_commands(words[2]))
        serve(measure_command);
    else if (repeats > 0 && count <= 3)
        return measure_list(count == 3 ? words[2] : NULL, repeats);
    else {
        fprintf(stderr, "usage: cpu-programs REPEATS [NAME,…] | list [COMMANDS] | serve [COMMANDS]\n");
        return 2;
    }
    return 0;
}
