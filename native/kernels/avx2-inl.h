// What the AVX2 and the AVX-VNNI tables share on floats: the vector type of 8 lanes and what is built from it.
#pragma once
#include <immintrin.h>

#include "kernels/kernels.h"

namespace wf {
namespace {

struct V {
  using F = __m256;
  static constexpr int32_t kLanes = 8;
  static constexpr int32_t kAttendRows = 3;  // 3 x 4 sums + 3 weights + 1 value of 16 registers
  static constexpr int32_t kTileTokens = 3;  // 4 x 3 sums + 3 activations + 1 weight of 16 registers
  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F pow2(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_add_ps(n, set1(127.0f))), 23));
  }
  static float sqrt1(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
  static float sum(F x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static void sum4(F a, F b, F c, F d, float* out) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
  }
  static float peak(F x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
  static F from_i8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static F from_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static void to_i8(int8_t* p, F x) {
    const __m256i whole = _mm256_cvtps_epi32(x);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  // 8 x 8: dwords, then pairs of them, then 128-bit lanes change places.
  static void transpose(F* x) {
    F y[8];
    for (int i = 0; i < 8; i += 4) {
      const F a = _mm256_unpacklo_ps(x[i], x[i + 1]), b = _mm256_unpackhi_ps(x[i], x[i + 1]);
      const F c = _mm256_unpacklo_ps(x[i + 2], x[i + 3]), d = _mm256_unpackhi_ps(x[i + 2], x[i + 3]);
      y[i] = _mm256_shuffle_ps(a, c, 0x44);
      y[i + 1] = _mm256_shuffle_ps(a, c, 0xEE);
      y[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
      y[i + 3] = _mm256_shuffle_ps(b, d, 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm256_permute2f128_ps(y[i], y[i + 4], 0x20);
      x[i + 4] = _mm256_permute2f128_ps(y[i], y[i + 4], 0x31);
    }
  }
  static void to_f16(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
};

}  // namespace
}  // namespace wf

#include "kernels/float_ops-inl.h"
#include "kernels/attend_block-inl.h"
#include "kernels/softmax-inl.h"

namespace wf {
namespace {

WF_ALWAYS_INLINE __m256i load_codes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

WF_ALWAYS_INLINE void store_codes(uint8_t* p, __m256i codes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), codes);
}

// Four columns for every row: a load, no shuffle.
WF_ALWAYS_INLINE __m256i four_columns(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, 4);
  return _mm256_set1_epi32(bytes);
}

// body(0), body(1), ... body(N - 1), each written out before the compiler decides what lives in registers: arrays of
// sums that a loop goes through are stored in every turn, even when the loop is unrolled later.
// With the sanitizers a plain loop: instrumented, the written-out form compiles for many minutes.
template <int32_t N, class Body>
WF_ALWAYS_INLINE void times(const Body& body) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  for (int32_t i = 0; i < N; ++i) body(i);
#else
  if constexpr (N > 0) {
    times<N - 1>(body);
    body(N - 1);
  }
#endif
}
#define WF_INLINE_BODY __attribute__((always_inline))

// An empty statement that uses the sum: without it GCC 12 turns a chain of additions into a tree, which needs every
// product at once and sends them through memory (a third slower).
WF_ALWAYS_INLINE void in_order(__m256i& sum) { __asm__("" : "+x"(sum)); }

}  // namespace
}  // namespace wf
