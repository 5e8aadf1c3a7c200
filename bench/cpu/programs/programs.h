// The programs of the CPU benchmark. Each `run_NAME` does a fixed amount of work, the same each time it is called, and
// returns a value that depends on all of it. Each `prepare_NAME` makes its input and is not timed.
#ifndef PROGRAMS_H
#define PROGRAMS_H

#include <stddef.h>
#include <stdint.h>

// Two steps of FNV-1a's idea on 64-bit words: cheap, and every bit of `value` counts.
static inline uint64_t mix(uint64_t check, uint64_t value) {
    return (check ^ value) * 0x100000001b3u;
}

// Marsaglia's xorshift64: the input of all programs comes from it, so that it is the same everywhere.
static inline uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// arithmetic.c
uint64_t run_bits(void);
uint64_t run_popcount(void);
uint64_t run_bignum(void);
void prepare_imat(void);
uint64_t run_imat(void);
void prepare_crc32(void);
uint64_t run_crc32(void);
void prepare_sha256(void);
uint64_t run_sha256(void);

// control.c
uint64_t run_fib(void);
uint64_t run_vcall(void);
uint64_t run_interp(void);
void prepare_json(void);
uint64_t run_json(void);

// data.c
void prepare_qsort(void);
uint64_t run_qsort(void);
void prepare_tree(void);
uint64_t run_tree(void);
void prepare_list(void);
uint64_t run_list(void);
uint64_t run_sieve(void);
void prepare_hashtable(void);
uint64_t run_hashtable(void);

// text.c
void prepare_strings(void);
uint64_t run_strings(void);
void prepare_lz(void);
uint64_t run_lz(void);
void prepare_edit(void);
uint64_t run_edit(void);

// scalar.c
uint64_t run_nbody(void);
uint64_t run_mandel(void);
void prepare_filter(void);
uint64_t run_filter(void);
uint64_t run_convert(void);

// packed.c
void prepare_saxpy(void);
uint64_t run_saxpy(void);
void prepare_dmat(void);
uint64_t run_dmat(void);
void prepare_packed16(void);
uint64_t run_packed16(void);
void prepare_sad(void);
uint64_t run_sad(void);
void prepare_copy16(void);
uint64_t run_copy16(void);
void prepare_scan16(void);
uint64_t run_scan16(void);

// kernel.c
uint64_t run_getppid(void);
uint64_t run_clock(void);
uint64_t run_files(void);
uint64_t run_mmap(void);
uint64_t run_fault(void);
uint64_t run_protect(void);
uint64_t run_signal(void);
uint64_t run_segv(void);
void prepare_zero(void);
uint64_t run_zero(void);
void prepare_movsb(void);
uint64_t run_movsb(void);

// tasks.c
uint64_t run_fork(void);
uint64_t run_exec(void);
uint64_t run_pipe(void);
uint64_t run_yield(void);
uint64_t run_futex(void);

// rewrite.c
void prepare_rewrite(void);
uint64_t run_once(void);
uint64_t run_soon(void);
uint64_t run_while(void);
uint64_t run_patch(void);
uint64_t run_selfmod(void);
uint64_t run_beside(void);

// Ends the program, naming the call that failed and why.
_Noreturn void fail(const char *call);

#endif
