// Packed SSE2. Loops that a compiler vectorises (this file is built with -O3), and two that are written by hand as
// libraries do.
#include <emmintrin.h>

#include "programs.h"

enum { VECTOR = 4096 };
static float vector_x[VECTOR], vector_y[VECTOR];

void prepare_saxpy(void) {
    uint64_t state = 22360679774u;
    for (int i = 0; i < VECTOR; i++) {
        vector_x[i] = (float)(next_random(&state) % 2048) - 1024;
        vector_y[i] = 0;
    }
}

// y = a x + y in single precision, 16 KiB each.
uint64_t run_saxpy(void) {
    for (int i = 0; i < VECTOR; i++)
        vector_y[i] = 1;
    for (int round = 0; round < 70003; round++) {
        float factor = (float)(round % 7 - 3);
        for (int i = 0; i < VECTOR; i++)
            vector_y[i] += factor * vector_x[i];
    }
    double sum = 0;
    for (int i = 0; i < VECTOR; i++)
        sum += vector_y[i];
    return (uint64_t)(int64_t)sum;
}

enum { DMAT = 64 };
static double dmat_a[DMAT][DMAT], dmat_b[DMAT][DMAT], dmat_c[DMAT][DMAT];

void prepare_dmat(void) {
    uint64_t state = 24494897427u;
    for (int i = 0; i < DMAT; i++)
        for (int j = 0; j < DMAT; j++) {
            dmat_a[i][j] = (double)(next_random(&state) % 100) - 50;
            dmat_b[i][j] = (double)(next_random(&state) % 100) - 50;
        }
}

// Product of matrices in double precision, two columns at a time.
uint64_t run_dmat(void) {
    uint64_t check = 0;
    for (int round = 0; round < 500; round++) {
        for (int i = 0; i < DMAT; i++) {
            for (int j = 0; j < DMAT; j++)
                dmat_c[i][j] = round;
            for (int k = 0; k < DMAT; k++)
                for (int j = 0; j < DMAT; j++)
                    dmat_c[i][j] += dmat_a[i][k] * dmat_b[k][j];
        }
        check = mix(check, (uint64_t)(int64_t)dmat_c[round % DMAT][round * 7 % DMAT]);
    }
    return check;
}

static int16_t pixels_a[VECTOR], pixels_b[VECTOR], blended[VECTOR];

void prepare_packed16(void) {
    uint64_t state = 26457513110u;
    for (int i = 0; i < VECTOR; i++) {
        pixels_a[i] = (int16_t)(next_random(&state) % 256);
        pixels_b[i] = (int16_t)(next_random(&state) % 256);
    }
}

// Blending of pixels in 16-bit integers: products, shifts, minima.
uint64_t run_packed16(void) {
    uint64_t check = 0;
    for (int round = 0; round < 10000; round++) {
        int16_t weight = (int16_t)(round % 129);
        for (int i = 0; i < VECTOR; i++) {
            int16_t value = (int16_t)((pixels_a[i] * weight + pixels_b[i] * (128 - weight)) >> 7);
            blended[i] = value < 200 ? value : 200;
        }
        check = mix(check, (uint64_t)blended[round % VECTOR]);
    }
    return check;
}

enum { FRAME = 256, TILE = 16 };
static uint8_t frame[FRAME][FRAME], tile[TILE][TILE];

void prepare_sad(void) {
    uint64_t state = 28284271247u;
    for (int i = 0; i < FRAME; i++)
        for (int j = 0; j < FRAME; j++)
            frame[i][j] = (uint8_t)next_random(&state);
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < TILE; j++)
            tile[i][j] = (uint8_t)(frame[i + 100][j + 77] + i % 3);
}

static uint64_t difference(int y, int x) {
    __m128i sum = _mm_setzero_si128();
    for (int i = 0; i < TILE; i++) {
        __m128i there = _mm_loadu_si128((const __m128i *)&frame[y + i][x]);
        sum = _mm_add_epi64(sum, _mm_sad_epu8(there, _mm_loadu_si128((const __m128i *)tile[i])));
    }
    return (uint64_t)_mm_cvtsi128_si64(sum) + (uint64_t)_mm_cvtsi128_si64(_mm_unpackhi_epi64(sum, sum));
}

// Search for a tile in a frame by the sum of absolute differences, unaligned loads.
uint64_t run_sad(void) {
    uint64_t check = 0;
    for (int round = 0; round < 70; round++) {
        uint64_t best = UINT64_MAX, where = 0;
        for (int y = round; y + TILE <= FRAME; y++)
            for (int x = 0; x + TILE <= FRAME; x++) {
                uint64_t here = difference(y, x);
                if (here < best) {
                    best = here;
                    where = (uint64_t)(y * FRAME + x);
                }
            }
        check = mix(mix(check, best), where);
    }
    return check;
}

enum { COPIED = 65536 };
static _Alignas(16) uint8_t copy_from[COPIED + 16], copy_to[COPIED];

void prepare_copy16(void) {
    uint64_t state = 31622776601u;
    for (size_t i = 0; i < sizeof copy_from; i++)
        copy_from[i] = (uint8_t)next_random(&state);
}

// memcpy as libraries do without rep: four times 16 bytes a turn, the source not aligned.
uint64_t run_copy16(void) {
    uint64_t check = 0;
    for (int round = 0; round < 16000; round++) {
        const uint8_t *from = copy_from + round % 16;
        for (size_t i = 0; i < COPIED; i += 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)(from + i));
            __m128i b = _mm_loadu_si128((const __m128i *)(from + i + 16));
            __m128i c = _mm_loadu_si128((const __m128i *)(from + i + 32));
            __m128i d = _mm_loadu_si128((const __m128i *)(from + i + 48));
            _mm_store_si128((__m128i *)(copy_to + i), a);
            _mm_store_si128((__m128i *)(copy_to + i + 16), b);
            _mm_store_si128((__m128i *)(copy_to + i + 32), c);
            _mm_store_si128((__m128i *)(copy_to + i + 48), d);
        }
        check = mix(check, copy_to[(unsigned)round * 31 % COPIED]);
    }
    return check;
}

static _Alignas(16) uint8_t scanned[COPIED];

void prepare_scan16(void) {
    uint64_t state = 33166247903u;
    for (size_t i = 0; i < COPIED; i++)
        scanned[i] = next_random(&state) % 150 == 0 ? 0 : (uint8_t)(1 + next_random(&state) % 255);
    scanned[COPIED - 1] = 0;
}

// The length of a string as libraries find it: 16 bytes compared at once, the first partly masked.
static size_t scanned_length(const uint8_t *text) {
    uintptr_t skipped = (uintptr_t)text & 15;
    const uint8_t *at = text - skipped;
    const __m128i zero = _mm_setzero_si128();
    unsigned zeros = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_load_si128((const __m128i *)at), zero));
    zeros &= ~0u << skipped;
    while (zeros == 0) {
        at += 16;
        zeros = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_load_si128((const __m128i *)at), zero));
    }
    return (size_t)(at - text) + (unsigned)__builtin_ctz(zeros);
}

// strlen over strings of some 150 bytes.
uint64_t run_scan16(void) {
    uint64_t check = 0;
    for (int round = 0; round < 5000; round++)
        for (size_t at = (size_t)round; at < COPIED;) {
            size_t length = scanned_length(scanned + at);
            check = mix(check, length);
            at += length + 1;
        }
    return check;
}
