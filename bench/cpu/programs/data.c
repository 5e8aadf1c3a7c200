// Data structures: loads that wait for loads, stores, and branches that cannot be foreseen.
#include "programs.h"

enum { SORTED = 20000 };
static int32_t unsorted[SORTED], sorted[SORTED];

void prepare_qsort(void) {
    uint64_t state = 1234567891u;
    for (int i = 0; i < SORTED; i++)
        unsorted[i] = (int32_t)next_random(&state);
}

static void insertion_sort(int32_t *first, int32_t *last) {
    for (int32_t *next = first + 1; next <= last; next++) {
        int32_t value = *next, *to = next;
        for (; to > first && to[-1] > value; to--)
            *to = to[-1];
        *to = value;
    }
}

// Hoare's partition around the middle element.
static void quick_sort(int32_t *first, int32_t *last) {
    while (last - first > 12) {
        int32_t pivot = first[(last - first) / 2], *low = first - 1, *high = last + 1;
        for (;;) {
            do
                low++;
            while (*low < pivot);
            do
                high--;
            while (*high > pivot);
            if (low >= high)
                break;
            int32_t swap = *low;
            *low = *high;
            *high = swap;
        }
        quick_sort(first, high);
        first = high + 1;
    }
    insertion_sort(first, last);
}

// Sorting of random numbers: mispredicted branches.
uint64_t run_qsort(void) {
    uint64_t check = 0;
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < SORTED; i++)
            sorted[i] = unsorted[i] ^ round;
        quick_sort(sorted, sorted + SORTED - 1);
        for (int i = 0; i < SORTED; i += 97)
            check = mix(check, (uint32_t)sorted[i]);
    }
    return check;
}

enum { NODES = 8000 };
static struct node {
    struct node *child[2];
    uint64_t key;
} nodes[NODES];
static uint64_t keys[NODES];

void prepare_tree(void) {
    uint64_t state = 987654321u;
    for (int i = 0; i < NODES; i++)
        keys[i] = next_random(&state);
}

// Where the key is, or where it belongs.
static struct node **place_of(struct node **root, uint64_t key) {
    struct node **link = root;
    while (*link && (*link)->key != key)
        link = &(*link)->child[key > (*link)->key];
    return link;
}

// A binary search tree: built, then every second search finds its key.
uint64_t run_tree(void) {
    uint64_t check = 0;
    for (uint64_t round = 0; round < 16; round++) {
        struct node *root = NULL;
        for (int i = 0; i < NODES; i++) {
            nodes[i] = (struct node){{NULL, NULL}, keys[i] ^ round << 60};
            *place_of(&root, nodes[i].key) = &nodes[i];
        }
        for (int i = 0; i < NODES; i++) {
            struct node *found = *place_of(&root, (keys[i] ^ round << 60) + (i & 1));
            check = mix(check, found ? (uint64_t)(found - nodes) : NODES);
        }
    }
    return check;
}

enum { CELLS = 4096 };
static struct cell {
    struct cell *next;
    uint64_t value;
} cells[CELLS];

// One ring through all cells in random order (Sattolo's shuffle).
void prepare_list(void) {
    static int order[CELLS];
    uint64_t state = 192837465u;
    for (int i = 0; i < CELLS; i++)
        order[i] = i;
    for (int i = CELLS - 1; i > 0; i--) {
        int j = (int)(next_random(&state) % (uint64_t)i), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (int i = 0; i < CELLS; i++)
        cells[order[i]] = (struct cell){&cells[order[(i + 1) % CELLS]], next_random(&state)};
}

// Pointer chasing within 64 KiB: the latency of a load.
uint64_t run_list(void) {
    uint64_t check = 0;
    const struct cell *cell = cells;
    for (int i = 0; i < 8000000; i++) {
        check += cell->value;
        cell = cell->next;
    }
    return mix(check, (uint64_t)(cell - cells));
}

// Sieve of Eratosthenes: byte stores with a growing stride.
uint64_t run_sieve(void) {
    enum { LIMIT = 200000 };
    static uint8_t composite[LIMIT];
    uint64_t check = 0;
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < LIMIT; i++)
            composite[i] = 0;
        for (int i = 2; i * i < LIMIT; i++)
            if (!composite[i])
                for (int j = i * i; j < LIMIT; j += i)
                    composite[j] = 1;
        for (int i = 2 + round; i < LIMIT; i++)
            check += composite[i] == 0;
    }
    return check;
}

enum { SLOTS = 16384 };
static struct {
    uint64_t key, count;
} slots[SLOTS];

void prepare_hashtable(void) {
    for (int i = 0; i < SLOTS; i++)
        slots[i].key = slots[i].count = 0;
}

// A hash table with linear probing: counts how often each of 8192 keys comes.
uint64_t run_hashtable(void) {
    uint64_t state = 1029384756u, check = 0;
    prepare_hashtable();
    for (int i = 0; i < 6000000; i++) {
        uint64_t key = (next_random(&state) % 8192 + 1) * 0x9e3779b97f4a7c15u;
        uint64_t slot = key >> 50;
        while (slots[slot].key != key && slots[slot].key != 0)
            slot = (slot + 1) % SLOTS;
        slots[slot].key = key;
        check += ++slots[slot].count;
    }
    return check;
}
