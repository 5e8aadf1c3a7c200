// Latency of a pointer chase under designs of the inline TLB check: cycles per link, best of many short runs, all designs
// in turn. chase.S has the loops. Output: "LAYOUT DESIGN CYCLES", a line for each.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vcpu.h"

enum { PAGE = 4096, LINKS = 20000, MOST_PAGES = 1024 };

struct vcpu vcpu __attribute__((aligned(4096)));

typedef uint64_t loop(uint64_t cell, uint64_t links);
#define DESIGNS(X)                                                                                                     \
    X(native) X(native_next) X(tcg) X(tag_each) X(tag_group) X(tag_pair) X(addend_each) X(addend_group) X(addend_next) \
    X(addend_next_low) X(arrays_next) X(small_next) X(wide_each) X(wide_group) X(wide_next) X(wide_next_low)           \
    X(flag_free) X(last_page) X(last_page_low) X(last_addend)
#define DECLARE(name) loop chase_##name;
#define LIST(name) {#name, chase_##name, 1e9},
DESIGNS(DECLARE)
loop chase_cycle;
static struct design {
    const char *name;
    loop *run;
    double best;
} designs[] = {DESIGNS(LIST)};
enum { COUNT = sizeof designs / sizeof *designs };

// How pages and cells lie.
struct layout {
    const char *name;
    unsigned pages;
    int scattered;  // pages of the host in random order, else in the guest's order
    unsigned stays; // how many of a hundred links stay in the page, beyond those that do by chance; 100: cells in order
};
static const struct layout layouts[] = {
    {"list", 16, 1, 0},  {"contiguous", 16, 0, 0}, {"one-page", 1, 1, 0},
    {"half", 16, 1, 50}, {"in-order", 16, 1, 100}, {"large", 256, 1, 0},
};

static uint64_t random_state = 88172645463325252u;
static unsigned random_below(unsigned n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state % n);
}

// A permutation of n numbers.
static void shuffle(unsigned *order, unsigned n) {
    for (unsigned i = 0; i < n; i++)
        order[i] = i;
    for (unsigned i = n - 1; i > 0; i--) {
        unsigned j = random_below(i + 1), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

// The cells in the order of the ring.
static void order_cells(const struct layout *l, unsigned *cells) {
    static unsigned at[MOST_PAGES][256], used[MOST_PAGES];
    unsigned page = 0;
    for (unsigned p = 0; p < l->pages; p++)
        shuffle(at[p], 256);
    memset(used, 0, sizeof used);
    for (unsigned i = 0; i < l->pages * 256; i++) {
        if (used[page] == 256 || random_below(100) >= l->stays)
            page = random_below(l->pages);
        while (used[page] == 256)
            page = (page + 1) % l->pages;
        cells[i] = l->stays == 100 ? i : page * 256 + at[page][used[page]++];
        page = cells[i] / 256;
    }
}

// Makes a ring in the guest's memory, and one for native code in memory that lies the same: the first cell of each.
static void make_ring(const struct layout *l, uint64_t linear, uint8_t *host, uint8_t *native, uint64_t first[2]) {
    static unsigned pages[MOST_PAGES], cells[MOST_PAGES * 256];
    unsigned count = l->pages * 256;
    shuffle(pages, l->pages);
    for (unsigned i = 0; !l->scattered && i < l->pages; i++)
        pages[i] = i;
    order_cells(l, cells);
    for (unsigned i = 0; i < l->pages; i++)
        fill(linear + i * PAGE, (uint64_t)(host + pages[i] * PAGE), host);
    for (unsigned i = 0; i < count; i++) {
        unsigned from = cells[i], to = cells[(i + 1) % count];
        size_t at = pages[from / 256] * PAGE + from % 256 * 16, next = pages[to / 256] * PAGE + to % 256 * 16;
        memcpy(host + at, (uint64_t[2]){linear + to * 16, from}, 16);
        memcpy(native + at, (uint64_t[2]){(uint64_t)native + next, from}, 16);
    }
    first[0] = (uint64_t)(native + pages[cells[0] / 256] * PAGE + cells[0] % 256 * 16);
    first[1] = linear + cells[0] * 16;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Keeps the best time of a link, after a run that warms the caches; the sum of all values must be that of the others.
static void measure(struct design *d, const uint64_t first[2], uint64_t *check) {
    int native = d->run == chase_native || d->run == chase_native_next;
    d->run(first[!native], LINKS);
    double start = now();
    uint64_t sum = d->run(first[!native], LINKS);
    double taken = (now() - start) / LINKS;
    d->best = taken < d->best ? taken : d->best;
    if (!native && *check != 0 && sum != *check) {
        fprintf(stderr, "%s computes something else than the others\n", d->name);
        exit(1);
    }
    *check = native ? *check : sum;
}

int main(int count, char **words) {
    int rounds = count > 1 ? atoi(words[1]) : 300;
    uint64_t linear = 0x7f5b12340000, first[2];
    size_t size = (size_t)MOST_PAGES * PAGE;
    uint8_t *memory = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || syscall(SYS_arch_prctl, 0x1001, &vcpu) != 0)
        return 1;
    vcpu.pick = 0x3ff000;
    vcpu.above = ~0xfffull;
    vcpu.env[7] = (uint64_t)&vcpu;
    vcpu.tcg_mask = (ENTRIES - 1) << 5;
    vcpu.tcg_table = (uint64_t)vcpu.tcg;
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
        double cycle = 1e9;
        uint64_t check = 0;
        make_ring(&layouts[l], linear, memory, memory + size, first);
        for (int i = 0; i < COUNT; i++)
            designs[i].best = 1e9;
        for (int round = 0; round < rounds; round++) {
            double start = now();
            chase_cycle(0, 1000);
            double taken = (now() - start) / 64000;
            cycle = taken < cycle ? taken : cycle;
            for (int i = 0; i < COUNT; i++)
                measure(&designs[i], first, &check);
        }
        for (int i = 0; i < COUNT; i++)
            printf("%s %s %.1f\n", layouts[l].name, designs[i].name, designs[i].best / cycle);
    }
    return 0;
}
