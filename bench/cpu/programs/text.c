// Text: scans of bytes, compression, dynamic programming.
#include "programs.h"

enum { WORDS = 2000 };
static char words[WORDS][24];

void prepare_strings(void) {
    uint64_t state = 31415926535u;
    for (int i = 0; i < WORDS; i++) {
        uint64_t random = next_random(&state);
        int length = 3 + (int)(random % 20);
        // Few letters, so that words have a beginning in common.
        for (int j = 0; j < length; j++)
            words[i][j] = (char)('a' + (random >> (3 * j & 31) & 1));
        words[i][length] = 0;
    }
}

static __attribute__((noinline)) size_t length_of(const char *text) {
    const char *end = text;
    while (*end)
        end++;
    return (size_t)(end - text);
}

static __attribute__((noinline)) int compared(const char *a, const char *b) {
    while (*a && *a == *b)
        a++, b++;
    return (uint8_t)*a - (uint8_t)*b;
}

static __attribute__((noinline)) const char *found(const char *text, char wanted) {
    while (*text && *text != wanted)
        text++;
    return text;
}

// strlen, strcmp and strchr a byte at a time on short words.
uint64_t run_strings(void) {
    uint64_t check = 0;
    for (int round = 0; round < 400; round++)
        for (int i = 0; i + 1 < WORDS; i++) {
            check += length_of(words[i]);
            check = mix(check, (uint64_t)compared(words[i], words[(i + round) % WORDS]));
            check += (uint64_t)(found(words[i], 'b') - words[i]);
        }
    return check;
}

enum { PLAIN = 65536, WINDOW_BITS = 12 };
static uint8_t plain[PLAIN], packed[2 * PLAIN], unpacked[PLAIN];

// Text of which pieces come again.
void prepare_lz(void) {
    uint64_t state = 27182818284u;
    size_t size = 0;
    while (size < PLAIN) {
        uint64_t random = next_random(&state);
        size_t length = 4 + random % 28, back = 1 + (random >> 8) % 3000;
        for (; length > 0 && size < PLAIN; length--, size++) {
            int again = (random >> 40 & 3) != 0 && back <= size;
            plain[size] = again ? plain[size - back] : (uint8_t)('a' + next_random(&state) % 26);
        }
    }
}

static uint32_t load32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

// Tokens: 0 and a byte, or the length (4 to 255) of a match and in two bytes how far back it begins.
static size_t compress(void) {
    static uint32_t last_seen[1 << WINDOW_BITS];
    size_t size = 0, at = 0;
    for (size_t i = 0; i < sizeof last_seen / sizeof *last_seen; i++)
        last_seen[i] = 0;
    while (at < PLAIN) {
        size_t length = 0, back = 0;
        if (at + 4 <= PLAIN) {
            uint32_t *seen = &last_seen[load32(plain + at) * 2654435761u >> (32 - WINDOW_BITS)];
            back = at - *seen;
            *seen = (uint32_t)at;
            while (back != 0 && back < 65536 && length < 255 && at + length < PLAIN &&
                   plain[at + length] == plain[at + length - back])
                length++;
        }
        if (length < 4) {
            packed[size++] = 0;
            packed[size++] = plain[at++];
        } else {
            packed[size++] = (uint8_t)length;
            packed[size++] = (uint8_t)back;
            packed[size++] = (uint8_t)(back >> 8);
            at += length;
        }
    }
    return size;
}

static size_t decompress(size_t size) {
    size_t at = 0, out = 0;
    while (at < size) {
        size_t length = packed[at++];
        if (length == 0) {
            unpacked[out++] = packed[at++];
            continue;
        }
        size_t back = packed[at] | (size_t)packed[at + 1] << 8;
        at += 2;
        for (; length > 0; length--, out++)
            unpacked[out] = unpacked[out - back];
    }
    return out;
}

// LZ77: compression through a table of what was seen, decompression, comparison.
uint64_t run_lz(void) {
    uint64_t check = 0;
    for (int round = 0; round < 100; round++) {
        size_t size = compress();
        if (decompress(size) != PLAIN)
            fail("decompression");
        for (size_t i = 0; i < PLAIN; i++)
            check += unpacked[i] != plain[i];
        check = mix(check, size);
    }
    return check;
}

enum { EDITED = 600 };
static char left[EDITED], right[EDITED];

void prepare_edit(void) {
    uint64_t state = 16180339887u;
    for (int i = 0; i < EDITED; i++) {
        left[i] = (char)('a' + next_random(&state) % 4);
        right[i] = (char)('a' + next_random(&state) % 4);
    }
}

static int least(int a, int b) { return a < b ? a : b; }

// Edit distance: dynamic programming over one row; minima by conditional moves.
uint64_t run_edit(void) {
    static int row[EDITED + 1];
    uint64_t check = 0;
    for (int round = 0; round < 50; round++) {
        for (int j = 0; j <= EDITED; j++)
            row[j] = j + round % 3;
        for (int i = 0; i < EDITED; i++) {
            int diagonal = row[0];
            row[0] = i + 1;
            for (int j = 0; j < EDITED; j++) {
                int replaced = diagonal + (left[i] != right[j]);
                diagonal = row[j + 1];
                row[j + 1] = least(replaced, least(row[j], diagonal) + 1);
            }
        }
        check = mix(check, (uint64_t)row[EDITED]);
    }
    return check;
}
