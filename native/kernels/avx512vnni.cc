// AVX-512 with VNNI. What it shares with the AMX table is in avx512-inl.h; here are panels of many tokens.
#include <cstdint>

namespace wf {
namespace {

// Measured: where both ways are equally fast.
constexpr int32_t kFewTokens = 8;
constexpr int32_t kFewGroupedTokens = 8;
constexpr int32_t kFewDenseTokens = 3;
constexpr int32_t kFewDenseGroupedTokens = 1;

}  // namespace
}  // namespace wf

#include "kernels/avx512_table-inl.h"

namespace wf {
namespace {

constexpr int32_t kPanelRows = 32;     // two registers of 16 rows
constexpr int32_t kTileTokens = 6;     // 2 x 6 integer and 2 x 6 float sums of 32 registers
constexpr int32_t kSegmentBlocks = 8;  // a whole panel
constexpr int32_t kStepBytes = kPanelRows * 4;

// 7 uops for 16 rows x 16 columns.
inline void unpack_two_bits(const uint8_t* codes, uint8_t* panel) {
  for (int32_t d = 0; d < 4; ++d) {
    const Planes rows = planes_of(load_codes(codes + 64 * d));
    for (int32_t p = 0; p < 4; ++p) _mm512_storeu_si512(panel + (4 * p + d) * kStepBytes, rows.plane[p]);
  }
}

inline void unpack_five_trits(const uint8_t* codes, uint8_t* panel) {
  for (int32_t d = 0; d < 16; ++d) {
    __m512i fractions = load_codes(codes + 64 * d);
    for (int32_t p = 0; p < kBlocksPerFive; ++p)
      _mm512_storeu_si512(panel + (16 * p + d) * kStepBytes, next_codes(&fractions));
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
namespace {

constexpr int32_t kTableTokens = 6;

void table_gemm(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t begin, int32_t end, float* y,
                int64_t y_stride) {
  table_rows<kTableTokens>(w, x, tokens, begin, end, y, y_stride);
}

}  // namespace

}  // namespace wf

#include "kernels/table-inl.h"

namespace wf {

const Kernels kAvx512VnniKernels = table_named("avx512vnni");

}  // namespace wf
