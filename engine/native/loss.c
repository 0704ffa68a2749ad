// Cross-entropy of a linear layer, with its gradients, in two passes over the vocabulary.
//
// The first goes through the weights tile by tile: logits, their exponentials, and from these, still in the cache, the
// gradient of the hidden states. As in FlashAttention (arXiv:2205.14135) exponentials are of logits less the largest so
// far, and sums shrink when a larger one comes. They are written to memory once; the second pass reads them once, for
// the gradient of the weights, when each token's sum is known. A thread has its own tokens in the first pass and takes
// its share of tiles in the second, so the number of threads decides no bit.
#include <float.h>
#include <omp.h>

#include "tiles.h"

enum { TILE = 144, GROUP = 4 };  // rows of weights, and panels of tokens, that stay in the second cache

typedef struct {
    long tokens, width, vocabulary;  // T, D, V
    const float *hidden, *weight;    // (T, D), (V, D)
    const int64_t *target;           // (T,)
    float *loss;                     // (T,)
    float *d_hidden, *d_weight;      // (T, D), (V, D), or both null
    int add;                         // whether d_weight is added to what is there
    long panels, tiles, wide;        // of tokens; of the vocabulary; D filled up to whole panels
    float *exponentials;             // (tiles, panels, TILE, PANEL)
    float *subtracted;               // (tiles, panels * PANEL): the largest logits so far, of each tile
    float *largest, *inverse;        // (panels * PANEL,): of all logits; of the sum of exponentials
    float *packed, *gradient;        // (panels, D, PANEL): hidden states and their gradient
} Loss;

static long own_floats(long tokens, long width) {
    long wide = panels_of(width) * PANEL, rows = panels_of(tokens) * PANEL;
    return rows * (wide + 1) + TILE * wide;
}

// The floats of scratch memory that `linear_cross_entropy` needs.
long loss_scratch(long tokens, long width, long vocabulary, long threads) {
    long panels = panels_of(tokens), tiles = (vocabulary + TILE - 1) / TILE;
    return tiles * panels * (TILE + 1) * PANEL + panels * PANEL * (2 * width + 2) + threads * own_floats(tokens, width);
}

static void begin_panel(const Loss *at, long panel) {
    for (long k = 0; k < at->width; k++)
        for (long j = 0; j < PANEL; j++) {
            long t = panel * PANEL + j, to = (panel * at->width + k) * PANEL + j;
            at->packed[to] = t < at->tokens ? at->hidden[t * at->width + k] : 0;
            at->gradient[to] = 0;
        }
}

// Let a panel's sums be of logits less new largest ones, where a tile has any.
static void raise_largest(const Loss *at, long panel, const float *logits, long rows, double *sums) {
    float most[PANEL], shrink[PANEL], *largest = at->largest + panel * PANEL;
    float *gradient = at->gradient + panel * at->width * PANEL;
    int changed = 0;
    memcpy(most, largest, sizeof most);
    for (long v = 0; v < rows; v++)
        for (long j = 0; j < PANEL; j++) most[j] = logits[v * PANEL + j] > most[j] ? logits[v * PANEL + j] : most[j];
    for (long j = 0; j < PANEL; j++) changed |= most[j] > largest[j];
    if (!changed) return;
    for (long j = 0; j < PANEL; j++) shrink[j] = most[j] > largest[j] ? exponential(largest[j] - most[j]) : 1;
    for (long j = 0; j < PANEL; j++) sums[j] *= shrink[j];
    for (long k = 0; k < at->width; k++)
        for (long j = 0; j < PANEL; j++) gradient[k * PANEL + j] *= shrink[j];
    memcpy(largest, most, sizeof most);
}

// One tile of the vocabulary and one panel of tokens, in the first pass; `x` is where the exponentials go.
static void add_tile(const Loss *at, long tile, long panel, float *x, double *sums, float *of_targets) {
    long width = at->width, begin = tile * TILE, rows = least(TILE, at->vocabulary - begin);
    const float *weight = at->weight + begin * width, *hidden = at->packed + panel * width * PANEL;
    for (long k = 0; k < width; k += DEPTH) {
        Matrix part = {weight + k, width, 1, 0};
        multiply_panel(rows, part, hidden + k * PANEL, x, PANEL, least(DEPTH, width - k), 1, k > 0);
    }
    for (long j = 0; j < PANEL; j++) {
        long t = panel * PANEL + j, row = t < at->tokens ? at->target[t] - begin : -1;
        if (row >= 0 && row < rows) of_targets[j] = x[row * PANEL + j];
    }
    raise_largest(at, panel, x, rows, sums);
    const float *largest = at->largest + panel * PANEL;
    float sum[PANEL] = {0};
    for (long v = 0; v < rows; v++)
        for (long j = 0; j < PANEL; j++) sum[j] += x[v * PANEL + j] = exponential(x[v * PANEL + j] - largest[j]);
    for (long j = 0; j < PANEL; j++) sums[j] += sum[j];
    if (!at->d_hidden) return;
    memcpy(at->subtracted + (tile * at->panels + panel) * PANEL, largest, PANEL * sizeof(float));
    Matrix transposed = {weight, 1, width, 0};
    multiply_panel(width, transposed, x, at->gradient + panel * width * PANEL, PANEL, rows, 1, 1);
}

static void end_panel(const Loss *at, long panel, const double *sums, const float *of_targets) {
    long width = at->width;
    for (long j = 0; j < PANEL; j++) {
        long t = panel * PANEL + j;
        at->inverse[t] = t < at->tokens ? 1 / sums[j] : 0;
        if (t >= at->tokens) continue;
        at->loss[t] = at->largest[t] + log(sums[j]) - of_targets[j];
        const float *of_target = at->weight + at->target[t] * width;
        for (long k = 0; k < width && at->d_hidden; k++)
            at->d_hidden[t * width + k] =
                at->gradient[(panel * width + k) * PANEL + j] * at->inverse[t] - of_target[k];
    }
}

static void first_pass(const Loss *at, long first, long last, float *own) {
    if (first == last) return;  // more threads than panels
    double sums[last - first][PANEL];
    float of_targets[last - first][PANEL];
    for (long panel = first; panel < last; panel++) {
        begin_panel(at, panel);
        for (long j = 0; j < PANEL; j++) at->largest[panel * PANEL + j] = -FLT_MAX, sums[panel - first][j] = 0;
    }
    for (long tile = 0; tile < at->tiles; tile++)
        for (long panel = first; panel < last; panel++) {
            float *x = at->d_hidden ? at->exponentials + (tile * at->panels + panel) * TILE * PANEL : own;
            add_tile(at, tile, panel, x, sums[panel - first], of_targets[panel - first]);
        }
    for (long panel = first; panel < last; panel++) end_panel(at, panel, sums[panel - first], of_targets[panel - first]);
}

// Hidden states as panels of their columns, times what makes a tile's exponentials probabilities. Rows are made anew
// only where another largest logit was taken off than in `last`.
static void scale_hidden(const Loss *at, long tile, float *scaled, float *last) {
    const float *subtracted = at->subtracted + tile * at->panels * PANEL;
    for (long t = 0; t < at->tokens; t++) {
        if (last[t] == subtracted[t]) continue;
        last[t] = subtracted[t];
        float scale = exponential(subtracted[t] - at->largest[t]) * at->inverse[t];
        for (long k = 0; k < at->width; k++)
            scaled[(k / PANEL * at->panels * PANEL + t) * PANEL + k % PANEL] = at->hidden[t * at->width + k] * scale;
    }
}

// The gradient of a tile of weights, in the second pass.
static void weight_tile(const Loss *at, long tile, const float *scaled, float *sums) {
    long width = at->width, wide = at->wide, begin = tile * TILE, rows = least(TILE, at->vocabulary - begin);
    for (long panel = 0; panel < at->panels; panel += GROUP)
        for (long column = 0; column < wide; column += PANEL) {
            long blocks = least(GROUP, at->panels - panel);
            Matrix x = {at->exponentials + (tile * at->panels + panel) * TILE * PANEL, PANEL, 1, TILE * PANEL};
            const float *hidden = scaled + (column * at->panels + panel * PANEL) * PANEL;
            multiply_panel(rows, x, hidden, sums + column, wide, PANEL, blocks, panel > 0);
        }
    for (long t = 0; t < at->tokens; t++) {
        long row = at->target[t] - begin;
        if (row < 0 || row >= rows) continue;
        for (long k = 0; k < width; k++) sums[row * wide + k] -= at->hidden[t * width + k];
    }
    for (long v = 0; v < rows; v++) {
        float *to = at->d_weight + (begin + v) * width;
        if (at->add)
            for (long k = 0; k < width; k++) to[k] += sums[v * wide + k];
        else
            memcpy(to, sums + v * wide, width * sizeof(float));
    }
}

static void second_pass(const Loss *at, float *own) {
    long rows = at->panels * PANEL;
    float *scaled = own, *last = own + rows * at->wide, *sums = own + rows * (at->wide + 1);
    memset(scaled, 0, rows * at->wide * sizeof(float));
    for (long t = 0; t < rows; t++) last[t] = NAN;
#pragma omp for schedule(dynamic)
    for (long tile = 0; tile < at->tiles; tile++) {
        scale_hidden(at, tile, scaled, last);
        weight_tile(at, tile, scaled, sums);
    }
}

// Losses of T tokens, and, unless they are null, d sum(losses) / d hidden and / d weight; see `Loss` for the shapes.
void linear_cross_entropy(long tokens, long width, long vocabulary, const float *hidden, const float *weight,
                          const int64_t *target, float *loss, float *d_hidden, float *d_weight, long add,
                          float *scratch, long threads) {
    long panels = panels_of(tokens), tiles = (vocabulary + TILE - 1) / TILE;
    Loss at = {.tokens = tokens, .width = width, .vocabulary = vocabulary, .hidden = hidden, .weight = weight,
               .target = target, .loss = loss, .d_hidden = d_hidden, .d_weight = d_weight, .add = add,
               .panels = panels, .tiles = tiles, .wide = panels_of(width) * PANEL};
    at.exponentials = scratch;
    at.packed = at.exponentials + tiles * panels * TILE * PANEL;
    at.gradient = at.packed + panels * PANEL * width;
    float *of_threads = at.gradient + panels * PANEL * width;
    at.subtracted = of_threads + threads * own_floats(tokens, width);
    at.largest = at.subtracted + tiles * panels * PANEL;
    at.inverse = at.largest + panels * PANEL;
#pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), all = omp_get_num_threads();
        float *own = of_threads + me * own_floats(tokens, width);
        first_pass(&at, panels * me / all, panels * (me + 1) / all, own);
#pragma omp barrier
        if (d_weight) second_pass(&at, own);
    }
}
