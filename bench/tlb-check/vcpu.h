// What GS points to: tables of guest pages as several designs of the check want them. vcpu.inc has the offsets for code.
#ifndef VCPU_H
#define VCPU_H

#include <stddef.h>
#include <stdint.h>

enum { ENTRIES = 1024, WIDE = 1 << 20 };

// As the translator's: tags are minus the page's address. One entry more than is ever looked up is for accesses that
// missed: its page begins at address 0.
struct entry {
    uint64_t read, write, exec, host;
    const uint8_t *attention;
    uint64_t addend, rest[2];
};

extern struct vcpu {
    struct entry entries[ENTRIES + 1];
    struct {
        uint64_t tag, host;
        const uint8_t *attention;
        uint64_t rest;
    } stack;
    uint64_t rax, flags, last[2], pick, above;
    uint64_t env[8], tcg_mask, tcg_table, exit;
    uint64_t small_tag[256], small_addend[256];
    uint64_t short_read[ENTRIES + 1], short_write[ENTRIES + 1], short_addend[ENTRIES + 1];
    const uint8_t *short_attention[ENTRIES + 1];
    struct {
        uint64_t read, write, exec, addend;
    } tcg[ENTRIES];
    uint64_t wide_read[WIDE + 1], wide_write[WIDE + 1], wide_addend[WIDE + 1];
    const uint8_t *wide_attention[WIDE + 1];
} vcpu;

// Puts a page into all tables. `attention`: a byte that is 0.
static inline void fill(uint64_t linear, uint64_t host, const uint8_t *attention) {
    uint64_t page = linear >> 12, addend = host - linear;
    size_t slot = page % ENTRIES, wide = page % WIDE;
    vcpu.entries[slot] = (struct entry){-linear, -linear, -linear, host, attention, addend, {0, 0}};
    vcpu.small_tag[page % 256] = -linear;
    vcpu.small_addend[page % 256] = addend;
    vcpu.short_read[slot] = vcpu.short_write[slot] = vcpu.wide_read[wide] = vcpu.wide_write[wide] = -linear;
    vcpu.short_addend[slot] = vcpu.wide_addend[wide] = addend;
    vcpu.short_attention[slot] = vcpu.wide_attention[wide] = attention;
    vcpu.tcg[slot].read = linear;
    vcpu.tcg[slot].addend = addend;
}

#endif
