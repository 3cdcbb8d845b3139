// What the AVX-512 VNNI and the AMX tables share: the vector type, the ternary product for a few tokens and the
// product with quantised tables. vpdpbusd multiplies 64 unsigned by 64 signed bytes and adds groups of four to 16
// int32 sums, one a row, so nothing needs flushing but for scales.
#pragma once
#include <immintrin.h>

#include "kernels/kernels.h"

namespace wf {
namespace {

struct V {
  using F = __m512;
  static constexpr int32_t kLanes = 16;
  static constexpr int32_t kAttendRows = 6;  // 6 x 4 sums + 4 values of 32 registers
  static constexpr int32_t kTileTokens = 6;  // 4 x 6 sums + 6 activations + 1 weight of 32 registers
  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F pow2(F n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_add_ps(n, set1(127.0f))), 23));
  }
  static float sqrt1(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
  static float sum(F x) { return _mm512_reduce_add_ps(x); }
  static void sum4(F a, F b, F c, F d, float* out) {
    const auto halves = [](F x) { return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)); };
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(halves(a), halves(b)), _mm256_hadd_ps(halves(c), halves(d)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
  }
  static float peak(F x) { return _mm512_reduce_max_ps(x); }
  static F from_i8(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static F from_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void to_i8(int8_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x)));
  }
  // 16 x 16: dwords, then pairs of them, then 128-bit lanes change places.
  static void transpose(F* x) {
    F y[16];
    for (int i = 0; i < 16; i += 2) {
      y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
      y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
      for (int j = 0; j < 2; ++j) {
        const __m512d low = _mm512_castps_pd(y[i + j]), high = _mm512_castps_pd(y[i + j + 2]);
        x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    for (int i = 0; i < 4; ++i) {  // x[4 a + i], lane b: rows 4 a ..., column 4 b + i
      const F even01 = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88), odd01 = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xDD);
      const F even23 = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
      const F odd23 = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xDD);
      y[i] = _mm512_shuffle_f32x4(even01, even23, 0x88);
      y[i + 8] = _mm512_shuffle_f32x4(even01, even23, 0xDD);
      y[i + 4] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
      y[i + 12] = _mm512_shuffle_f32x4(odd01, odd23, 0xDD);
    }
    for (int i = 0; i < 16; ++i) x[i] = y[i];
  }
  static void to_f16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
};

}  // namespace
}  // namespace wf

#include "kernels/float_ops-inl.h"
#include "kernels/attend_block-inl.h"
#include "kernels/softmax-inl.h"

namespace wf {
namespace {

constexpr int32_t kFewBlocks = 2;        // two streams of codes
constexpr int32_t kFewBlocksTokens = 8;  // however many tokens

WF_ALWAYS_INLINE __m512i load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }

WF_ALWAYS_INLINE __m512i four_columns(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, 4);
  return _mm512_set1_epi32(bytes);
}

#if defined(__GFNI__)
// The bits 2 p and 2 p + 1 of each byte as a byte: a code, or with kValues a code less one. Both are affine over GF(2),
// and one instruction multiplies every byte by a matrix of 8 x 8 bits: bit i of the result is the parity of row i and
// the byte, negated with kValues. Row i is the byte 7 - i.
template <int kPlace, bool kValues>
WF_ALWAYS_INLINE __m512i bit_field(__m512i bytes) {
  constexpr uint64_t kLow = uint64_t{1} << (2 * kPlace), kHigh = kLow << 1;
  // -1, 0, 1 for the codes 0, 1, 2: bit 0 is clear for 1 alone, the bits above are set for 0 alone (there is no 3)
  constexpr uint64_t kRows = kValues ? kLow << 56 | (kLow | kHigh) * 0x01010101010101 : kLow << 56 | kHigh << 48;
  return _mm512_gf2p8affine_epi64_epi8(bytes, _mm512_set1_epi64(static_cast<int64_t>(kRows)), kValues ? 0xFF : 0);
}
#endif

// The codes of 4 columns of 16 rows in each register: bits 2p and 2p + 1 of 64 bytes.
struct Planes {
  __m512i plane[4];
};

WF_ALWAYS_INLINE Planes planes_of(__m512i codes) {
#if defined(__GFNI__)
  return {
      {bit_field<0, false>(codes), bit_field<1, false>(codes), bit_field<2, false>(codes), bit_field<3, false>(codes)}};
#else
  const __m512i two_bits = _mm512_set1_epi8(3);
  return {{_mm512_and_si512(codes, two_bits), _mm512_and_si512(_mm512_srli_epi16(codes, 2), two_bits),
           _mm512_and_si512(_mm512_srli_epi16(codes, 4), two_bits),
           _mm512_and_si512(_mm512_srli_epi16(codes, 6), two_bits)}};
#endif
}

WF_ALWAYS_INLINE __m512i times_three(__m512i fractions) {
  return _mm512_add_epi8(_mm512_add_epi8(fractions, fractions), fractions);
}

// Five trits a byte as codes: the next code of each byte, and what is left. (3 v) >> 8 is 1 from v = 86 on and 2 from
// 171 on.
WF_ALWAYS_INLINE __m512i next_codes(__m512i* fractions) {
  const __m512i one = _mm512_set1_epi8(1);
  const __m512i first = _mm512_maskz_mov_epi8(_mm512_cmpgt_epu8_mask(*fractions, _mm512_set1_epi8(85)), one);
  const __mmask64 second = _mm512_cmpgt_epu8_mask(*fractions, _mm512_set1_epi8(static_cast<char>(170)));
  *fractions = times_three(*fractions);
  return _mm512_mask_add_epi8(first, second, first, one);
}

// Row blocks side by side and the tokens they meet.
template <int32_t T, int32_t kBlocks>
struct Few {
  const TernaryMatrix* w;
  const uint8_t* codes[kBlocks];
  const int8_t* q;
  const int32_t* block_sums;

  Few(const TernaryMatrix* matrix, int32_t block, int32_t apart, const int8_t* activations, const int32_t* sums)
      : w(matrix), q(activations), block_sums(sums) {
    for (int32_t b = 0; b < kBlocks; ++b)
      codes[b] = w->codes + (block + b * apart) * row_block_bytes(w->layout, w->column_blocks);
  }

  WF_ALWAYS_INLINE const int8_t* activations(int32_t t, int32_t c) const {
    return q + (static_cast<int64_t>(t) * w->column_blocks + c) * kColumnsPerBlock;
  }

  // 64 bytes of row block b; asks for those that come `prefetch` bytes later.
  WF_ALWAYS_INLINE __m512i load(int32_t b, int64_t offset) const {
    _mm_prefetch(reinterpret_cast<const char*>(codes[b] + offset + w->prefetch), _MM_HINT_T0);
    return load_codes(codes[b] + offset);
  }

  // Adds column block c, 256 bytes at `offset`, to dots[b][t][chain]. vpdpbusd takes 4 or 5 cycles, so a token needs
  // several chains to keep the units busy; several tokens are several chains already.
  template <int32_t kChains>
  WF_ALWAYS_INLINE void add_two_bits(int32_t c, int64_t offset, __m512i (*dots)[T][kChains]) const {
    for (int32_t d = 0; d < 4; ++d)
      for (int32_t b = 0; b < kBlocks; ++b) {
        const Planes rows = planes_of(load(b, offset + 64 * d));
        for (int32_t t = 0; t < T; ++t)
          for (int32_t p = 0; p < 4; ++p) {
            __m512i& sum = dots[b][t][p % kChains];
            sum = _mm512_dpbusd_epi32(sum, rows.plane[p], four_columns(activations(t, c) + 16 * p + 4 * d));
          }
      }
  }

  // Adds the superblock of the column blocks c ... c + 4, 1,024 bytes at `offset`, without extracting a code: with the
  // fractions v_0, v_1 = 3 v_0 mod 256, ... the codes are c_p = (3 v_p - v_(p+1)) / 256, so
  // 256 sum c_p q_p = 3 sum v_p q_p - sum v_(p+1) q_p. `here` gets the first sum, `next` the second;
  // plane p goes to element p % kSums of each.
  template <int32_t kSums>
  WF_ALWAYS_INLINE void add_five_trits(int32_t c, int64_t offset, __m512i (*here)[T][kSums],
                                       __m512i (*next)[T][kSums]) const {
#pragma GCC unroll 2
    for (int32_t d = 0; d < 16; ++d)
      for (int32_t b = 0; b < kBlocks; ++b) {
        __m512i fractions = load(b, offset + 64 * d);
        for (int32_t p = 0; p < kBlocksPerFive; ++p) {
          const __m512i later = times_three(fractions);
          for (int32_t t = 0; t < T; ++t) {
            const __m512i four = four_columns(activations(t, c + p) + 4 * d);
            here[b][t][p % kSums] = _mm512_dpbusd_epi32(here[b][t][p % kSums], fractions, four);
            next[b][t][p % kSums] = _mm512_dpbusd_epi32(next[b][t][p % kSums], later, four);
          }
          fractions = later;
        }
      }
  }
};

WF_ALWAYS_INLINE __m512i codes_dot(__m512i here, __m512i next) {
  return _mm512_srai_epi32(_mm512_sub_epi32(_mm512_add_epi32(_mm512_add_epi32(here, here), here), next), 8);
}

// The two sums may wrap around; 256 times the dot product, their exact combination, may not: a superblock adds at most
// 256 * 2 * 127 * 320 to it, so 100 of them stay below 2^31.
constexpr int32_t kMostFives = 64;

// One scale for a row: integers to the end. Float32 holds them exactly (see ternary_panel-inl.h).
template <int32_t T, int32_t kBlocks>
WF_ALWAYS_INLINE void few_whole(const Few<T, kBlocks>& few, const int32_t* totals, float* out) {
  constexpr int32_t kChains = T * kBlocks >= 6 ? 1 : T * kBlocks >= 3 ? 2 : 4;
  __m512i dots[kBlocks][T][kChains];
  for (int32_t b = 0; b < kBlocks; ++b)
    for (int32_t t = 0; t < T; ++t)
      for (int32_t i = 0; i < kChains; ++i) dots[b][t][i] = i ? _mm512_setzero_si512() : _mm512_set1_epi32(-totals[t]);
  int32_t c = 0;
  int64_t offset = 0;
  if constexpr (T <= kFewDenseTokens) {
    const int32_t fives = few.w->layout == TernaryLayout::kFiveTrits ? few.w->column_blocks / kBlocksPerFive : 0;
    constexpr int32_t kSums = T * kBlocks >= 4 ? 1 : 2;
    for (int32_t first = 0; first < fives; first += kMostFives) {
      __m512i here[kBlocks][T][kSums], next[kBlocks][T][kSums];
      for (int32_t b = 0; b < kBlocks; ++b)
        for (int32_t t = 0; t < T; ++t)
          for (int32_t i = 0; i < kSums; ++i) here[b][t][i] = next[b][t][i] = _mm512_setzero_si512();
      for (int32_t s = first; s < min_of(first + kMostFives, fives); ++s, c += kBlocksPerFive, offset += kBytesPerFive)
        few.template add_five_trits<kSums>(c, offset, here, next);
      for (int32_t b = 0; b < kBlocks; ++b)
        for (int32_t t = 0; t < T; ++t)
          for (int32_t i = 1; i < kSums; ++i) {
            here[b][t][0] = _mm512_add_epi32(here[b][t][0], here[b][t][i]);
            next[b][t][0] = _mm512_add_epi32(next[b][t][0], next[b][t][i]);
          }
      for (int32_t b = 0; b < kBlocks; ++b)
        for (int32_t t = 0; t < T; ++t)
          dots[b][t][0] = _mm512_add_epi32(dots[b][t][0], codes_dot(here[b][t][0], next[b][t][0]));
    }
  }
  for (; c < few.w->column_blocks; ++c, offset += kBytesPerBlock) few.template add_two_bits<kChains>(c, offset, dots);
  for (int32_t t = 0; t < T; ++t)
    for (int32_t b = 0; b < kBlocks; ++b) {
      __m512i sum = dots[b][t][0];
      for (int32_t i = 1; i < kChains; ++i) sum = _mm512_add_epi32(sum, dots[b][t][i]);
      V::store(out + (t * kBlocks + b) * kRowsPerBlock, _mm512_cvtepi32_ps(sum));
    }
}

// Adds the codes' dot products of one group, less the sum of its activations, times its scales.
WF_ALWAYS_INLINE F add_scaled(__m512i dots, int32_t activations, F scale, F sums) {
  return V::fma(_mm512_cvtepi32_ps(_mm512_sub_epi32(dots, _mm512_set1_epi32(activations))), scale, sums);
}

template <int32_t T, int32_t kBlocks, int32_t kGroupBlocks, bool kScaled>
WF_ALWAYS_INLINE void few_grouped(const Few<T, kBlocks>& few, int32_t block, int32_t apart, float* out) {
  const int32_t columns = few.w->column_blocks;
  const int64_t groups = (columns + kGroupBlocks - 1) / kGroupBlocks;
  const auto scale_of = [&](int32_t b, int32_t group) -> F {
    if constexpr (!kScaled) return V::set1(1.0f);
    const uint16_t* scales = few.w->group_scales + ((block + b * apart) * groups + group) * kRowsPerBlock;
    _mm_prefetch(reinterpret_cast<const char*>(scales) + few.w->prefetch / 4, _MM_HINT_T0);
    return V::from_f16(scales);
  };
  F sums[kBlocks][T];
  for (int32_t b = 0; b < kBlocks; ++b)
    for (int32_t t = 0; t < T; ++t) sums[b][t] = V::zero();
  int32_t c = 0;
  int64_t offset = 0;
  if constexpr (T <= kFewDenseGroupedTokens) {
    const int32_t in_fives = few.w->layout == TernaryLayout::kFiveTrits ? columns / kBlocksPerFive * kBlocksPerFive : 0;
    for (; c < in_fives; c += kBlocksPerFive, offset += kBytesPerFive) {
      __m512i here[kBlocks][T][kBlocksPerFive], next[kBlocks][T][kBlocksPerFive];
      for (int32_t b = 0; b < kBlocks; ++b)
        for (int32_t t = 0; t < T; ++t)
          for (int32_t p = 0; p < kBlocksPerFive; ++p) here[b][t][p] = next[b][t][p] = _mm512_setzero_si512();
      few.template add_five_trits<kBlocksPerFive>(c, offset, here, next);
      for (int32_t p = 0; p < kBlocksPerFive; ++p)
        for (int32_t b = 0; b < kBlocks; ++b) {
          const F scale = scale_of(b, (c + p) / kGroupBlocks);
          for (int32_t t = 0; t < T; ++t)
            sums[b][t] = add_scaled(codes_dot(here[b][t][p], next[b][t][p]), few.block_sums[t * columns + c + p], scale,
                                    sums[b][t]);
        }
    }
  }
  while (c < columns) {  // with 1.6 bits the blocks left over may begin inside a group
    const int32_t group = c / kGroupBlocks;
    const int32_t last = kGroupBlocks == 1 ? c + 1 : min_of((group + 1) * kGroupBlocks, columns);
    constexpr int32_t kChains = T * kBlocks >= 6 ? 1 : T * kBlocks >= 3 ? 2 : 4;
    __m512i dots[kBlocks][T][kChains];
    int32_t activations[T] = {};
    for (int32_t b = 0; b < kBlocks; ++b)
      for (int32_t t = 0; t < T; ++t)
        for (int32_t i = 0; i < kChains; ++i) dots[b][t][i] = _mm512_setzero_si512();
    for (; c < last; ++c, offset += kBytesPerBlock) {
      for (int32_t t = 0; t < T; ++t) activations[t] += few.block_sums[t * columns + c];
      few.template add_two_bits<kChains>(c, offset, dots);
    }
    for (int32_t b = 0; b < kBlocks; ++b) {
      const F scale = scale_of(b, group);
      for (int32_t t = 0; t < T; ++t) {
        for (int32_t i = 1; i < kChains; ++i) dots[b][t][0] = _mm512_add_epi32(dots[b][t][0], dots[b][t][i]);
        sums[b][t] = add_scaled(dots[b][t][0], activations[t], scale, sums[b][t]);
      }
    }
  }
  for (int32_t t = 0; t < T; ++t)
    for (int32_t b = 0; b < kBlocks; ++b) V::store(out + (t * kBlocks + b) * kRowsPerBlock, sums[b][t]);
}

template <int32_t T, int32_t kBlocks, bool kGrouped, bool kScaled>
inline void few_blocks(const TernaryMatrix* w, int32_t block, int32_t apart, const int8_t* q, const int32_t* block_sums,
                       const int32_t* totals, float* out) {
  const Few<T, kBlocks> few(w, block, apart, q, block_sums);
  if constexpr (!kGrouped) {
    few_whole<T, kBlocks>(few, totals, out);
  } else {
    if (w->group_blocks == 1) return few_grouped<T, kBlocks, 1, kScaled>(few, block, apart, out);
    if (w->group_blocks == 2) return few_grouped<T, kBlocks, 2, kScaled>(few, block, apart, out);
    few_grouped<T, kBlocks, 4, kScaled>(few, block, apart, out);
  }
}

}  // namespace
}  // namespace wf
