// AVX2: vpmaddubsw multiplies 32 unsigned by 32 signed bytes and adds pairs to int16.
//
// No overflow: a code is at most 2 and |activation| at most 127, so one result is at most 2 * 2 * 127 = 508 in
// magnitude, and 64 results added to one int16 give at most 32,512 < 32,768. Every int16 sum here is moved to int32
// after at most 64 results (kFlushBlocks below for few tokens, kSegmentBlocks and the largest group for panels).
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

namespace wf {
namespace {

constexpr int32_t kPanelRows = 16;        // two registers of 8 rows
constexpr int32_t kTileTokens = 4;        // 2 x 4 sums, 2 codes, 1 broadcast and products in flight of 16 registers
constexpr int32_t kFewTokens = 6;         // measured: 6 tokens 141 GMAC/s in registers, 111 in a panel; 4 tokens
constexpr int32_t kFewGroupedTokens = 3;  // of group 64: 75 in registers, 84 in a panel
constexpr int32_t kSegmentBlocks = 4;     // 256 columns: 64 results of 4 columns each, the most an int16 can hold
constexpr int32_t kFlushBlocks = 16;      // few tokens: 4 results a column block and row

// A register of codes holds rows 2h and 2h + 1 of a block in its two lanes. The transpose in unpack_panel puts
// registers (block 0: rows 0|1), (0: 2|3), (1: 0|1), (1: 2|3) at elements 0, 1, 2, 3 of the lanes.
constexpr int32_t row_at(int32_t position) { return position / 8 * 8 + position % 4 * 2 + position / 4 % 2; }

inline F in_row_order(F x) { return _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }

inline F in_position_order(F x) { return _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)); }

inline __m128 four_halves(const uint16_t* p) {
  return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline void four_from_f16(const uint16_t* p, float* out) { _mm_storeu_ps(out, four_halves(p)); }

struct Planes {
  __m256i plane[4];
};

WF_ALWAYS_INLINE Planes planes_of(__m256i codes) {
  const __m256i two_bits = _mm256_set1_epi8(3);
  return {{_mm256_and_si256(codes, two_bits), _mm256_and_si256(_mm256_srli_epi16(codes, 2), two_bits),
           _mm256_and_si256(_mm256_srli_epi16(codes, 4), two_bits),
           _mm256_and_si256(_mm256_srli_epi16(codes, 6), two_bits)}};
}

WF_ALWAYS_INLINE __m256i load_codes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

WF_ALWAYS_INLINE __m256i sixteen(const int8_t* q) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
}

WF_ALWAYS_INLINE __m256i four_columns(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, 4);
  return _mm256_set1_epi32(bytes);
}

// The four results of one block for two rows, added: at most 4 * 508.
WF_ALWAYS_INLINE __m256i block_product(const Planes& rows, const __m256i* line) {
  const __m256i even =
      _mm256_add_epi16(_mm256_maddubs_epi16(rows.plane[0], line[0]), _mm256_maddubs_epi16(rows.plane[1], line[1]));
  const __m256i odd =
      _mm256_add_epi16(_mm256_maddubs_epi16(rows.plane[2], line[2]), _mm256_maddubs_epi16(rows.plane[3], line[3]));
  return _mm256_add_epi16(even, odd);
}

WF_ALWAYS_INLINE __m256i pairs_to_int32(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }

// [a lane 0, b lane 0 | a lane 1, b lane 1] summed over 4 elements each: rows 0, 1 of a and rows 2, 3 of b.
WF_ALWAYS_INLINE __m128 four_sums(__m256 a, __m256 b) {
  __m256 pairs = _mm256_hadd_ps(a, b);
  pairs = _mm256_hadd_ps(pairs, pairs);
  return _mm_unpacklo_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

// Adds the products of one column block to words[t][0] (rows 0|1) and words[t][1] (rows 2|3).
template <int32_t T>
WF_ALWAYS_INLINE void add_block(const uint8_t* codes, const int8_t* q, int64_t q_stride, __m256i (*words)[2]) {
  const Planes low = planes_of(load_codes(codes)), high = planes_of(load_codes(codes + 32));
  for (int32_t t = 0; t < T; ++t) {
    const int8_t* from = q + t * q_stride;
    const __m256i line[4] = {sixteen(from), sixteen(from + 16), sixteen(from + 32), sixteen(from + 48)};
    words[t][0] = _mm256_add_epi16(words[t][0], block_product(low, line));
    words[t][1] = _mm256_add_epi16(words[t][1], block_product(high, line));
  }
}

// `total` once in each lane, to be subtracted: codes are the ternary values plus one.
WF_ALWAYS_INLINE __m256i once_a_lane(int32_t total) {
  return _mm256_and_si256(_mm256_set1_epi32(total), _mm256_setr_epi32(-1, 0, 0, 0, -1, 0, 0, 0));
}

// One row block of the matrix and the activations it meets.
template <int32_t T>
struct FewTokens {
  const uint8_t* codes;
  const int8_t* q;
  const int32_t* block_sums;
  int32_t columns;  // column blocks

  WF_ALWAYS_INLINE void add(int32_t c, __m256i (*words)[2]) const {
    add_block<T>(codes + static_cast<int64_t>(c) * kBytesPerBlock, q + static_cast<int64_t>(c) * kColumnsPerBlock,
                 static_cast<int64_t>(columns) * kColumnsPerBlock, words);
  }
};

// Adds group `group` times its scales to sums: `low` holds the scales of rows 0|1, `high` of rows 2|3. A group is at
// most 4 column blocks, 16 results an int16.
template <int32_t T, int32_t kGroupBlocks>
WF_ALWAYS_INLINE void add_group(const FewTokens<T>& few, int32_t group, F low, F high, F (*sums)[2]) {
  const int32_t first = group * kGroupBlocks;
  const int32_t last = kGroupBlocks == 1 ? first + 1 : min_of(first + kGroupBlocks, few.columns);
  __m256i words[T][2], totals[T];
  for (int32_t t = 0; t < T; ++t) words[t][0] = words[t][1] = totals[t] = _mm256_setzero_si256();
  for (int32_t c = first; c < last; ++c) {
    few.add(c, words);
    for (int32_t t = 0; t < T; ++t)
      totals[t] = _mm256_add_epi32(totals[t], once_a_lane(few.block_sums[t * few.columns + c]));
  }
  for (int32_t t = 0; t < T; ++t) {
    const __m256i dots0 = _mm256_sub_epi32(pairs_to_int32(words[t][0]), totals[t]);
    const __m256i dots1 = _mm256_sub_epi32(pairs_to_int32(words[t][1]), totals[t]);
    sums[t][0] = V::fma(_mm256_cvtepi32_ps(dots0), low, sums[t][0]);
    sums[t][1] = V::fma(_mm256_cvtepi32_ps(dots1), high, sums[t][1]);
  }
}

template <int32_t T, int32_t kGroupBlocks, bool kScaled>
WF_ALWAYS_INLINE void few_block_grouped(const FewTokens<T>& few, const uint16_t* scales, float* out) {
  const int32_t groups = (few.columns + kGroupBlocks - 1) / kGroupBlocks;
  const __m256i rows01 = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  F sums[T][2];
  for (int32_t t = 0; t < T; ++t) sums[t][0] = sums[t][1] = V::zero();
  int32_t group = 0;
  for (; group + 2 <= groups; group += 2) {  // the scales of 2 groups x 4 rows in one register
    const F two = kScaled ? V::from_f16(scales + group * kRowsPerBlock) : V::set1(1.0f);
    const auto rows = [&](int32_t first) {
      return _mm256_permutevar8x32_ps(two, _mm256_add_epi32(rows01, _mm256_set1_epi32(first)));
    };
    add_group<T, kGroupBlocks>(few, group, rows(0), rows(2), sums);
    add_group<T, kGroupBlocks>(few, group + 1, rows(4), rows(6), sums);
  }
  if (group < groups) {
    F low = V::set1(1.0f), high = low;
    if constexpr (kScaled) {
      const F one = _mm256_castps128_ps256(four_halves(scales + group * kRowsPerBlock));
      low = _mm256_permutevar8x32_ps(one, rows01);
      high = _mm256_permutevar8x32_ps(one, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3));
    }
    add_group<T, kGroupBlocks>(few, group, low, high, sums);
  }
  for (int32_t t = 0; t < T; ++t) _mm_storeu_ps(out + t * kRowsPerBlock, four_sums(sums[t][0], sums[t][1]));
}

// One scale for a row: int16 for kFlushBlocks column blocks, then int32 to the end.
template <int32_t T>
WF_ALWAYS_INLINE void few_block_whole(const FewTokens<T>& few, const int32_t* totals, float* out) {
  __m256i dots[T][2];
  for (int32_t t = 0; t < T; ++t)
    dots[t][0] = dots[t][1] = _mm256_sub_epi32(_mm256_setzero_si256(), once_a_lane(totals[t]));
  for (int32_t first = 0; first < few.columns; first += kFlushBlocks) {
    const int32_t last = min_of(first + kFlushBlocks, few.columns);
    __m256i words[T][2];
    for (int32_t t = 0; t < T; ++t) words[t][0] = words[t][1] = _mm256_setzero_si256();
    for (int32_t c = first; c < last; ++c) few.add(c, words);
    for (int32_t t = 0; t < T; ++t)
      for (int32_t h = 0; h < 2; ++h) dots[t][h] = _mm256_add_epi32(dots[t][h], pairs_to_int32(words[t][h]));
  }
  for (int32_t t = 0; t < T; ++t) {
    __m256i pairs = _mm256_hadd_epi32(dots[t][0], dots[t][1]);
    pairs = _mm256_hadd_epi32(pairs, pairs);
    const __m128i rows = _mm_unpacklo_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_ps(out + t * kRowsPerBlock, _mm_cvtepi32_ps(rows));
  }
}

template <int32_t T, bool kGrouped, bool kScaled>
WF_ALWAYS_INLINE void few_block(const TernaryMatrix* w, int32_t block, const int8_t* q, const int32_t* block_sums,
                                const int32_t* totals, float* out) {
  const FewTokens<T> few{w->codes + static_cast<int64_t>(block) * w->column_blocks * kBytesPerBlock, q, block_sums,
                         w->column_blocks};
  if constexpr (!kGrouped) {
    few_block_whole<T>(few, totals, out);
  } else {
    const int64_t groups = (w->column_blocks + w->group_blocks - 1) / w->group_blocks;
    const uint16_t* scales = w->group_scales + block * groups * kRowsPerBlock;
    if (w->group_blocks == 1) return few_block_grouped<T, 1, kScaled>(few, scales, out);
    if (w->group_blocks == 2) return few_block_grouped<T, 2, kScaled>(few, scales, out);
    few_block_grouped<T, 4, kScaled>(few, scales, out);
  }
}

// Four registers of 2 lanes x 4 dwords: dword d of lane l of register b goes to register d, lane l, element b.
WF_ALWAYS_INLINE void transpose_dwords(const __m256i* in, __m256i* out) {
  const __m256i low01 = _mm256_unpacklo_epi32(in[0], in[1]), high01 = _mm256_unpackhi_epi32(in[0], in[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(in[2], in[3]), high23 = _mm256_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm256_unpacklo_epi64(low01, low23);
  out[1] = _mm256_unpackhi_epi64(low01, low23);
  out[2] = _mm256_unpacklo_epi64(high01, high23);
  out[3] = _mm256_unpackhi_epi64(high01, high23);
}

// 28 + 32 uops for 8 rows x 64 columns.
inline void unpack_panel(const uint8_t* codes, int64_t row_stride, int32_t row_blocks, int32_t blocks, uint8_t* panel) {
  for (int32_t half = 0; half < 2; ++half)
    for (int32_t c = 0; c < blocks; ++c) {
      Planes rows[4];
      for (int32_t i = 0; i < 4; ++i) {
        const int32_t source = half * 2 + i / 2;
        rows[i] =
            planes_of(source < row_blocks ? load_codes(codes + source * row_stride + c * kBytesPerBlock + i % 2 * 32)
                                          : _mm256_setzero_si256());
      }
      for (int32_t p = 0; p < 4; ++p) {
        const __m256i in[4] = {rows[0].plane[p], rows[1].plane[p], rows[2].plane[p], rows[3].plane[p]};
        __m256i out[4];
        transpose_dwords(in, out);
        for (int32_t d = 0; d < 4; ++d)
          _mm256_store_si256(reinterpret_cast<__m256i*>(panel + (c * 16 + p * 4 + d) * (kPanelRows * 4) + half * 32),
                             out[d]);
      }
    }
}

WF_ALWAYS_INLINE void flush(__m256i words, __m256i total, const float* scales, float* sums) {
  const __m256i dots = _mm256_sub_epi32(pairs_to_int32(words), total);
  V::store(sums, V::fma(_mm256_cvtepi32_ps(dots), V::load(scales), V::load(sums)));
}

// An empty statement that uses the sum: without it GCC 12 turns a chain of additions into a tree, which needs every
// product at once and sends them through memory (a third slower).
WF_ALWAYS_INLINE void in_order(__m256i& sum) { __asm__("" : "+x"(sum)); }

// 16 rows x T tokens: for 4 columns 2 loads of codes and T broadcasts feed 2 T vpmaddubsw and 2 T vpaddw. A segment
// is at most 4 column blocks, which is 64 results an int16 sum.
template <int32_t T>
inline void tile(const uint8_t* panel, const float* scales, const int8_t* q, int64_t q_stride,
                 const int32_t* block_sums, int32_t sums_stride, int32_t blocks, int32_t segment_blocks, float* sums) {
  for (int32_t first = 0; first < blocks; first += segment_blocks, scales += kPanelRows) {
    const int32_t last = min_of(first + segment_blocks, blocks);
    __m256i low[T], high[T];
    for (int32_t t = 0; t < T; ++t) low[t] = high[t] = _mm256_setzero_si256();
    for (int32_t c = first; c < last; ++c) {
      const uint8_t* codes = panel + c * kColumnsPerBlock * kPanelRows;
      const int8_t* values = q + c * kColumnsPerBlock;
#pragma GCC unroll 16
      for (int32_t k = 0; k < kColumnsPerBlock; k += 4) {
        const __m256i low_codes = load_codes(codes + k * kPanelRows);
        const __m256i high_codes = load_codes(codes + k * kPanelRows + 32);
        for (int32_t t = 0; t < T; ++t) {
          const __m256i four = four_columns(values + t * q_stride + k);
          low[t] = _mm256_add_epi16(low[t], _mm256_maddubs_epi16(low_codes, four));
          high[t] = _mm256_add_epi16(high[t], _mm256_maddubs_epi16(high_codes, four));
          in_order(low[t]);
          in_order(high[t]);
        }
      }
    }
    for (int32_t t = 0; t < T; ++t) {
      int32_t total = 0;
      for (int32_t c = first; c < last; ++c) total += block_sums[static_cast<int64_t>(t) * sums_stride + c];
      const __m256i totals = _mm256_set1_epi32(total);
      flush(low[t], totals, scales, sums + t * kPanelRows);
      flush(high[t], totals, scales + 8, sums + t * kPanelRows + 8);
    }
  }
}

// 8 independent chains of vpmaddubsw alone. Named one by one: an array of them would live in memory.
int64_t burn_int8(int64_t rounds) {
  const __m256i values = _mm256_set1_epi8(3);
  __m256i a = _mm256_set1_epi8(1), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
  const auto step = [&](__m256i& words) {
    words = _mm256_maddubs_epi16(words, values);
    in_order(words);
  };
  for (int64_t i = 0; i < rounds; ++i) step(a), step(b), step(c), step(d), step(e), step(f), step(g), step(h);
  __asm__ volatile("" : : "x"(a), "x"(b), "x"(c), "x"(d), "x"(e), "x"(f), "x"(g), "x"(h));
  return rounds * 8 * 32;
}

}  // namespace
}  // namespace wf

#include "kernels/ternary_panel-inl.h"

namespace wf {

const Kernels kAvx2Kernels = {
    "avx2",    quantize, ternary_gemm, ternary_dots, q8_gemm,    f16_gemm,  rms_norm,     silu_mul,
    relu2_mul, add,      attend,       store_f16,    attend_f32, burn_int8, attend_block, attend_block_f32,
};

}  // namespace wf
