// Causal self-attention and its gradient, one head of one sequence at a time.
//
// A panel of queries meets all keys before it: scores and probabilities are (keys, PANEL), transposed, so that sums over
// keys run along rows. Only what a panel needs is held; the backward pass computes probabilities anew, from the
// logarithms of their sums. Threads take heads, so their number decides no bit.
#include <omp.h>

#include "tiles.h"

typedef struct {
    long batch, heads, length, size;  // B, H, T, and D / H
    const float *qkv;                 // (B, T, 3 D)
    float *out;                       // (B, T, D)
    float *log_sums;                  // (B, H, T)
    const float *d_out;               // (B, T, D)
    float *d_qkv;                     // (B, T, 3 D)
} Attention;

typedef struct {                           // of one head of one sequence
    const float *query, *key, *value;      // (T, D / H), rows `apart`
    long apart, out_apart;                 // 3 D and D
    float *out, *log_sums;                 // (T, D / H), rows `out_apart`; (T,)
    const float *d_out;                    // as out
    float *d_query, *d_key, *d_value;      // as query
} Head;

static Head head_of(const Attention *at, long number) {
    long width = at->heads * at->size, sequence = number / at->heads, first = number % at->heads * at->size;
    const float *qkv = at->qkv + sequence * at->length * 3 * width + first;
    float *d_qkv = at->d_qkv + sequence * at->length * 3 * width + first;
    long out = sequence * at->length * width + first;
    return (Head){qkv, qkv + width, qkv + 2 * width, 3 * width, width, at->out + out,
                  at->log_sums + number * at->length, at->d_out + out, d_qkv, d_qkv + width, d_qkv + 2 * width};
}

static long wide_of(long size) { return panels_of(size) * PANEL; }

// The floats of scratch memory that a call needs.
long attention_scratch(long length, long size, long threads) {
    long keys = panels_of(length) * PANEL;
    return threads * (2 * keys * (PANEL + wide_of(size)) + PANEL * (2 * size + 2 * wide_of(size)));
}

// (rows, size) of rows `apart`, times `scale`, as one panel (size, PANEL).
static void transpose(const float *from, long apart, long rows, long size, float scale, float *to) {
    for (long k = 0; k < size; k++)
        for (long j = 0; j < PANEL; j++) to[k * PANEL + j] = j < rows ? from[j * apart + k] * scale : 0;
}

// The same as panels of its columns, (panels, PANEL, PANEL).
static void split(const float *from, long apart, long rows, long size, float *to) {
    memset(to, 0, PANEL * wide_of(size) * sizeof(float));
    for (long j = 0; j < rows; j++)
        for (long k = 0; k < size; k++) to[(k / PANEL * PANEL + j) * PANEL + k % PANEL] = from[j * apart + k];
}

// to (rows, PANEL) = a (rows, size), rows `apart`, times b (size, PANEL).
static void times_panel(const float *a, long apart, const float *b, long rows, long size, float *to) {
    multiply_panel(rows, (Matrix){a, apart, 1, 0}, b, to, PANEL, size, 1, 0);
}

// to (keys, wide) += a (keys, PANEL) times b, (PANEL, wide) in panels of columns.
static void add_products(const float *a, const float *b, long keys, long wide, float *to) {
    for (long column = 0; column < wide; column += PANEL)
        multiply_panel(keys, (Matrix){a, PANEL, 1, 0}, b + column * PANEL, to + column, wide, PANEL, 1, 1);
}

// to (size, PANEL) = sum over keys of a (keys, size) and b (keys, PANEL).
static void over_keys(const float *a, long apart, const float *b, long keys, long size, float *to) {
    for (long k = 0; k < keys; k += DEPTH) {
        Matrix part = {a + k * apart, 1, apart, 0};
        multiply_panel(size, part, b + k * PANEL, to, PANEL, least(DEPTH, keys - k), 1, k > 0);
    }
}

// Put a value where a query would meet a key that comes later.
static void hide_future(float *scores, long keys, long first, float value) {
    for (long k = first + 1; k < keys; k++)
        for (long j = 0; j < least(PANEL, k - first); j++) scores[k * PANEL + j] = value;
}

// Scores become exponentials of them less what is subtracted.
static void exponentials(float *scores, long keys, long first, const float *subtracted) {
    for (long k = 0; k < keys; k++)
        for (long j = 0; j < PANEL; j++)
            scores[k * PANEL + j] = exponential(scores[k * PANEL + j] - subtracted[j]);
    hide_future(scores, keys, first, 0);
}

static void forward_panel(const Attention *at, const Head *head, long first, float *own) {
    long size = at->size, some = least(PANEL, at->length - first), keys = first + some;
    float *scores = own, *query = scores + panels_of(at->length) * PANEL * PANEL, *out = query + PANEL * size;
    float most[PANEL], sum[PANEL] = {0};
    transpose(head->query + first * head->apart, head->apart, some, size, 1 / sqrtf(size), query);
    times_panel(head->key, head->apart, query, keys, size, scores);
    hide_future(scores, keys, first, -INFINITY);
    for (long j = 0; j < PANEL; j++) most[j] = -INFINITY;
    for (long k = 0; k < keys; k++)
        for (long j = 0; j < PANEL; j++) most[j] = scores[k * PANEL + j] > most[j] ? scores[k * PANEL + j] : most[j];
    exponentials(scores, keys, first, most);
    for (long k = 0; k < keys; k++)
        for (long j = 0; j < PANEL; j++) sum[j] += scores[k * PANEL + j];
    over_keys(head->value, head->apart, scores, keys, size, out);
    for (long j = 0; j < some; j++) {
        head->log_sums[first + j] = most[j] + logf(sum[j]);
        for (long k = 0; k < size; k++) head->out[(first + j) * head->out_apart + k] = out[k * PANEL + j] / sum[j];
    }
}

// What was added up, (T, wide), to (T, size) of rows `apart`.
static void write_rows(const float *sums, long wide, long length, long size, float *to, long apart) {
    for (long t = 0; t < length; t++) memcpy(to + t * apart, sums + t * wide, size * sizeof(float));
}

static void backward_panel(const Attention *at, const Head *head, long first, float *own, float *d_key, float *d_value) {
    long size = at->size, wide = wide_of(size), some = least(PANEL, at->length - first), keys = first + some;
    float scale = 1 / sqrtf(size), log_sums[PANEL] = {0}, delta[PANEL] = {0};
    float *p = own, *d = p + panels_of(at->length) * PANEL * PANEL, *query = d + panels_of(at->length) * PANEL * PANEL;
    float *d_out = query + PANEL * size, *rows = d_out + PANEL * size, *d_rows = rows + PANEL * wide;
    const float *of_query = head->query + first * head->apart, *of_out = head->d_out + first * head->out_apart;
    transpose(of_query, head->apart, some, size, scale, query);
    transpose(of_out, head->out_apart, some, size, 1, d_out);
    split(of_query, head->apart, some, size, rows);
    split(of_out, head->out_apart, some, size, d_rows);
    for (long j = 0; j < some; j++) {
        log_sums[j] = head->log_sums[first + j];
        const float *out = head->out + (first + j) * head->out_apart;
        for (long k = 0; k < size; k++) delta[j] += out[k] * of_out[j * head->out_apart + k];
    }
    times_panel(head->key, head->apart, query, keys, size, p);
    exponentials(p, keys, first, log_sums);
    times_panel(head->value, head->apart, d_out, keys, size, d);
    for (long k = 0; k < keys; k++)
        for (long j = 0; j < PANEL; j++) d[k * PANEL + j] = p[k * PANEL + j] * (d[k * PANEL + j] - delta[j]) * scale;
    add_products(p, d_rows, keys, wide, d_value);
    add_products(d, rows, keys, wide, d_key);
    over_keys(head->key, head->apart, d, keys, size, query);
    for (long j = 0; j < some; j++)
        for (long k = 0; k < size; k++) head->d_query[(first + j) * head->apart + k] = query[k * PANEL + j];
}

// Attention's result, and the logarithms of its sums for the backward pass; see `Attention` for the shapes.
void attention_forward(long batch, long heads, long length, long size, const float *qkv, float *out, float *log_sums,
                       float *scratch, long threads) {
    Attention at = {batch, heads, length, size, qkv, out, log_sums, out, 0};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long number = 0; number < batch * heads; number++) {
        Head head = head_of(&at, number);
        float *own = scratch + omp_get_thread_num() * attention_scratch(length, size, 1);
        for (long first = 0; first < length; first += PANEL) forward_panel(&at, &head, first, own);
    }
}

// The gradient of queries, keys and values, from that of the result.
void attention_backward(long batch, long heads, long length, long size, const float *qkv, const float *out,
                        const float *log_sums, const float *d_out, float *d_qkv, float *scratch, long threads) {
    Attention at = {batch, heads, length, size, qkv, (float *)out, (float *)log_sums, d_out, d_qkv};
    long wide = wide_of(size), rows = panels_of(length) * PANEL;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long number = 0; number < batch * heads; number++) {
        Head head = head_of(&at, number);
        float *d_key = scratch + omp_get_thread_num() * attention_scratch(length, size, 1), *d_value = d_key + rows * wide;
        memset(d_key, 0, 2 * rows * wide * sizeof(float));
        for (long first = 0; first < length; first += PANEL)
            backward_panel(&at, &head, first, d_value + rows * wide, d_key, d_value);
        write_rows(d_key, wide, length, size, head.d_key, head.apart);
        write_rows(d_value, wide, length, size, head.d_value, head.apart);
    }
}
