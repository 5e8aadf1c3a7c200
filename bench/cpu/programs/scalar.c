// Scalar floating point in SSE registers.
#include "programs.h"

// Bits of a number: they must be the same everywhere.
static uint64_t bits_of(double number) {
    union {
        double number;
        uint64_t bits;
    } both = {number};
    return both.bits;
}

enum { BODIES = 5 };

// Gravity among five bodies: products, sums, a square root and a division in each pair.
uint64_t run_nbody(void) {
    double position[BODIES][3], speed[BODIES][3] = {{0}}, mass[BODIES];
    for (int i = 0; i < BODIES; i++) {
        for (int k = 0; k < 3; k++)
            position[i][k] = (i + 1) * 1.5 * ((i + k) % 3 - 1) + 0.25 * k;
        mass[i] = 1.0 / (i + 1);
    }
    for (int step = 0; step < 250000; step++) {
        for (int i = 0; i < BODIES; i++)
            for (int j = i + 1; j < BODIES; j++) {
                double d[3], square = 0.01;
                for (int k = 0; k < 3; k++) {
                    d[k] = position[i][k] - position[j][k];
                    square += d[k] * d[k];
                }
                double pull = 0.001 / (square * __builtin_sqrt(square));
                for (int k = 0; k < 3; k++) {
                    speed[i][k] -= d[k] * mass[j] * pull;
                    speed[j][k] += d[k] * mass[i] * pull;
                }
            }
        for (int i = 0; i < BODIES; i++)
            for (int k = 0; k < 3; k++)
                position[i][k] += 0.001 * speed[i][k];
    }
    uint64_t check = 0;
    for (int i = 0; i < BODIES; i++)
        for (int k = 0; k < 3; k++)
            check = mix(check, bits_of(position[i][k]));
    return check;
}

// The Mandelbrot set: short dependent chains and a comparison that leaves the loop.
uint64_t run_mandel(void) {
    enum { SIZE = 400, MOST = 200 };
    uint64_t check = 0;
    for (int y = 0; y < SIZE; y++)
        for (int x = 0; x < SIZE; x++) {
            double cr = x * 3.0 / SIZE - 2.1, ci = y * 2.4 / SIZE - 1.2, zr = 0, zi = 0;
            int count = 0;
            while (count < MOST && zr * zr + zi * zi < 4.0) {
                double next = zr * zr - zi * zi + cr;
                zi = 2 * zr * zi + ci;
                zr = next;
                count++;
            }
            check = mix(check, (uint64_t)count);
        }
    return check;
}

enum { SAMPLES = 8192 };
static float samples[SAMPLES];

void prepare_filter(void) {
    uint64_t state = 14142135623u;
    for (int i = 0; i < SAMPLES; i++)
        samples[i] = (float)((int)(next_random(&state) % 65536) - 32768);
}

// A recursive filter of second order in single precision: latency of products and sums, loads from memory.
uint64_t run_filter(void) {
    uint64_t check = 0;
    for (int round = 0; round < 1000; round++) {
        float x1 = 0, x2 = 0, y1 = 0, y2 = (float)round;
        for (int i = 0; i < SAMPLES; i++) {
            float y = 0.0675f * samples[i] + 0.1349f * x1 + 0.0675f * x2 + 1.143f * y1 - 0.4128f * y2;
            x2 = x1;
            x1 = samples[i];
            y2 = y1;
            y1 = y;
        }
        check = mix(check, bits_of(y1));
    }
    return check;
}

// Conversions between integers, single and double precision, and comparisons.
uint64_t run_convert(void) {
    uint64_t state = 17320508075u, check = 0;
    for (int i = 0; i < 6000000; i++) {
        int64_t integer = (int64_t)next_random(&state) >> 20;
        double number = (double)integer * 0.37;
        float narrow = (float)number;
        check += (uint64_t)(int64_t)(number + narrow) + (uint64_t)(narrow > number) + (uint64_t)(int)(narrow * 1e-6f);
    }
    return check;
}
