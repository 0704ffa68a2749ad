// What the kernels share: the product of a few rows with one panel of columns, held in registers, and the exponential.
//
// A panel is PANEL columns of a matrix, row after row, aligned and filled up with zeros. Vectors are GCC's own, so that
// the same code becomes AVX-512 or AVX2.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 2, ROWS = 12 };  // 24 of 32 registers for sums
#elif defined(__AVX2__) && defined(__FMA__)
enum { LANES = 8, VECTORS = 3, ROWS = 4 };  // 12 of 16
#else
#error "needs AVX2 and FMA"
#endif
enum { PANEL = LANES * VECTORS };
enum { DEPTH = 192 };  // a panel of that many rows stays in the first cache

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))

static long least(long a, long b) { return a < b ? a : b; }
static long panels_of(long columns) { return (columns + PANEL - 1) / PANEL; }

// A matrix of which element (i, k) is at[i * row + k * column], in blocks of columns that lie `block` apart.
typedef struct {
    const float *at;
    long row, column, block;
} Matrix;

// c (rows, PANEL) = a (rows, blocks * depth) @ b (blocks * depth, PANEL), or added to it. `rows` is a constant.
INLINE void multiply_rows(const int rows, Matrix a, const float *b, float *c, long stride, long depth, long blocks,
                          int add) {
    vec sum[ROWS][VECTORS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < VECTORS; j++) sum[i][j] = add ? *(vec *)(c + i * stride + j * LANES) : (vec){0};
    for (; blocks; blocks--, a.at += a.block) {
        const float *third[ROWS / 3 + 1];  // every third row: an address is one of these and 0, 1 or 2 times a.row
        for (int i = 0; i < rows; i += 3) third[i / 3] = a.at + i * a.row;
#pragma GCC unroll 4
        for (long k = 0; k < depth; k++, b += PANEL) {
            vec x[VECTORS];
            for (int j = 0; j < VECTORS; j++) x[j] = *(const vec *)(b + j * LANES);
            for (int i = 0; i < rows; i++) {
                float y = third[i / 3][i % 3 * a.row];
                for (int j = 0; j < VECTORS; j++) sum[i][j] += y * x[j];
            }
            for (int i = 0; i < rows; i += 3) third[i / 3] += a.column;
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < VECTORS; j++) *(vec *)(c + i * stride + j * LANES) = sum[i][j];
}

// The same for any number of rows.
INLINE void multiply_panel(long rows, Matrix a, const float *b, float *c, long stride, long depth, long blocks,
                           int add) {
    const float *first = a.at;
    long i = 0;
    for (; i + ROWS <= rows; i += ROWS) {
        a.at = first + i * a.row;
        multiply_rows(ROWS, a, b, c + i * stride, stride, depth, blocks, add);
    }
    for (; i + 4 <= rows; i += 4) {
        a.at = first + i * a.row;
        multiply_rows(4, a, b, c + i * stride, stride, depth, blocks, add);
    }
    for (; i < rows; i++) {
        a.at = first + i * a.row;
        multiply_rows(1, a, b, c + i * stride, stride, depth, blocks, add);
    }
}

// e^x, to 1e-7 of it: x = n ln 2 + r, and a polynomial for e^r (Cephes' expf). Outside of [-80, 80] it is that of the
// nearer end, far from denormals, which take some processors a hundred times as long; of NaN it is NaN.
INLINE float exponential(float x) {
    x = -80.0f > x ? -80.0f : x;
    x = 80.0f < x ? 80.0f : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which its lowest bits are
    float n = x * 1.44269504f + shift;
    int32_t bits;
    memcpy(&bits, &n, 4);
    n -= shift;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t scaled;
    memcpy(&scaled, &p, 4);
    scaled += (int32_t)((uint32_t)bits << 23);
    memcpy(&p, &scaled, 4);
    return p;
}
