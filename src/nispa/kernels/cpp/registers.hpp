// One register of float32 lanes, one image a lane: AVX-512, AVX2, NEON, or plain loops.
//
// The file is compiled once for each instruction set; each build has its own WIDTH.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#define NISPA_ISA "avx512"
constexpr int WIDTH = 16;      // floats of a register
constexpr int REGISTERS = 32;  // sizes tiles: sums that do not fit are stored and loaded each time
constexpr int LANES = 16;      // images side by side
struct Reg {
  __m512 v;
};
static inline Reg load_register(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Reg a) { _mm512_storeu_ps(p, a.v); }
static inline Reg broadcast_register(float a) { return {_mm512_set1_ps(a)}; }
static inline Reg add(Reg a, Reg b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Reg fma(Reg a, Reg b, Reg c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// If one is NaN, the instruction gives its second argument: zero must come first.
static inline Reg relu(Reg a) { return {_mm512_max_ps(_mm512_setzero_ps(), a.v)}; }  // keeps NaN
// The larger one; NaN if either is.
static inline Reg larger(Reg a, Reg b) {
  // NLE is also true where one is NaN: then b is taken, unless it is a that is NaN.
  const __mmask16 take = _mm512_cmp_ps_mask(b.v, a.v, _CMP_NLE_UQ);
  const __mmask16 ordered = _mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q);
  return {_mm512_mask_mov_ps(a.v, take & ordered, b.v)};
}
// g where not test <= 0, else 0.
static inline Reg where_positive(Reg test, Reg g) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test.v, _mm512_setzero_ps(), _CMP_NLE_UQ), g.v)};
}
// yes where a == b (or both are NaN), else no.
static inline Reg where_same(Reg a, Reg b, Reg yes, Reg no) {
  const __mmask16 same = _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ) |
                         (_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) &
                          _mm512_cmp_ps_mask(b.v, b.v, _CMP_UNORD_Q));
  return {_mm512_mask_mov_ps(no.v, same, yes.v)};
}
// Each instruction set adds lanes in an order of its own: one reason why the last bits of a run
// depend on it.
static inline float sum(Reg a) { return _mm512_reduce_add_ps(a.v); }
// The sums of four vectors, added to what lies there.
static inline void add_sums(float* to, Reg a, Reg b, Reg c, Reg d) {
  // Sums of pairs, then of fours, within each quarter of the vectors; then the quarters are added.
  // The four results come out side by side, at little more than the price of one.
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512 all =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), four));
}
// WIDTH values from `x` on of WIDTH rows, so that a lane of the registers stored at `to`, LANES
// floats apart, is a row.
static inline void turn(const float* const* row, int64_t x, float* to) {
  // Three rounds of exchanges: within pairs of rows, within fours, then of whole quarters.
  __m512 four[16];  // in each quarter, one value each of four rows
  for (int i = 0; i < 16; i += 4) {
    const __m512 a = _mm512_loadu_ps(row[i] + x), b = _mm512_loadu_ps(row[i + 1] + x);
    const __m512 c = _mm512_loadu_ps(row[i + 2] + x), d = _mm512_loadu_ps(row[i + 3] + x);
    const __m512 low = _mm512_unpacklo_ps(a, b), low2 = _mm512_unpacklo_ps(c, d);
    const __m512 high = _mm512_unpackhi_ps(a, b), high2 = _mm512_unpackhi_ps(c, d);
    four[i] = _mm512_shuffle_ps(low, low2, 0x44);
    four[i + 1] = _mm512_shuffle_ps(low, low2, 0xee);
    four[i + 2] = _mm512_shuffle_ps(high, high2, 0x44);
    four[i + 3] = _mm512_shuffle_ps(high, high2, 0xee);
  }
  for (int i = 0; i < 4; i++) {
    const __m512 even = _mm512_shuffle_f32x4(four[i], four[4 + i], 0x88);
    const __m512 even2 = _mm512_shuffle_f32x4(four[8 + i], four[12 + i], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(four[i], four[4 + i], 0xdd);
    const __m512 odd2 = _mm512_shuffle_f32x4(four[8 + i], four[12 + i], 0xdd);
    _mm512_storeu_ps(to + i * LANES, _mm512_shuffle_f32x4(even, even2, 0x88));
    _mm512_storeu_ps(to + (4 + i) * LANES, _mm512_shuffle_f32x4(odd, odd2, 0x88));
    _mm512_storeu_ps(to + (8 + i) * LANES, _mm512_shuffle_f32x4(even, even2, 0xdd));
    _mm512_storeu_ps(to + (12 + i) * LANES, _mm512_shuffle_f32x4(odd, odd2, 0xdd));
  }
}

#elif defined(__AVX2__) && (defined(__FMA__) || defined(_MSC_VER))
#include <immintrin.h>
#define NISPA_ISA "avx2"
constexpr int WIDTH = 8;
constexpr int REGISTERS = 16;
// A pixel of so many images fills a line of the cache. With 8, Linear layers, which read pixels in
// no order, would throw away half of what the caches deliver.
constexpr int LANES = 16;
struct Reg {
  __m256 v;
};
static inline Reg load_register(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline void store(float* p, Reg a) { _mm256_storeu_ps(p, a.v); }
static inline Reg broadcast_register(float a) { return {_mm256_set1_ps(a)}; }
static inline Reg add(Reg a, Reg b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline Reg fma(Reg a, Reg b, Reg c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline Reg relu(Reg a) { return {_mm256_max_ps(_mm256_setzero_ps(), a.v)}; }
static inline Reg larger(Reg a, Reg b) {
  const __m256 take = _mm256_cmp_ps(b.v, a.v, _CMP_NLE_UQ);
  const __m256 ordered = _mm256_cmp_ps(a.v, a.v, _CMP_ORD_Q);
  return {_mm256_blendv_ps(a.v, b.v, _mm256_and_ps(take, ordered))};
}
static inline Reg where_positive(Reg test, Reg g) {
  return {_mm256_and_ps(_mm256_cmp_ps(test.v, _mm256_setzero_ps(), _CMP_NLE_UQ), g.v)};
}
static inline Reg where_same(Reg a, Reg b, Reg yes, Reg no) {
  const __m256 nan = _mm256_and_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q),
                                   _mm256_cmp_ps(b.v, b.v, _CMP_UNORD_Q));
  const __m256 same = _mm256_or_ps(_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ), nan);
  return {_mm256_blendv_ps(no.v, yes.v, same)};
}
static inline float sum(Reg a) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));
}
static inline void add_sums(float* to, Reg a, Reg b, Reg c, Reg d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c.v, d.v), _mm256_unpackhi_ps(c.v, d.v));
  const __m256 all =
      _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), four));
}
static inline void turn(const float* const* row, int64_t x, float* to) {
  __m256 four[8];
  for (int i = 0; i < 8; i += 4) {
    const __m256 a = _mm256_loadu_ps(row[i] + x), b = _mm256_loadu_ps(row[i + 1] + x);
    const __m256 c = _mm256_loadu_ps(row[i + 2] + x), d = _mm256_loadu_ps(row[i + 3] + x);
    const __m256 low = _mm256_unpacklo_ps(a, b), low2 = _mm256_unpacklo_ps(c, d);
    const __m256 high = _mm256_unpackhi_ps(a, b), high2 = _mm256_unpackhi_ps(c, d);
    four[i] = _mm256_shuffle_ps(low, low2, 0x44);
    four[i + 1] = _mm256_shuffle_ps(low, low2, 0xee);
    four[i + 2] = _mm256_shuffle_ps(high, high2, 0x44);
    four[i + 3] = _mm256_shuffle_ps(high, high2, 0xee);
  }
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(to + i * LANES, _mm256_permute2f128_ps(four[i], four[4 + i], 0x20));
    _mm256_storeu_ps(to + (4 + i) * LANES, _mm256_permute2f128_ps(four[i], four[4 + i], 0x31));
  }
}

#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define NISPA_ISA "neon"
constexpr int WIDTH = 4;
constexpr int REGISTERS = 32;
constexpr int LANES = 16;
struct Reg {
  float32x4_t v;
};
static inline Reg load_register(const float* p) { return {vld1q_f32(p)}; }
static inline void store(float* p, Reg a) { vst1q_f32(p, a.v); }
static inline Reg broadcast_register(float a) { return {vdupq_n_f32(a)}; }
static inline Reg add(Reg a, Reg b) { return {vaddq_f32(a.v, b.v)}; }
static inline Reg fma(Reg a, Reg b, Reg c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
static inline Reg relu(Reg a) { return {vmaxq_f32(a.v, vdupq_n_f32(0.0f))}; }  // NaN if either is
static inline Reg larger(Reg a, Reg b) { return {vmaxq_f32(a.v, b.v)}; }
static inline Reg where_positive(Reg test, Reg g) {
  const float32x4_t zero = vdupq_n_f32(0.0f);
  return {vbslq_f32(vcleq_f32(test.v, zero), zero, g.v)};
}
static inline Reg where_same(Reg a, Reg b, Reg yes, Reg no) {
  const uint32x4_t numbers = vorrq_u32(vceqq_f32(a.v, a.v), vceqq_f32(b.v, b.v));
  const uint32x4_t same = vorrq_u32(vceqq_f32(a.v, b.v), vmvnq_u32(numbers));
  return {vbslq_f32(same, yes.v, no.v)};
}
static inline float sum(Reg a) { return vaddvq_f32(a.v); }
static inline void add_sums(float* to, Reg a, Reg b, Reg c, Reg d) {
  const float32x4_t four = vpaddq_f32(vpaddq_f32(a.v, b.v), vpaddq_f32(c.v, d.v));
  vst1q_f32(to, vaddq_f32(vld1q_f32(to), four));
}
static inline void turn(const float* const* row, int64_t x, float* to) {
  const float32x4x2_t low = vtrnq_f32(vld1q_f32(row[0] + x), vld1q_f32(row[1] + x));
  const float32x4x2_t high = vtrnq_f32(vld1q_f32(row[2] + x), vld1q_f32(row[3] + x));
  for (int i = 0; i < 2; i++) {
    vst1q_f32(to + i * LANES, vcombine_f32(vget_low_f32(low.val[i]), vget_low_f32(high.val[i])));
    vst1q_f32(to + (2 + i) * LANES,
              vcombine_f32(vget_high_f32(low.val[i]), vget_high_f32(high.val[i])));
  }
}

#else
#define NISPA_ISA "plain"
constexpr int WIDTH = 8;
constexpr int REGISTERS = 16;
constexpr int LANES = 8;
struct Reg {
  float v[WIDTH];
};
#define NISPA_EACH(expression)                                   \
  Reg r;                                                         \
  for (int i = 0; i < WIDTH; i++) r.v[i] = (expression);         \
  return r
static inline Reg load_register(const float* p) { NISPA_EACH(p[i]); }
static inline void store(float* p, Reg a) {
  for (int i = 0; i < WIDTH; i++) p[i] = a.v[i];
}
static inline Reg broadcast_register(float a) { NISPA_EACH(a); }
static inline Reg add(Reg a, Reg b) { NISPA_EACH(a.v[i] + b.v[i]); }
// Rounded twice: a fused one would be a function call on processors without the instruction.
static inline Reg fma(Reg a, Reg b, Reg c) { NISPA_EACH(a.v[i] * b.v[i] + c.v[i]); }
static inline Reg relu(Reg a) { NISPA_EACH(a.v[i] < 0.0f ? 0.0f : a.v[i]); }
static inline Reg larger(Reg a, Reg b) {
  NISPA_EACH(b.v[i] <= a.v[i] || a.v[i] != a.v[i] ? a.v[i] : b.v[i]);
}
static inline Reg where_positive(Reg test, Reg g) { NISPA_EACH(test.v[i] <= 0.0f ? 0.0f : g.v[i]); }
static inline Reg where_same(Reg a, Reg b, Reg yes, Reg no) {
  NISPA_EACH(a.v[i] == b.v[i] || (a.v[i] != a.v[i] && b.v[i] != b.v[i]) ? yes.v[i] : no.v[i]);
}
static inline float sum(Reg a) {
  float r = 0.0f;
  for (int i = 0; i < WIDTH; i++) r += a.v[i];
  return r;
}
static inline void add_sums(float* to, Reg a, Reg b, Reg c, Reg d) {
  to[0] += sum(a);
  to[1] += sum(b);
  to[2] += sum(c);
  to[3] += sum(d);
}
static inline void turn(const float* const* row, int64_t x, float* to) {
  for (int lane = 0; lane < WIDTH; lane++)
    for (int i = 0; i < WIDTH; i++) to[i * LANES + lane] = row[lane][x + i];
}
#undef NISPA_EACH
#endif

// Loops over tiles are templates that take their sums by reference. Where a compiler does not put
// them into one function, the sums lie in memory.
#if defined(__GNUC__) || defined(__clang__)
#define NISPA_INLINE static inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define NISPA_INLINE static __forceinline
#else
#define NISPA_INLINE static inline
#endif

// With few registers, values carried from one iteration to the next would push sums out of them.
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__AVX512F__)
#define NISPA_KEEP_LOADS() __asm__ volatile("" ::: "memory")
#else
#define NISPA_KEEP_LOADS()
#endif
