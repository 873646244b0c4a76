/* The shortlist: coarse codes against int8 queries. coarse.py says what the codes mean, native.py what the call gives.
 *
 * Plain C without Python.h, in three forms and within its lengths like _rows.c.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86 1
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline))
#else
#define HAS_X86 0
#define INLINE static inline
#endif

#define BLOCK 16   /* rows side by side */
#define STEP 16    /* amplitudes per 32-bit word of a row */
#define QUERIES 8  /* queries that share one load of unpacked codes */

/* ------------------------------------------------------------------------------------------------------- candidates */
typedef struct {
    float *score;
    int32_t *index;
    int32_t count, keep, room;
    float floor; /* what is not above it was let go */
} Pool;

/* Put the `keep` largest scores first (Hoare's selection) and raise the floor to the smallest of them. */
static void settle(Pool *p) {
    if (p->count <= p->keep) return;
    int32_t low = 0, high = p->count - 1, k = p->keep - 1;
    while (low < high) {
        float a = p->score[low], b = p->score[(low + high) / 2], c = p->score[high];
        float pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        int32_t i = low, j = high;
        while (i <= j) {
            while (p->score[i] > pivot) i++;
            while (p->score[j] < pivot) j--;
            if (i <= j) {
                float s = p->score[i];
                int32_t x = p->index[i];
                p->score[i] = p->score[j], p->index[i] = p->index[j];
                p->score[j] = s, p->index[j] = x;
                i++, j--;
            }
        }
        if (k <= j) high = j;
        else if (k >= i) low = i;
        else break;
    }
    float least = p->score[0];
    for (int32_t i = 1; i < p->keep; i++) least = p->score[i] < least ? p->score[i] : least;
    p->count = p->keep, p->floor = least;
}

INLINE void offer(Pool *p, float score, int32_t index) {
    if (score > p->floor) {
        p->score[p->count] = score, p->index[p->count++] = index;
        if (p->count > p->room - BLOCK) settle(p);
    }
}

/* The coarse code: blocks of 16 rows; word t of row r lies at 64 t + 4 r; its byte j holds amplitudes
 * 16 t + 4 p + j, p = 0..3, in bits 2 p; levels (c - 1.5). `rise` (n) brings a sum back to an overlap. */
static void coarse_plain(const uint8_t *block, int32_t steps, const int8_t *q, int32_t *out) {
    memset(out, 0, BLOCK * sizeof(int32_t));
    for (int32_t t = 0; t < steps; t++)
        for (int r = 0; r < BLOCK; r++)
            for (int j = 0; j < 4; j++) {
                int32_t b = block[64 * (int64_t)t + 4 * r + j];
                const int8_t *x = q + STEP * t + j;
                out[r] += (b & 3) * x[0] + (b >> 2 & 3) * x[4] + (b >> 4 & 3) * x[8] + (b >> 6) * x[12];
            }
}

static void take(Pool *p, const int32_t *sums, int32_t lift, const float *rise, int64_t at, int rows) {
    for (int r = 0; r < rows; r++) offer(p, rise[at + r] * ((float)sums[r] - 1.5f * (float)lift), (int32_t)(at + r));
}

#if HAS_X86
AVX2 INLINE __m256i word(const int8_t *q) {
    int32_t w;
    memcpy(&w, q, 4);
    return _mm256_set1_epi32(w);
}

AVX2 static void coarse_avx2(const uint8_t *block, int32_t steps, const int8_t *q, int32_t *out) {
    const __m256i three = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    __m256i total[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int32_t t = 0; t < steps;) {
        /* a pair of products is at most 2 * 3 * 127 = 762: 40 of them stay within 16 bits */
        int32_t end = t + 10 < steps ? t + 10 : steps;
        __m256i acc[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
        for (; t < end; t++) {
            const int8_t *x = q + STEP * t;
            __m256i q0 = word(x), q1 = word(x + 4), q2 = word(x + 8), q3 = word(x + 12);
            for (int h = 0; h < 2; h++) {
                __m256i b = _mm256_loadu_si256((const __m256i *)(block + 64 * (int64_t)t + 32 * h));
                __m256i c0 = _mm256_and_si256(b, three);
                __m256i c1 = _mm256_and_si256(_mm256_srli_epi16(b, 2), three);
                __m256i c2 = _mm256_and_si256(_mm256_srli_epi16(b, 4), three);
                __m256i c3 = _mm256_and_si256(_mm256_srli_epi16(b, 6), three);
                __m256i low = _mm256_add_epi16(_mm256_maddubs_epi16(c0, q0), _mm256_maddubs_epi16(c1, q1));
                __m256i high = _mm256_add_epi16(_mm256_maddubs_epi16(c2, q2), _mm256_maddubs_epi16(c3, q3));
                acc[h] = _mm256_add_epi16(acc[h], _mm256_add_epi16(low, high));
            }
        }
        for (int h = 0; h < 2; h++) total[h] = _mm256_add_epi32(total[h], _mm256_madd_epi16(acc[h], ones));
    }
    for (int h = 0; h < 2; h++) _mm256_storeu_si256((__m256i *)(out + 8 * h), total[h]);
}

AVX512 INLINE __mmask16 first(int32_t left) {
    return left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

AVX512 INLINE void take_avx512(Pool *p, __m512i sums, int32_t lift, const float *rise, int64_t at, int rows) {
    __mmask16 valid = first(rows);
    __m512 centred = _mm512_sub_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(1.5f * (float)lift));
    __m512 score = _mm512_mul_ps(_mm512_maskz_loadu_ps(valid, rise + at), centred);
    __mmask16 above = _mm512_mask_cmp_ps_mask(valid, score, _mm512_set1_ps(p->floor), _CMP_GT_OQ);
    if (__builtin_expect(above != 0, 0)) {
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512i index = _mm512_add_epi32(_mm512_set1_epi32((int32_t)at), lanes);
        _mm512_storeu_ps(p->score + p->count, _mm512_maskz_compress_ps(above, score));
        _mm512_storeu_si512(p->index + p->count, _mm512_maskz_compress_epi32(above, index));
        p->count += __builtin_popcount(above);
        if (p->count > p->room - BLOCK) settle(p);
    }
}

AVX512 INLINE __m512i word512(const int8_t *q) {
    int32_t w;
    memcpy(&w, q, 4);
    return _mm512_set1_epi32(w);
}

AVX512 static void one_avx512(const uint8_t *codes, const float *rise, int64_t n, int32_t steps, const int8_t *q,
                              int32_t lift, Pool *p) {
    /* Codes stay where they are in their byte, so the four sums are 1, 4, 16 and 64 times too large: exactly, so shifts
     * undo it. Two blocks at once would halve the loads of q, and took twice as long: memory is read ahead in one stream */
    const __m512i m0 = _mm512_set1_epi8(3), m1 = _mm512_set1_epi8(12), m2 = _mm512_set1_epi8(48);
    const __m512i m3 = _mm512_set1_epi8((char)192);
    for (int64_t at = 0; at < n; at += BLOCK) {
        __m512i a0 = _mm512_setzero_si512(), a1 = a0, a2 = a0, a3 = a0;
        for (int32_t t = 0; t < steps; t++, codes += 64) {
            __m512i b = _mm512_loadu_si512(codes);
            const int8_t *x = q + STEP * t;
            a0 = _mm512_dpbusd_epi32(a0, _mm512_and_si512(b, m0), word512(x));
            a1 = _mm512_dpbusd_epi32(a1, _mm512_and_si512(b, m1), word512(x + 4));
            a2 = _mm512_dpbusd_epi32(a2, _mm512_and_si512(b, m2), word512(x + 8));
            a3 = _mm512_dpbusd_epi32(a3, _mm512_and_si512(b, m3), word512(x + 12));
        }
        a0 = _mm512_add_epi32(a0, _mm512_srai_epi32(a1, 2));
        a0 = _mm512_add_epi32(a0, _mm512_add_epi32(_mm512_srai_epi32(a2, 4), _mm512_srai_epi32(a3, 6)));
        take_avx512(p, a0, lift, rise, at, n - at < BLOCK ? (int)(n - at) : BLOCK);
    }
}

AVX512 INLINE void many_tile(const __m512i *wide, int32_t steps, const int8_t *q, int64_t width, const int tile,
                             __m512i *acc) {
    for (int u = 0; u < tile; u++) acc[u] = _mm512_setzero_si512();
    for (int32_t t = 0; t < 4 * steps; t++) {
        __m512i c = _mm512_load_si512(wide + t);
        for (int u = 0; u < tile; u++) acc[u] = _mm512_dpbusd_epi32(acc[u], c, word512(q + u * width + 4 * t));
    }
}

AVX512 static void many_avx512(const uint8_t *codes, const float *rise, int64_t n, int32_t steps, const int8_t *q,
                               const int32_t *lift, int64_t m, Pool *pools, __m512i *wide) {
    const __m512i three = _mm512_set1_epi8(3);
    int64_t width = STEP * (int64_t)steps;
    for (int64_t at = 0; at < n; at += BLOCK, codes += 64 * (int64_t)steps) {
        int rows = n - at < BLOCK ? (int)(n - at) : BLOCK;
        for (int32_t t = 0; t < steps; t++) {
            __m512i b = _mm512_loadu_si512(codes + 64 * (int64_t)t);
            for (int p = 0; p < 4; p++)
                _mm512_store_si512(wide + 4 * t + p, _mm512_and_si512(_mm512_srli_epi16(b, 2 * p), three));
        }
        for (int64_t u = 0; u < m; u += QUERIES) {
            __m512i acc[QUERIES];
            int tile = m - u < QUERIES ? (int)(m - u) : QUERIES;
            if (tile == QUERIES) many_tile(wide, steps, q + u * width, width, QUERIES, acc);
            else for (int v = 0; v < tile; v++) many_tile(wide, steps, q + (u + v) * width, width, 1, acc + v);
            for (int v = 0; v < tile; v++) take_avx512(pools + u + v, acc[v], lift[u + v], rise, at, rows);
        }
    }
}
#endif

/* For each of m int8 queries (m, 16 steps) the `keep` rows with the largest coarse overlap, in no order.
 * `score`, `index` (m, room) with room >= 2 keep + 32 are the scratch and hold the answer in front; `count` (m) says how
 * many; `floor` (m) is a bound: every row that is not among them has an overlap at most that. 0, or -1: no memory. */
int32_t qraf_coarse(int32_t level, const uint8_t *codes, const float *rise, int64_t n, int32_t steps, const int8_t *q,
                    const int32_t *lift, int64_t m, int32_t keep, int32_t room, float *score, int32_t *index,
                    int32_t *count, float *floor) {
    Pool *pools = malloc((size_t)(m > 0 ? m : 1) * sizeof(Pool));
    if (!pools) return -1;
    for (int64_t t = 0; t < m; t++)
        pools[t] = (Pool){score + t * room, index + t * room, 0, keep, room, -INFINITY};
    int64_t width = STEP * (int64_t)steps;
#if HAS_X86
    if (level == 2 && m >= 3) {
        __m512i *wide = aligned_alloc(64, (size_t)(steps > 0 ? steps : 1) * 4 * 64);
        if (!wide) {
            free(pools);
            return -1;
        }
        many_avx512(codes, rise, n, steps, q, lift, m, pools, wide);
        free(wide);
    } else if (level == 2) {
        for (int64_t t = 0; t < m; t++) one_avx512(codes, rise, n, steps, q + t * width, lift[t], pools + t);
    } else
#endif
        for (int64_t at = 0; at < n; at += BLOCK) {
            const uint8_t *block = codes + at / BLOCK * 64 * steps;
            int rows = n - at < BLOCK ? (int)(n - at) : BLOCK;
            for (int64_t t = 0; t < m; t++) {
                int32_t sums[BLOCK];
#if HAS_X86
                if (level == 1) coarse_avx2(block, steps, q + t * width, sums);
                else
#endif
                    coarse_plain(block, steps, q + t * width, sums);
                take(pools + t, sums, lift[t], rise, at, rows);
            }
        }
    (void)level;
    for (int64_t t = 0; t < m; t++) {
        settle(pools + t);
        count[t] = pools[t].count, floor[t] = pools[t].floor;
    }
    free(pools);
    return 0;
}


/* R x for one vector, as rotation.py defines it: per block signs, Sylvester's transform of each run, and where the size
 * is 12 runs, Paley's matrix (12, 12) over them. `other` is scratch of the same length. */
static void rotate(double *x, double *other, int32_t num_blocks, const int32_t *blocks, const double *signs,
                   const double *paley) {
    for (int32_t k = 0; k < num_blocks; x += blocks[k], signs += blocks[k], k++) {
        int32_t size = blocks[k], width = size % 12 ? size : size / 12;
        double scale = 1 / sqrt((double)size);
        for (int32_t i = 0; i < size; i++) x[i] *= signs[i];
        for (int32_t step = 1; step < width; step *= 2)
            for (int32_t at = 0; at < size; at += 2 * step)
                for (int32_t i = at; i < at + step; i++) {
                    double low = x[i], high = x[i + step];
                    x[i] = low + high, x[i + step] = low - high;
                }
        if (width < size) {
            memset(other, 0, sizeof(double) * (size_t)size);
            for (int row = 0; row < 12; row++)
                for (int column = 0; column < 12; column++)
                    for (int32_t i = 0; i < width; i++)
                        other[row * width + i] += paley[12 * row + column] * x[column * width + i];
            memcpy(x, other, sizeof(double) * (size_t)size);
        }
        for (int32_t i = 0; i < size; i++) x[i] *= scale;
    }
}

/* Rotate m queries (m, d), in float64 inside: out (m, d). 0, or -1: no memory. */
int32_t qraf_rotate(const float *q, int64_t m, int32_t d, int32_t num_blocks, const int32_t *blocks,
                    const double *signs, const double *paley, float *out) {
    double *x = malloc(2 * sizeof(double) * (size_t)d);
    if (!x) return -1;
    for (int64_t t = 0; t < m; t++, q += d, out += d) {
        for (int32_t i = 0; i < d; i++) x[i] = q[i];
        rotate(x, x + d, num_blocks, blocks, signs, paley);
        for (int32_t i = 0; i < d; i++) out[i] = (float)x[i];
    }
    free(x);
    return 0;
}

/* Round m rotated queries (m, d) to 8 bits: codes (m, 16 steps), zeros after d; what one unit is worth; the sum of the
 * codes; and the length of what rounding took off. */
void qraf_round(const float *q, int64_t m, int32_t d, int32_t steps, int8_t *codes, float *unit, int32_t *lift,
                double *away) {
    memset(codes, 0, (size_t)(m * STEP * steps));
    for (int64_t t = 0; t < m; t++, q += d, codes += STEP * (int64_t)steps) {
        float peak = 0;
        double lost = 0;
        for (int32_t i = 0; i < d; i++) peak = fabsf(q[i]) > peak ? fabsf(q[i]) : peak;
        unit[t] = peak / 127, lift[t] = 0;
        float back = unit[t] > 0 ? 1 / unit[t] : 0;
        for (int32_t i = 0; i < d && back < INFINITY; i++) {
            float c = rintf(q[i] * back);
            c = c > 127 ? 127 : c < -127 ? -127 : c;
            codes[i] = (int8_t)c, lift[t] += (int32_t)c;
        }
        for (int32_t i = 0; i < d; i++) {
            double off = (double)q[i] - (double)unit[t] * codes[i];
            lost += off * off;
        }
        away[t] = sqrt(lost);
    }
}
