// Integer arithmetic: what is computed in registers, with few loads and predictable branches.
#include "programs.h"

// Shifts and exclusive ors on one dependent chain, and a 32-bit division in each step.
uint64_t run_bits(void) {
    uint64_t state = 88172645463325252u, check = 0;
    for (uint32_t divisor = 1; divisor <= 7500000; divisor++)
        check += (uint32_t)next_random(&state) % divisor;
    return check;
}

static unsigned population(uint64_t word) {
    word -= word >> 1 & 0x5555555555555555u;
    word = (word & 0x3333333333333333u) + (word >> 2 & 0x3333333333333333u);
    word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (unsigned)(word * 0x0101010101010101u >> 56);
}

static uint64_t reversed(uint64_t word) {
    word = (word >> 1 & 0x5555555555555555u) | (word & 0x5555555555555555u) << 1;
    word = (word >> 2 & 0x3333333333333333u) | (word & 0x3333333333333333u) << 2;
    word = (word >> 4 & 0x0f0f0f0f0f0f0f0fu) | (word & 0x0f0f0f0f0f0f0f0fu) << 4;
    return __builtin_bswap64(word);
}

// Bit tricks: population count, reversal, lowest and highest bit, rotation.
uint64_t run_popcount(void) {
    uint64_t state = 362436069362436069u, check = 0;
    for (int i = 0; i < 5000000; i++) {
        uint64_t word = next_random(&state);
        unsigned count = population(word);
        check += count + (unsigned)__builtin_ctzll(word) + (unsigned)__builtin_clzll(word);
        check ^= reversed(word) << count | reversed(word) >> (63 & -count);
    }
    return check;
}

// Products of 2048-bit numbers: 64 by 64 to 128 bits and chains of carries.
uint64_t run_bignum(void) {
    enum { LIMBS = 32 };
    uint64_t a[LIMBS], b[LIMBS], state = 521288629u;
    for (int i = 0; i < LIMBS; i++) {
        a[i] = next_random(&state);
        b[i] = next_random(&state) | 1;
    }
    for (int round = 0; round < 30000; round++) {
        uint64_t product[2 * LIMBS] = {0};
        for (int i = 0; i < LIMBS; i++) {
            uint64_t carry = 0;
            for (int j = 0; j < LIMBS; j++) {
                unsigned __int128 sum = (unsigned __int128)a[i] * b[j] + product[i + j] + carry;
                product[i + j] = (uint64_t)sum;
                carry = (uint64_t)(sum >> 64);
            }
            product[i + LIMBS] = carry;
        }
        for (int i = 0; i < LIMBS; i++)
            a[i] = product[i] ^ product[i + LIMBS];
    }
    uint64_t check = 0;
    for (int i = 0; i < LIMBS; i++)
        check = mix(check, a[i]);
    return check;
}

enum { IMAT = 96 };
static int imat_a[IMAT][IMAT], imat_b[IMAT][IMAT];

void prepare_imat(void) {
    uint64_t state = 88675123u;
    for (int i = 0; i < IMAT; i++)
        for (int j = 0; j < IMAT; j++) {
            imat_a[i][j] = (int)(next_random(&state) % 1000);
            imat_b[i][j] = (int)(next_random(&state) % 1000);
        }
}

// Product of integer matrices: two loads, one of them with a long stride, and a multiplication per step.
uint64_t run_imat(void) {
    uint64_t check = 0;
    for (int round = 0; round < 12; round++)
        for (int i = 0; i < IMAT; i++)
            for (int j = 0; j < IMAT; j++) {
                unsigned sum = (unsigned)round;
                for (int k = 0; k < IMAT; k++)
                    sum += (unsigned)imat_a[i][k] * (unsigned)imat_b[k][j];
                check = mix(check, sum);
            }
    return check;
}

static uint32_t crc_table[256];
static uint8_t message[65536];

static void fill_message(void) {
    uint64_t state = 5783321u;
    for (size_t i = 0; i < sizeof message; i++)
        message[i] = (uint8_t)next_random(&state);
}

void prepare_crc32(void) {
    fill_message();
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        crc_table[byte] = crc;
    }
}

// CRC-32 of IEEE 802.3, a byte at a time: each table load waits for the one before.
uint64_t run_crc32(void) {
    uint32_t crc = ~0u;
    for (int round = 0; round < 160; round++)
        for (size_t i = 0; i < sizeof message; i++)
            crc = crc >> 8 ^ crc_table[(uint8_t)crc ^ message[i]];
    return ~crc;
}

static uint32_t sha_constants[64], sha_start[8];

// First 32 bits of the fraction of the root (2: square, 3: cube) of a small number, by bisection.
static uint32_t root_fraction(unsigned number, int degree) {
    unsigned __int128 wanted = (unsigned __int128)number << 32 * degree, low = 0, high = (unsigned __int128)1 << 37;
    while (high - low > 1) {
        unsigned __int128 middle = (low + high) / 2;
        if ((degree == 2 ? middle * middle : middle * middle * middle) <= wanted)
            low = middle;
        else
            high = middle;
    }
    return (uint32_t)low;
}

// FIPS 180-4, 4.2.2 and 5.3.3: the constants are those of the roots of the first primes.
void prepare_sha256(void) {
    fill_message();
    int found = 0;
    for (unsigned number = 2; found < 64; number++) {
        unsigned divisor = 2;
        while (number % divisor != 0)
            divisor++;
        if (divisor != number)
            continue;
        sha_constants[found] = root_fraction(number, 3);
        if (found < 8)
            sha_start[found] = root_fraction(number, 2);
        found++;
    }
}

static uint32_t rotated(uint32_t word, int by) { return word >> by | word << (32 - by); }

// FIPS 180-4, 6.2.2.
static void sha256_block(uint32_t hash[8], const uint8_t *block) {
    uint32_t w[64], v[8];
    for (int t = 0; t < 16; t++)
        w[t] = (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 | (uint32_t)block[4 * t + 2] << 8 |
               block[4 * t + 3];
    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    for (int i = 0; i < 8; i++)
        v[i] = hash[i];
    for (int t = 0; t < 64; t++) {
        uint32_t s1 = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25);
        uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + sha_constants[t] + w[t];
        uint32_t s0 = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22);
        uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        for (int i = 7; i > 0; i--)
            v[i] = v[i - 1];
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        hash[i] += v[i];
}

// SHA-256 without its padding: rotations, and more live values than there are registers.
uint64_t run_sha256(void) {
    uint32_t hash[8];
    for (int i = 0; i < 8; i++)
        hash[i] = sha_start[i];
    for (int round = 0; round < 80; round++)
        for (size_t at = 0; at < sizeof message; at += 64)
            sha256_block(hash, message + at);
    uint64_t check = 0;
    for (int i = 0; i < 8; i++)
        check = mix(check, hash[i]);
    return check;
}
