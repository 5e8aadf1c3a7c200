// Code that changes while it runs: what a compiler at run time does, and what loops do that write to themselves. An engine
// that translates code must not spend more on it than it gets back.
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "programs.h"

// A function of the form `for (i = 0; i < rounds; i++) x = (x ^ immediate) * 5;`, and where its immediate stands.
static const uint8_t loop[] = {
    0x81, 0xf7, 0, 0, 0, 0, // xor edi, immediate
    0x8d, 0x3c, 0xbf,       // lea edi, [rdi+rdi*4]
    0xff, 0xce,             // dec esi
    0x75, 0xf3,             // jnz to the first
    0x89, 0xf8,             // mov eax, edi
    0xc3,                   // ret
};
enum { IMMEDIATE = 2, PAGE = 4096, APART = 64 };

typedef uint32_t function(uint32_t x, uint32_t rounds);

static uint8_t *code;

void prepare_rewrite(void) {
    code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        fail("mmap");
}

static function *make(uint8_t *at, uint32_t immediate) {
    memcpy(at, loop, sizeof loop);
    memcpy(at + IMMEDIATE, &immediate, sizeof immediate);
    return (function *)at;
}

// Makes functions one after the other in a page, and calls each so often.
static uint64_t make_and_call(uint32_t functions, uint32_t calls, uint32_t rounds) {
    uint32_t x = 1;
    uint64_t check = 0;
    for (uint32_t n = 0; n < functions; n++) {
        function *f = make(code + n * APART % PAGE, n * 0x9e3779b9);
        for (uint32_t call = 0; call < calls; call++)
            x = f(x, rounds);
        check = mix(check, x);
    }
    return check;
}

// Each function runs once, a few rounds: it is not worth a translation.
uint64_t run_once(void) {
    return make_and_call(40000, 1, 4);
}

// Each runs just so often that it looks worth one, and is gone.
uint64_t run_soon(void) {
    return make_and_call(10000, 40, 1);
}

// Each runs for a while.
uint64_t run_while(void) {
    return make_and_call(1000, 40, 100);
}

// A call changes the function that it calls, which has run a few rounds before: an inline cache that never holds.
uint64_t run_patch(void) {
    uint32_t x = 1;
    function *f = make(code, 0);
    for (uint32_t n = 0; n < 40000; n++) {
        uint32_t immediate = n * 0x9e3779b9;
        memcpy(code + IMMEDIATE, &immediate, sizeof immediate);
        x = f(x, 8);
    }
    return x;
}

// A loop that changes itself in each round: `for (; i; i--) { x += immediate; immediate = x ^ i; }`.
uint64_t run_selfmod(void) {
    static const uint8_t body[] = {
        0x81, 0xc7, 1, 0, 0, 0,             // add edi, immediate
        0x89, 0xf8,                         // mov eax, edi
        0x31, 0xf0,                         // xor eax, esi
        0x89, 0x05, 0xf2, 0xff, 0xff, 0xff, // mov [rip-14], eax: the immediate
        0xff, 0xce,                         // dec esi
        0x75, 0xec,                         // jnz to the first
        0x89, 0xf8,                         // mov eax, edi
        0xc3,                               // ret
    };
    memcpy(code, body, sizeof body);
    return ((function *)code)(1, 200000);
}

// A loop that counts in memory of its own page, beside its code.
uint64_t run_beside(void) {
    static const uint8_t body[] = {
        0x01, 0x3d, 0xfa, 0x07, 0x00, 0x00, // add [rip+2042], edi: half a page further
        0xff, 0xce,                         // dec esi
        0x75, 0xf6,                         // jnz to the first
        0x8b, 0x05, 0xf0, 0x07, 0x00, 0x00, // mov eax, [rip+2032]: the same place
        0xc3,                               // ret
    };
    memset(code, 0, PAGE);
    memcpy(code, body, sizeof body);
    return ((function *)code)(3, 1000000);
}
