// Matrix products for linear layers, with what comes before and after them: bias, GELU, the sum that is a bias's gradient.
//
// The right matrix is packed into panels once; threads take chunks of the left one's rows, and each sum goes through the
// inner dimension in order, so the number of threads decides no bit.
#include <omp.h>

#include "tiles.h"

enum { CHUNK = 128, SUMS = 1 << 17, APART = DEPTH + 16 };  // see most_rows and copy_rows

typedef struct {
    long rows, columns, depth;
    Matrix left, right;   // (rows, depth), (depth, columns)
    float *result;        // (rows, columns)
    const float *bias;    // (columns,), added to each row; or null
    float *activated;     // (rows, columns): GELU of the result, which becomes GELU's derivative there; or null
    const float *factor;  // (rows, columns): the result is multiplied by it; or null
    float *sums;          // (rows,): of the left matrix's rows, if its columns lie apart; or null
    float *packed;        // (panels, depth, PANEL)
    long chunk;           // rows of a task
} Product;

// Of a task: all of the packed matrix is read again for each, and its sums are to stay in the second cache.
static long most_rows(long columns) { return least(CHUNK, SUMS / (panels_of(columns) * PANEL) / 4 * 4 + 4); }

// As many tasks for each thread, of whole fours of rows.
static long chunk_of(long rows, long columns, long threads) {
    long most = most_rows(columns), tasks = threads * ((rows + threads * most - 1) / (threads * most));
    return ((rows + tasks - 1) / tasks + 3) / 4 * 4;
}

static long own_floats(long columns) { return most_rows(columns) * panels_of(columns) * PANEL + CHUNK * APART; }

// The floats of scratch memory that `multiply` needs.
long multiply_scratch(long columns, long depth, long threads) {
    return panels_of(columns) * depth * PANEL + threads * own_floats(columns);
}

// 1 / (1 + e^-2u), with which GELU is x times that: tanh's form of it, with u = sqrt(2/pi) (x + 0.044715 x^3).
INLINE float share(float x) { return 1 / (1 + exponential(-1.5957691216f * x * (1 + 0.044715f * x * x))); }

static void pack_panel(const Product *at, long panel) {
    long begin = panel * PANEL, some = least(PANEL, at->columns - begin);
    float *to = at->packed + panel * at->depth * PANEL;
    const float *from = at->right.at + begin * at->right.column;
    for (long k = 0; k < at->depth; k++)
        for (long j = 0; j < PANEL; j++)
            to[k * PANEL + j] = j < some ? from[k * at->right.row + j * at->right.column] : 0;
}

// Some columns of the left matrix as rows, for a chunk of its rows; adds them up into `totals`.
static void turn_rows(Matrix left, long rows, long depth, float *to, float *totals) {
    float sum[CHUNK] = {0};
    for (long k = 0; k < depth; k++)
        for (long i = 0; i < rows; i++) sum[i] += to[k * CHUNK + i] = left.at[i + k * left.column];
    for (long i = 0; i < rows; i++) totals[i] += sum[i];
}

// Some columns of rows, to rows that lie APART: at a distance of some powers of two they would share few places in the
// cache, and of a constant one their addresses need no registers.
static void copy_rows(const float *from, long distance, long rows, long columns, float *to) {
    for (long i = 0; i < rows; i++) memcpy(to + i * APART, from + i * distance, columns * sizeof(float));
}

static void end_row(const Product *at, long row, const float *sums) {
    float *to = at->result + row * at->columns;
    for (long j = 0; j < at->columns; j++) to[j] = sums[j] + (at->bias ? at->bias[j] : 0);
    if (at->activated) {
        float *activated = at->activated + row * at->columns;
        for (long j = 0; j < at->columns; j++) {
            float x = to[j], s = share(x);
            activated[j] = x * s;
            to[j] = s + x * s * (1 - s) * 1.5957691216f * (1 + 0.134145f * x * x);
        }
    }
    if (at->factor) {
        const float *factor = at->factor + row * at->columns;
        for (long j = 0; j < at->columns; j++) to[j] *= factor[j];
    }
}

static void multiply_chunk(const Product *at, long first, float *own) {
    long rows = least(at->chunk, at->rows - first), wide = panels_of(at->columns) * PANEL;
    float totals[CHUNK] = {0};
    for (long k = 0; k < at->depth; k += DEPTH) {
        long depth = least(DEPTH, at->depth - k);
        Matrix left = at->left;
        left.at += first * left.row + k * left.column;
        float *copy = own + most_rows(at->columns) * wide;
        int apart = left.row == 1;
        if (apart)
            turn_rows(left, rows, depth, copy, totals);
        else
            copy_rows(left.at, left.row, rows, depth, copy);
        for (long column = 0; column < wide; column += PANEL) {
            const float *right = at->packed + column * at->depth + k * PANEL;
            if (apart)
                multiply_panel(rows, (Matrix){copy, 1, CHUNK, 0}, right, own + column, wide, depth, 1, k > 0);
            else
                multiply_panel(rows, (Matrix){copy, APART, 1, 0}, right, own + column, wide, depth, 1, k > 0);
        }
    }
    for (long i = 0; i < rows; i++) end_row(at, first + i, own + i * wide);
    if (at->sums) memcpy(at->sums + first, totals, rows * sizeof(float));
}

// result = left @ right, and what `Product` tells. Of each matrix, either rows or columns lie one after the other.
void multiply(long rows, long columns, long depth, const float *left, long left_row, long left_column,
              const float *right, long right_row, long right_column, float *result, const float *bias,
              float *activated, const float *factor, float *sums, float *scratch, long threads) {
    Product at = {rows, columns, depth, {left, left_row, left_column, 0}, {right, right_row, right_column, 0},
                  result, bias, activated, factor, sums, scratch, chunk_of(rows, columns, threads)};
    float *of_threads = scratch + panels_of(columns) * depth * PANEL;
#pragma omp parallel num_threads(threads)
    {
        float *own = of_threads + omp_get_thread_num() * own_floats(columns);
#pragma omp for
        for (long panel = 0; panel < panels_of(columns); panel++) pack_panel(&at, panel);
#pragma omp for schedule(dynamic)
        for (long first = 0; first < rows; first += at.chunk) multiply_chunk(&at, first, own);
    }
}
