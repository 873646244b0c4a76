/* Coded rows against float queries: native.py says what each call gives, reference.py what it means.
 *
 * Plain C99 without Python.h, loaded by ctypes, which lets go of the interpreter's lock for every call. Each kernel has
 * a portable form, and on x86-64 one for AVX2 and one for AVX-512 with VNNI, chosen at run time (`level`). No call
 * reads or writes past the lengths it is given: tails go through masks or through small local copies.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86 1
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define INLINE static inline __attribute__((always_inline))
#define FETCH(p, bytes) \
    for (int64_t b_ = 0; b_ < (bytes); b_ += 64) _mm_prefetch((const char *)(p) + b_, _MM_HINT_T0)
#else
#define HAS_X86 0
#define INLINE static inline
#define FETCH(p, bytes)
#endif

#define TILE 4        /* queries that share one unpacking of a row */

/* How rows of one code are laid out, and the query beside them. `code`: 32 float32, 8 int8, 4 int4, 5 nf4, 2 lloyd2,
 * 1 sign1; `table` holds the levels of nf4 (16), lloyd2 (4) or sign1 (2). A byte holds `per` codes of `width` bits, the
 * first in the low bits. Prepared, a group of a query has `per` runs of `half` floats: run p holds amplitudes p,
 * p + per, p + 2 per, ... of the group, filled up with zeros to a multiple of 16. */
typedef struct {
    int32_t code, d, group, groups, width, per, half, pad, even;
    int64_t split, bytes;
    const float *table;
} Layout;

static Layout layout_of(int32_t code, int32_t d, int32_t group, const float *table) {
    Layout l = {code, d, group, 1, code == 5 ? 4 : code, 1, 0, 0, 0, 0, 0, table};
    if (code == 32 || code < 4) l.group = d;
    l.groups = (int32_t)(((int64_t)d + l.group - 1) / l.group);
    l.per = code < 8 ? 8 / l.width : 1;
    l.half = ((l.group + l.per - 1) / l.per + 15) / 16 * 16;
    l.pad = l.per * l.half;
    l.even = code < 4 ? d % (16 * l.per) == 0 : l.group == 64 && d % 64 == 0;
    l.split = code == 32 ? 4 * (int64_t)d : ((int64_t)d + l.per - 1) / l.per;
    l.bytes = l.split + (code == 32 ? 0 : 2 * (int64_t)l.groups);
    return l;
}

/* Raised with every change of a signature: a library built from other sources is not called. */
int32_t qraf_interface(void) { return 4; }

int32_t qraf_level(void) {
#if HAS_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return 1;
#endif
    return 0;
}

/* Floats per query in the prepared form. */
int64_t qraf_prepared(int32_t code, int32_t d, int32_t group) {
    Layout l = layout_of(code, d, group, NULL);
    return (int64_t)l.groups * l.pad;
}

/* Lay m queries (m, d) out as `Layout` says: out (m, prepared). */
void qraf_prepare(int32_t code, int32_t d, int32_t group, const float *q, int64_t m, float *out) {
    Layout l = layout_of(code, d, group, NULL);
    int64_t width = (int64_t)l.groups * l.pad;
    memset(out, 0, sizeof(float) * (size_t)(m * width));
    for (int64_t t = 0; t < m; t++, q += d, out += width)
        for (int32_t g = 0; g < l.groups; g++) {
            int32_t base = g * l.group, len = d - base < l.group ? d - base : l.group;
            float *og = out + (int64_t)g * l.pad;
            for (int32_t j = 0; j < len; j++) og[j % l.per * l.half + j / l.per] = q[base + j];
        }
}

/* ---------------------------------------------------------------------------------------------------------- portable */
static float widened(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, bits;
    float f;
    if (rest < 0x0400) { /* zero and subnormal */
        f = (float)rest * 5.9604644775390625e-8f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    } else {
        bits = sign | (rest >= 0x7c00 ? 0x7f800000u | (rest & 0x3ff) << 13 : (rest << 13) + 0x38000000u);
    }
    memcpy(&f, &bits, 4);
    return f;
}

/* The amplitudes that the 16 patterns of four low bits stand for in group g, scale included. */
static void levels_of(const Layout *l, float signed_scale, float *level) {
    float s = fabsf(signed_scale), o = signed_scale < 0 ? 8.0f : 7.5f;
    int mask = (1 << l->width) - 1;
    for (int c = 0; c < 16; c++) level[c] = (l->code == 4 ? (float)c - o : l->table[c & mask]) * s;
}

static void wide_plain(const Layout *l, const uint8_t *row, float *out) {
    memset(out, 0, sizeof(float) * (size_t)l->groups * (size_t)l->pad);
    if (l->code == 32) {
        memcpy(out, row, 4 * (size_t)l->d);
        return;
    }
    for (int32_t g = 0; g < l->groups; g++) {
        float s = widened(row + l->split + 2 * (int64_t)g), level[16], *og = out + (int64_t)g * l->pad;
        int32_t base = g * l->group, len = l->d - base < l->group ? l->d - base : l->group;
        if (l->code == 8) {
            for (int32_t j = 0; j < len; j++) og[j] = (float)(int8_t)row[base + j] * s;
            continue;
        }
        levels_of(l, s, level);
        const uint8_t *p = row + base / l->per;
        for (int32_t j = 0; j < len; j++) {
            int32_t place = j % l->per;
            og[place * l->half + j / l->per] = level[p[j / l->per] >> (place * l->width) & ((1 << l->width) - 1)];
        }
    }
}

static void dots_plain(const Layout *l, const uint8_t *row, const float *const *q, int tile, float *out) {
    for (int t = 0; t < tile; t++) out[t] = 0;
    for (int32_t g = 0; g < l->groups; g++) {
        int32_t base = g * l->group, len = l->d - base < l->group ? l->d - base : l->group;
        float s = l->code == 32 ? 1 : widened(row + l->split + 2 * (int64_t)g), level[16];
        if (l->code < 8) levels_of(l, s, level);
        const uint8_t *p = row + base / l->per;
        for (int t = 0; t < tile; t++) {
            const float *qg = q[t] + (int64_t)g * l->pad;
            float acc[4] = {0, 0, 0, 0}; /* four sums: the compiler may not reorder one */
            if (l->code == 32) {
                for (int32_t j = 0; j < len; j++) {
                    float x;
                    memcpy(&x, row + 4 * (int64_t)j, 4);
                    acc[j & 3] += x * qg[j];
                }
            } else if (l->code == 8) {
                for (int32_t j = 0; j < len; j++) acc[j & 3] += (float)(int8_t)p[j] * qg[j];
                for (int j = 0; j < 4; j++) acc[j] *= s;
            } else {
                int32_t bytes = (len + l->per - 1) / l->per;
                for (int32_t j = 0; j < bytes; j++)
                    for (int place = 0; place < l->per; place++)
                        acc[j & 3] += level[p[j] >> (place * l->width) & ((1 << l->width) - 1)] * qg[place * l->half + j];
            }
            out[t] += (acc[0] + acc[1]) + (acc[2] + acc[3]);
        }
    }
}

#if HAS_X86
/* -------------------------------------------------------------------------------------------------------------- AVX2 */
AVX2 INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

AVX2 INLINE float scale_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}

AVX2 INLINE __m128i bytes8(const uint8_t *p, int32_t left) { /* at most 8 bytes, zeros after */
    uint64_t b = 0;
    if (left >= 8) memcpy(&b, p, 8);
    else memcpy(&b, p, (size_t)left);
    return _mm_cvtsi64_si128((long long)b);
}

AVX2 INLINE void packed_avx2(const Layout *l, const uint8_t *row, const float *const *q, const int tile, const int width,
                             float *out) {
    const int per = 8 / width;
    __m256 total[TILE];
    for (int t = 0; t < tile; t++) total[t] = _mm256_setzero_ps();
    for (int32_t g = 0; g < l->groups; g++) {
        int32_t base = g * l->group, len = l->d - base < l->group ? l->d - base : l->group;
        int32_t bytes = (len + per - 1) / per;
        int64_t at = (int64_t)g * l->pad;
        const uint8_t *p = row + base / per;
        float level[16];
        levels_of(l, scale_at(row + l->split + 2 * (int64_t)g), level);
        __m256 low = _mm256_loadu_ps(level), high = _mm256_loadu_ps(level + 8);
        for (int32_t j = 0; j < bytes; j += 8) {
            __m256i b = _mm256_cvtepu8_epi32(bytes8(p + j, bytes - j));
            for (int place = 0; place < per; place++) {
                __m256i c = _mm256_srli_epi32(b, place * width);
                __m256 x = _mm256_permutevar8x32_ps(low, c); /* looks at the low three bits only */
                if (width == 4) {
                    __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(c, 28));
                    x = _mm256_blendv_ps(x, _mm256_permutevar8x32_ps(high, c), is_high);
                }
                for (int t = 0; t < tile; t++)
                    total[t] = _mm256_fmadd_ps(x, _mm256_loadu_ps(q[t] + at + place * l->half + j), total[t]);
            }
        }
    }
    for (int t = 0; t < tile; t++) out[t] = sum8(total[t]);
}

AVX2 INLINE void bytes_avx2(const Layout *l, const uint8_t *row, const float *const *q, const int tile, float *out) {
    __m256 total[TILE];
    for (int t = 0; t < tile; t++) total[t] = _mm256_setzero_ps();
    for (int32_t g = 0; g < l->groups; g++) {
        int32_t base = g * l->group, len = l->d - base < l->group ? l->d - base : l->group;
        int64_t at = (int64_t)g * l->pad;
        __m256 s = _mm256_set1_ps(scale_at(row + l->split + 2 * (int64_t)g)), acc[TILE];
        for (int t = 0; t < tile; t++) acc[t] = _mm256_setzero_ps();
        for (int32_t j = 0; j < len; j += 8) {
            __m256 c = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes8(row + base + j, len - j)));
            for (int t = 0; t < tile; t++) acc[t] = _mm256_fmadd_ps(c, _mm256_loadu_ps(q[t] + at + j), acc[t]);
        }
        for (int t = 0; t < tile; t++) total[t] = _mm256_fmadd_ps(acc[t], s, total[t]);
    }
    for (int t = 0; t < tile; t++) out[t] = sum8(total[t]);
}

AVX2 INLINE void floats_avx2(const Layout *l, const uint8_t *row, const float *const *q, const int tile, float *out) {
    __m256 total[TILE];
    for (int t = 0; t < tile; t++) total[t] = _mm256_setzero_ps();
    for (int32_t j = 0; j < l->d; j += 8) {
        __m256 x;
        if (l->d - j >= 8) {
            x = _mm256_loadu_ps((const float *)(const void *)(row + 4 * (int64_t)j));
        } else {
            float last[8] = {0};
            memcpy(last, row + 4 * (int64_t)j, 4 * (size_t)(l->d - j));
            x = _mm256_loadu_ps(last);
        }
        for (int t = 0; t < tile; t++) total[t] = _mm256_fmadd_ps(x, _mm256_loadu_ps(q[t] + j), total[t]);
    }
    for (int t = 0; t < tile; t++) out[t] = sum8(total[t]);
}

AVX2 INLINE void tile_avx2(const Layout *l, const uint8_t *row, const float *const *q, const int tile, float *out) {
    if (l->code == 32) floats_avx2(l, row, q, tile, out);
    else if (l->code == 8) bytes_avx2(l, row, q, tile, out);
    else if (l->code >= 4) packed_avx2(l, row, q, tile, 4, out);
    else if (l->code == 2) packed_avx2(l, row, q, tile, 2, out);
    else packed_avx2(l, row, q, tile, 1, out);
}

AVX2 static void row_avx2(const Layout *l, const uint8_t *row, const float *const *q, int tile, float *out) {
    if (tile == TILE) tile_avx2(l, row, q, TILE, out);
    else for (int t = 0; t < tile; t++) tile_avx2(l, row, q + t, 1, out + t);
}

AVX2 static void wide_avx2(const Layout *l, const uint8_t *row, float *out) {
    for (int32_t g = 0; g < l->groups; g++) {
        int32_t base = g * l->group, len = l->d - base < l->group ? l->d - base : l->group;
        int32_t bytes = (len + l->per - 1) / l->per;
        const uint8_t *p = row + base / l->per;
        float *og = out + (int64_t)g * l->pad, level[16], signed_scale = scale_at(row + l->split + 2 * (int64_t)g);
        if (l->code < 8) levels_of(l, signed_scale, level);
        __m256 s = _mm256_set1_ps(signed_scale), low = s, high = s;
        if (l->code < 8) low = _mm256_loadu_ps(level), high = _mm256_loadu_ps(level + 8);
        for (int32_t j = 0; j < l->half; j += 8) {
            __m128i b = bytes8(p + (j < bytes ? j : 0), j < bytes ? bytes - j : 0);
            if (l->code == 8) {
                _mm256_storeu_ps(og + j, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)), s));
                continue;
            }
            __m256i c = _mm256_cvtepu8_epi32(b);
            for (int place = 0; place < l->per; place++, c = _mm256_srli_epi32(c, l->width)) {
                __m256 x = _mm256_permutevar8x32_ps(low, c);
                if (l->width == 4) {
                    __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(c, 28));
                    x = _mm256_blendv_ps(x, _mm256_permutevar8x32_ps(high, c), is_high);
                }
                _mm256_storeu_ps(og + place * l->half + j, x);
            }
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- AVX-512 */
AVX512 INLINE __mmask16 first(int32_t left) {
    return left >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << left) - 1);
}

AVX512 INLINE __m512 levels512(const Layout *l, float signed_scale) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 s = _mm512_set1_ps(fabsf(signed_scale));
    if (l->code == 4) return _mm512_mul_ps(_mm512_sub_ps(codes, _mm512_set1_ps(signed_scale < 0 ? 8.0f : 7.5f)), s);
    if (l->code == 5) return _mm512_mul_ps(_mm512_loadu_ps(l->table), s);
    __mmask16 held = l->code == 2 ? 15 : 3;
    __m512i low = _mm512_and_si512(at, _mm512_set1_epi32(held == 15 ? 3 : 1));
    return _mm512_mul_ps(_mm512_permutexvar_ps(low, _mm512_maskz_loadu_ps(held, l->table)), s);
}

/* `even`: no group has a tail, and groups of 4 or 8 bits have 64 amplitudes. Then all lengths are known here. */
AVX512 INLINE void packed_avx512(const Layout *l, const uint8_t *row, const float *const *q, const int tile,
                                 const int width, const int even, float *out) {
    const int per = 8 / width;
    const int32_t half = even && width == 4 ? 32 : l->half;
    __m512 total[TILE], other[TILE];
    for (int t = 0; t < tile; t++) total[t] = other[t] = _mm512_setzero_ps();
    for (int32_t g = 0; g < l->groups; g++) {
        int32_t base = g * l->group, len = l->d - base < l->group ? l->d - base : l->group;
        int32_t bytes = even && width == 4 ? 32 : (len + per - 1) / per;
        int64_t at = (int64_t)g * l->pad;
        const uint8_t *p = row + base / per;
        __m512 level = levels512(l, scale_at(row + l->split + 2 * (int64_t)g));
        for (int32_t j = 0; j < bytes; j += 16) {
            __m512i b = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(even ? 0xffff : first(bytes - j), p + j));
            for (int place = 0; place < per; place += 2) {
                /* a permutation by 32-bit words looks at the low four bits only: it is the unpacking */
                __m512 x = _mm512_permutexvar_ps(_mm512_srli_epi32(b, (unsigned)(place * width)), level);
                __m512 y = _mm512_permutexvar_ps(_mm512_srli_epi32(b, (unsigned)((place + 1) * width)), level);
                for (int t = 0; t < tile; t++) {
                    const float *qp = q[t] + at + place * half + j;
                    total[t] = _mm512_fmadd_ps(x, _mm512_loadu_ps(qp), total[t]);
                    other[t] = _mm512_fmadd_ps(y, _mm512_loadu_ps(qp + half), other[t]);
                }
            }
        }
    }
    for (int t = 0; t < tile; t++) out[t] = _mm512_reduce_add_ps(_mm512_add_ps(total[t], other[t]));
}

AVX512 INLINE void bytes_avx512(const Layout *l, const uint8_t *row, const float *const *q, const int tile,
                                const int even, float *out) {
    __m512 total[TILE];
    for (int t = 0; t < tile; t++) total[t] = _mm512_setzero_ps();
    for (int32_t g = 0; g < l->groups; g++) {
        int32_t base = g * l->group, len = even ? 64 : l->d - base < l->group ? l->d - base : l->group;
        int64_t at = (int64_t)g * l->pad;
        __m512 s = _mm512_set1_ps(scale_at(row + l->split + 2 * (int64_t)g)), acc[TILE];
        for (int t = 0; t < tile; t++) acc[t] = _mm512_setzero_ps();
        for (int32_t j = 0; j < len; j += 16) {
            __m128i b = _mm_maskz_loadu_epi8(even ? 0xffff : first(len - j), row + base + j);
            __m512 c = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
            for (int t = 0; t < tile; t++) acc[t] = _mm512_fmadd_ps(c, _mm512_loadu_ps(q[t] + at + j), acc[t]);
        }
        for (int t = 0; t < tile; t++) total[t] = _mm512_fmadd_ps(acc[t], s, total[t]);
    }
    for (int t = 0; t < tile; t++) out[t] = _mm512_reduce_add_ps(total[t]);
}

AVX512 INLINE void floats_avx512(const Layout *l, const uint8_t *row, const float *const *q, const int tile, float *out) {
    __m512 total[TILE], other[TILE];
    for (int t = 0; t < tile; t++) total[t] = other[t] = _mm512_setzero_ps();
    for (int32_t j = 0; j < l->d; j += 32) {
        __m512 x = _mm512_maskz_loadu_ps(first(l->d - j), row + 4 * (int64_t)j);
        for (int t = 0; t < tile; t++) total[t] = _mm512_fmadd_ps(x, _mm512_loadu_ps(q[t] + j), total[t]);
        if (j + 16 < l->d) {
            __m512 y = _mm512_maskz_loadu_ps(first(l->d - j - 16), row + 4 * (int64_t)(j + 16));
            for (int t = 0; t < tile; t++) other[t] = _mm512_fmadd_ps(y, _mm512_loadu_ps(q[t] + j + 16), other[t]);
        }
    }
    for (int t = 0; t < tile; t++) out[t] = _mm512_reduce_add_ps(_mm512_add_ps(total[t], other[t]));
}

AVX512 INLINE void tile_avx512(const Layout *l, const uint8_t *row, const float *const *q, const int tile, float *out) {
    if (l->code == 32) floats_avx512(l, row, q, tile, out);
    else if (l->code == 8 && l->even) bytes_avx512(l, row, q, tile, 1, out);
    else if (l->code == 8) bytes_avx512(l, row, q, tile, 0, out);
    else if (l->code >= 4 && l->even) packed_avx512(l, row, q, tile, 4, 1, out);
    else if (l->code >= 4) packed_avx512(l, row, q, tile, 4, 0, out);
    else if (l->code == 2 && l->even) packed_avx512(l, row, q, tile, 2, 1, out);
    else if (l->code == 2) packed_avx512(l, row, q, tile, 2, 0, out);
    else if (l->even) packed_avx512(l, row, q, tile, 1, 1, out);
    else packed_avx512(l, row, q, tile, 1, 0, out);
}

AVX512 static void row_avx512(const Layout *l, const uint8_t *row, const float *const *q, int tile, float *out) {
    if (tile == TILE) tile_avx512(l, row, q, TILE, out);
    else for (int t = 0; t < tile; t++) tile_avx512(l, row, q + t, 1, out + t);
}

AVX512 static void wide_avx512(const Layout *l, const uint8_t *row, float *out) {
    for (int32_t g = 0; g < l->groups; g++) {
        int32_t base = g * l->group, len = l->d - base < l->group ? l->d - base : l->group;
        int32_t bytes = (len + l->per - 1) / l->per;
        const uint8_t *p = row + base / l->per;
        float *og = out + (int64_t)g * l->pad, signed_scale = scale_at(row + l->split + 2 * (int64_t)g);
        __m512 s = _mm512_set1_ps(signed_scale), level = s;
        if (l->code < 8) level = levels512(l, signed_scale);
        for (int32_t j = 0; j < l->half; j += 16) {
            __m128i b = _mm_maskz_loadu_epi8(j < bytes ? first(bytes - j) : 0, p + j);
            if (l->code == 8) {
                _mm512_storeu_ps(og + j, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b)), s));
                continue;
            }
            __m512i c = _mm512_cvtepu8_epi32(b);
            for (int place = 0; place < l->per; place++, c = _mm512_srli_epi32(c, (unsigned)l->width))
                _mm512_storeu_ps(og + place * l->half + j, _mm512_permutexvar_ps(c, level));
        }
    }
}
#endif

static void row_dots(int level, const Layout *l, const uint8_t *row, const float *const *q, int tile, float *out) {
#if HAS_X86
    if (level == 2) { row_avx512(l, row, q, tile, out); return; }
    if (level == 1) { row_avx2(l, row, q, tile, out); return; }
#endif
    (void)level;
    dots_plain(l, row, q, tile, out);
}

/* Overlap m prepared queries with n rows that lie `stride` bytes apart: out (m, n). */
void qraf_dots(int32_t level, int32_t code, int32_t d, int32_t group, const float *table, const uint8_t *rows, int64_t n,
               int64_t stride, const float *prepared, int64_t m, float *out) {
    Layout l = layout_of(code, d, group, table);
    int64_t width = (int64_t)l.groups * l.pad;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *row = rows + i * stride;
        if (i + 4 < n) FETCH(row + 4 * stride, l.bytes);
        for (int64_t t = 0; t < m; t += TILE) {
            int tile = m - t < TILE ? (int)(m - t) : TILE;
            const float *q[TILE];
            float got[TILE];
            for (int u = 0; u < tile; u++) q[u] = prepared + (t + u) * width;
            row_dots(level, &l, row, q, tile, got);
            for (int u = 0; u < tile; u++) out[(t + u) * n + i] = got[u];
        }
    }
}

/* Widen n rows to the prepared form: out (n, prepared). What lies past a row's last amplitude is finite, no more. */
void qraf_wide(int32_t level, int32_t code, int32_t d, int32_t group, const float *table, const uint8_t *rows, int64_t n,
               int64_t stride, float *out) {
    Layout l = layout_of(code, d, group, table);
    int64_t width = (int64_t)l.groups * l.pad;
    for (int64_t i = 0; i < n; i++) {
#if HAS_X86
        if (level > 0 && code != 32) {
            if (level == 2) wide_avx512(&l, rows + i * stride, out + i * width);
            else wide_avx2(&l, rows + i * stride, out + i * width);
            continue;
        }
#endif
        wide_plain(&l, rows + i * stride, out + i * width);
    }
    (void)level;
}

/* Score `count` candidates of one query and keep the best k, largest first, equal scores in the order of their rows. */
static void rank_one(int level, const Layout *l, const uint8_t *rows, int64_t stride, const float *prepared,
                     const int32_t *candidates, int32_t count, int32_t k, float *score, int64_t *index, double *next) {
    int32_t held = 0;
    *next = -INFINITY;
    for (int32_t c = 0; c < count; c++) {
        int32_t i = candidates[c];
        float s;
        if (c + 6 < count) FETCH(rows + (int64_t)candidates[c + 6] * stride, l->bytes);
        row_dots(level, l, rows + (int64_t)i * stride, &prepared, 1, &s);
        if (held == k && (k == 0 || s < score[k - 1] || (s == score[k - 1] && i > index[k - 1]))) {
            *next = s > *next ? s : *next;
            continue;
        }
        if (held == k) *next = score[k - 1] > *next ? score[k - 1] : *next;
        else held++;
        int32_t at = held - 1;
        while (at > 0 && (score[at - 1] < s || (score[at - 1] == s && index[at - 1] > i))) {
            score[at] = score[at - 1], index[at] = index[at - 1];
            at--;
        }
        score[at] = s, index[at] = i;
    }
}

/* Rank the first count[t] <= room of candidates (m, room) for each prepared query: score, index (m, k), and the best
 * score that is not among them. 0, or -1: a candidate is no row, or there are fewer than k. */
int32_t qraf_rank(int32_t level, int32_t code, int32_t d, int32_t group, const float *table, const uint8_t *rows,
                  int64_t n, int64_t stride, const float *prepared, int64_t m, const int32_t *candidates, int64_t room,
                  const int32_t *count, int32_t k, float *score, int64_t *index, double *next) {
    Layout l = layout_of(code, d, group, table);
    int64_t width = (int64_t)l.groups * l.pad;
    for (int64_t t = 0; t < m; t++) {
        if (count[t] < k || count[t] > room) return -1;
        for (int32_t c = 0; c < count[t]; c++)
            if (candidates[t * room + c] < 0 || candidates[t * room + c] >= n) return -1;
        rank_one(level, &l, rows, stride, prepared + t * width, candidates + t * room, count[t], k, score + t * k,
                 index + t * k, next + t);
    }
    return 0;
}
