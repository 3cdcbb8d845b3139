// AVX-512 with VNNI: vpdpbusd multiplies 64 unsigned by 64 signed bytes and adds groups of four to 16 int32 sums, so
// nothing overflows (|sum| <= 2 * 127 * columns < 2^31 for any model) and nothing needs flushing but for scales.
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

namespace wf {
namespace {

constexpr int32_t kPanelRows = 32;  // two registers of 16 rows
constexpr int32_t kTileTokens = 6;  // 2 x 6 integer and 2 x 6 float sums of 32 registers
constexpr int32_t kFewTokens = 4;   // measured: where both ways are equally fast
constexpr int32_t kFewGroupedTokens = 4;
constexpr int32_t kSegmentBlocks = 8;  // a whole panel

// Lane r of a register of codes is row r of a block, so after the 4 x 4 transpose of four blocks in unpack_panel
// lane r, element b is row r of block b.
constexpr int32_t row_at(int32_t position) { return position / 16 * 16 + position % 4 * 4 + position / 4 % 4; }

inline F in_row_order(F x) {  // a 4 x 4 transpose is its own inverse
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
}

inline F in_position_order(F x) { return in_row_order(x); }

inline void four_from_f16(const uint16_t* p, float* out) {
  _mm_storeu_ps(out, _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// The codes of 16 columns of 4 rows in each register: bits 2p and 2p + 1 of the 64 bytes of a block.
struct Planes {
  __m512i plane[4];
};

WF_ALWAYS_INLINE Planes planes_of(__m512i codes) {
  const __m512i two_bits = _mm512_set1_epi8(3);
  return {{_mm512_and_si512(codes, two_bits), _mm512_and_si512(_mm512_srli_epi16(codes, 2), two_bits),
           _mm512_and_si512(_mm512_srli_epi16(codes, 4), two_bits),
           _mm512_and_si512(_mm512_srli_epi16(codes, 6), two_bits)}};
}

WF_ALWAYS_INLINE __m512i sixteen(const int8_t* q) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
}

WF_ALWAYS_INLINE __m512i four_columns(const int8_t* q) {
  int32_t bytes;
  __builtin_memcpy(&bytes, q, 4);
  return _mm512_set1_epi32(bytes);
}

// A few tokens, one row block: T tokens share one unpack (7 uops for 256 weights), then 4 vpdpbusd a token.
template <int32_t T>
struct FewTokens {
  const uint8_t* codes;  // of this row block
  const int8_t* q;
  const int32_t* block_sums;
  int32_t columns;  // column blocks

  // Adds column block c to dots[t][plane % kChains]. vpdpbusd takes 4 cycles, so a token needs several chains of them
  // to keep the unit busy; several tokens are several chains already.
  template <int32_t kChains>
  WF_ALWAYS_INLINE void add(int32_t c, __m512i (*dots)[kChains]) const {
    const Planes rows = planes_of(_mm512_loadu_si512(codes + static_cast<int64_t>(c) * kBytesPerBlock));
    for (int32_t t = 0; t < T; ++t) {
      const int8_t* line = q + (static_cast<int64_t>(t) * columns + c) * kColumnsPerBlock;
      for (int32_t p = 0; p < 4; ++p)
        dots[t][p % kChains] = _mm512_dpbusd_epi32(dots[t][p % kChains], rows.plane[p], sixteen(line + 16 * p));
    }
  }
};

// The sums of the 4 elements of each lane, as 4 floats.
WF_ALWAYS_INLINE __m128 lane_sums(F x) {
  x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4E));
  x = _mm512_add_ps(x, _mm512_permute_ps(x, 0xB1));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, x));
}

// One scale for a row: integers to the end. Float32 holds them exactly (see ternary_panel-inl.h).
template <int32_t T>
WF_ALWAYS_INLINE void few_block_whole(const FewTokens<T>& few, const int32_t* totals, float* out) {
  constexpr int32_t kChains = T == 1 ? 4 : T == 2 ? 2 : 1;
  __m512i dots[T][kChains];
  for (int32_t t = 0; t < T; ++t)
    for (int32_t i = 0; i < kChains; ++i) dots[t][i] = _mm512_setzero_si512();
  for (int32_t c = 0; c < few.columns; ++c) few.template add<kChains>(c, dots);
  for (int32_t t = 0; t < T; ++t) {
    __m512i sum = _mm512_sub_epi32(dots[t][0], _mm512_maskz_set1_epi32(0x1111, totals[t]));
    for (int32_t i = 1; i < kChains; ++i) sum = _mm512_add_epi32(sum, dots[t][i]);
    _mm_storeu_ps(out + t * kRowsPerBlock, lane_sums(_mm512_cvtepi32_ps(sum)));
  }
}

// Adds group `group` times its scale to sums. `scale` holds the scale of row r in lane r.
template <int32_t T, int32_t kGroupBlocks>
WF_ALWAYS_INLINE void add_group(const FewTokens<T>& few, int32_t group, F scale, F* sums) {
  const int32_t first = group * kGroupBlocks;
  const int32_t last = kGroupBlocks == 1 ? first + 1 : min_of(first + kGroupBlocks, few.columns);
  __m512i dots[T][1];
  for (int32_t t = 0; t < T; ++t) dots[t][0] = _mm512_setzero_si512();
  for (int32_t c = first; c < last; ++c) {
    for (int32_t t = 0; t < T; ++t)  // once in each lane: codes are the ternary values plus one
      dots[t][0] = _mm512_sub_epi32(dots[t][0], _mm512_maskz_set1_epi32(0x1111, few.block_sums[t * few.columns + c]));
    few.template add<1>(c, dots);
  }
  for (int32_t t = 0; t < T; ++t) sums[t] = V::fma(_mm512_cvtepi32_ps(dots[t][0]), scale, sums[t]);
}

template <int32_t T, int32_t kGroupBlocks, bool kScaled>
WF_ALWAYS_INLINE void few_block_grouped(const FewTokens<T>& few, const uint16_t* scales, float* out) {
  const int32_t groups = (few.columns + kGroupBlocks - 1) / kGroupBlocks;
  const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  F sums[T];
  for (int32_t t = 0; t < T; ++t) sums[t] = V::zero();
  int32_t group = 0;
  for (; group + 4 <= groups; group += 4) {  // the scales of 4 groups x 4 rows in one register
    const F four = kScaled ? V::from_f16(scales + group * kRowsPerBlock) : V::set1(1.0f);
    add_group<T, kGroupBlocks>(few, group, _mm512_permutexvar_ps(lane, four), sums);
    add_group<T, kGroupBlocks>(few, group + 1,
                               _mm512_permutexvar_ps(_mm512_add_epi32(lane, _mm512_set1_epi32(4)), four), sums);
    add_group<T, kGroupBlocks>(few, group + 2,
                               _mm512_permutexvar_ps(_mm512_add_epi32(lane, _mm512_set1_epi32(8)), four), sums);
    add_group<T, kGroupBlocks>(few, group + 3,
                               _mm512_permutexvar_ps(_mm512_add_epi32(lane, _mm512_set1_epi32(12)), four), sums);
  }
  for (; group < groups; ++group) {
    F scale = V::set1(1.0f);
    if constexpr (kScaled) {
      const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + group * kRowsPerBlock));
      scale = _mm512_permutexvar_ps(lane, _mm512_castps128_ps512(_mm_cvtph_ps(halves)));
    }
    add_group<T, kGroupBlocks>(few, group, scale, sums);
  }
  for (int32_t t = 0; t < T; ++t) _mm_storeu_ps(out + t * kRowsPerBlock, lane_sums(sums[t]));
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

// Four registers of 4 lanes x 4 dwords: dword d of lane r of register b goes to register d, lane r, element b.
WF_ALWAYS_INLINE void transpose_dwords(const __m512i* in, __m512i* out) {
  const __m512i low01 = _mm512_unpacklo_epi32(in[0], in[1]), high01 = _mm512_unpackhi_epi32(in[0], in[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(in[2], in[3]), high23 = _mm512_unpackhi_epi32(in[2], in[3]);
  out[0] = _mm512_unpacklo_epi64(low01, low23);
  out[1] = _mm512_unpackhi_epi64(low01, low23);
  out[2] = _mm512_unpacklo_epi64(high01, high23);
  out[3] = _mm512_unpackhi_epi64(high01, high23);
}

// 28 + 32 uops for 16 rows x 64 columns.
inline void unpack_panel(const uint8_t* codes, int64_t row_stride, int32_t row_blocks, int32_t blocks, uint8_t* panel) {
  for (int32_t half = 0; half < 2; ++half)
    for (int32_t c = 0; c < blocks; ++c) {
      Planes rows[4];
      for (int32_t b = 0; b < 4; ++b) {
        const int32_t source = half * 4 + b;
        rows[b] = planes_of(source < row_blocks ? _mm512_loadu_si512(codes + source * row_stride + c * kBytesPerBlock)
                                                : _mm512_setzero_si512());
      }
      for (int32_t p = 0; p < 4; ++p) {
        const __m512i in[4] = {rows[0].plane[p], rows[1].plane[p], rows[2].plane[p], rows[3].plane[p]};
        __m512i out[4];
        transpose_dwords(in, out);
        for (int32_t d = 0; d < 4; ++d)
          _mm512_store_si512(panel + (c * 16 + p * 4 + d) * (kPanelRows * 4) + half * 64, out[d]);
      }
    }
}

// 32 rows x T tokens: for 4 columns 2 loads of codes and T broadcasts feed 2 T vpdpbusd. The 16 steps of a column
// block are written out: with group scales a loop of 16 turns would end, and be mispredicted, every 200 cycles.
template <int32_t T>
inline void tile(const uint8_t* panel, const float* scales, const int8_t* q, int64_t q_stride,
                 const int32_t* block_sums, int32_t sums_stride, int32_t blocks, int32_t segment_blocks, float* sums) {
  F low[T], high[T];
  for (int32_t t = 0; t < T; ++t) {
    low[t] = V::load(sums + t * kPanelRows);
    high[t] = V::load(sums + t * kPanelRows + 16);
  }
  for (int32_t first = 0; first < blocks; first += segment_blocks, scales += kPanelRows) {
    const int32_t last = min_of(first + segment_blocks, blocks);
    __m512i low_dots[T], high_dots[T];
    for (int32_t t = 0; t < T; ++t) low_dots[t] = high_dots[t] = _mm512_setzero_si512();
    for (int32_t c = first; c < last; ++c) {
      const uint8_t* codes = panel + c * kColumnsPerBlock * kPanelRows;
      const int8_t* values = q + c * kColumnsPerBlock;
      for (int32_t t = 0; t < T; ++t) {  // codes are the ternary values plus one
        const __m512i total = _mm512_set1_epi32(block_sums[static_cast<int64_t>(t) * sums_stride + c]);
        low_dots[t] = _mm512_sub_epi32(low_dots[t], total);
        high_dots[t] = _mm512_sub_epi32(high_dots[t], total);
      }
#pragma GCC unroll 16
      for (int32_t k = 0; k < kColumnsPerBlock; k += 4) {
        const __m512i low_codes = _mm512_load_si512(codes + k * kPanelRows);
        const __m512i high_codes = _mm512_load_si512(codes + k * kPanelRows + 64);
        for (int32_t t = 0; t < T; ++t) {
          const __m512i four = four_columns(values + t * q_stride + k);
          low_dots[t] = _mm512_dpbusd_epi32(low_dots[t], low_codes, four);
          high_dots[t] = _mm512_dpbusd_epi32(high_dots[t], high_codes, four);
        }
      }
    }
    for (int32_t t = 0; t < T; ++t) {
      low[t] = V::fma(_mm512_cvtepi32_ps(low_dots[t]), V::load(scales), low[t]);
      high[t] = V::fma(_mm512_cvtepi32_ps(high_dots[t]), V::load(scales + 16), high[t]);
    }
  }
  for (int32_t t = 0; t < T; ++t) {
    V::store(sums + t * kPanelRows, low[t]);
    V::store(sums + t * kPanelRows + 16, high[t]);
  }
}

// 12 independent chains hide the latency; the empty assembly keeps the compiler from removing them.
int64_t burn_int8(int64_t rounds) {
  __m512i sums[12];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  __m512i codes = _mm512_set1_epi8(2), values = _mm512_set1_epi8(3);
  for (int64_t i = 0; i < rounds; ++i) {
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, codes, values);
    __asm__ volatile("" : "+v"(codes), "+v"(values));
  }
  for (__m512i& sum : sums) __asm__ volatile("" : : "v"(sum));
  return rounds * 12 * 64;
}

}  // namespace
}  // namespace wf

#include "kernels/ternary_panel-inl.h"

namespace wf {

const Kernels kAvx512VnniKernels = {
    "avx512vnni", quantize, ternary_gemm, ternary_dots, q8_gemm,    f16_gemm,  rms_norm,     silu_mul,
    relu2_mul,    add,      attend,       store_f16,    attend_f32, burn_int8, attend_block, attend_block_f32,
};

}  // namespace wf
