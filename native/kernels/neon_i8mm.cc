// NEON with the dot product and the matrix product of bytes (Armv8.6 FEAT_I8MM): smmla does twice the work of sdot, 2
// rows x 8 columns with 2 tokens x 8 columns. It serves two tokens and more; one alone goes the way of neon.cc.
#include "kernels/neon_table-inl.h"

namespace wf {
namespace {

constexpr int32_t kPanelRows = 16;     // eight registers of 2 rows
constexpr int32_t kTileTokens = 6;     // 8 x 3 sums, 6 activations, 1 code of 32 registers
constexpr int32_t kSegmentBlocks = 8;  // a whole panel

// A panel is [column / 8][row pair][2][8] here: a step of 8 columns has 8 operands of smmla.
constexpr int32_t kStepBytes = kPanelRows * 8;

inline void unpack_two_bits(const uint8_t* codes, uint8_t* panel) {
  for (int32_t e = 0; e < 2; ++e)
    for (int32_t quad = 0; quad < kQuads; ++quad) {
      const uint8_t* from = codes + 128 * e + 16 * quad;
      const RowPairs rows = row_pairs_of(from, from + 64);
      for (int32_t i = 0; i < 2; ++i) {
        int8_t* to = reinterpret_cast<int8_t*>(panel) + kStepBytes * e + 32 * quad + 16 * i;
        const TwoBits bits = two_bits_of(rows.pair[i]);
        for (int32_t p = 0; p < 4; ++p) vst1q_s8(to + 2 * kStepBytes * p, bits.plane[p]);
      }
    }
}

inline void unpack_five_trits(const uint8_t* codes, uint8_t* panel) {
  for (int32_t e = 0; e < 8; ++e)
    for (int32_t quad = 0; quad < kQuads; ++quad) {
      const uint8_t* from = codes + 128 * e + 16 * quad;
      const RowPairs rows = row_pairs_of(from, from + 64);
      for (int32_t i = 0; i < 2; ++i) {
        int8_t* to = reinterpret_cast<int8_t*>(panel) + kStepBytes * e + 32 * quad + 16 * i;
        const FiveTrits trits = five_trits_of(rows.pair[i]);
        for (int32_t p = 0; p < 5; ++p) vst1q_s8(to + 8 * kStepBytes * p, trits.plane[p]);
      }
    }
}

// 8 columns of 16 rows, half kHalf of the 16 activations, for T tokens in pairs.
template <int32_t T, int32_t kHalf>
WF_ALWAYS_INLINE void panel_step(const uint8_t* panel, const int8x16_t* values, int32x4_t (*dots)[2 * kQuads]) {
  constexpr int32_t kPairs = (T + 1) / 2;
  int8x16_t tokens[kPairs];
  for (int32_t pair = 0; pair < kPairs; ++pair)
    tokens[pair] = token_pair<kHalf>(values[2 * pair], values[min_of(2 * pair + 1, T - 1)]);
#pragma GCC unroll 8
  for (int32_t rows = 0; rows < 2 * kQuads; ++rows) {
    const int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(panel + kStepBytes * kHalf + 16 * rows));
    for (int32_t pair = 0; pair < kPairs; ++pair) dots[pair][rows] = vmmlaq_s32(dots[pair][rows], codes, tokens[pair]);
  }
}

// Adds the sums of one token of a pair of tokens, times the scales, to the sums of its 16 rows.
template <int32_t kToken>
WF_ALWAYS_INLINE void add_rows(const int32x4_t* dots, const float* scales, float* sums) {
  for (int32_t i = 0; i < kRowsPerBlock; i += 4)
    V::store(sums + i, V::fma(vcvtq_f32_s32(rows_of<kToken>(dots + i / 2)), V::load(scales + i), V::load(sums + i)));
}

// 16 rows x T tokens: for 16 columns 16 loads of codes, T of activations and T zips feed 8 T smmla.
template <int32_t T>
inline void tile(const uint8_t* panel, const float* scales, const int8_t* q, int64_t q_stride,
                 const int32_t* block_sums, int32_t sums_stride, int32_t blocks, int32_t segment_blocks, float* sums) {
  constexpr int32_t kPairs = (T + 1) / 2;
  for (int32_t first = 0; first < blocks; first += segment_blocks, scales += kPanelRows) {
    const int32_t last = min_of(first + segment_blocks, blocks);
    int32x4_t dots[kPairs][2 * kQuads];
    for (int32_t pair = 0; pair < kPairs; ++pair) {
      int32_t totals[2] = {};
      for (int32_t i = 0; i < 2; ++i)
        for (int32_t c = first; c < last; ++c)
          totals[i] -= block_sums[int64_t{min_of(2 * pair + i, T - 1)} * sums_stride + c];
      const int32x2_t both = vld1_s32(totals);
      for (int32x4_t& sum : dots[pair]) sum = vcombine_s32(both, both);
    }
    for (int32_t k = first * kColumnsPerBlock; k < last * kColumnsPerBlock; k += 16) {
      int8x16_t values[T];
      for (int32_t t = 0; t < T; ++t) values[t] = vld1q_s8(q + t * q_stride + k);
      panel_step<T, 0>(panel + k * kPanelRows, values, dots);
      panel_step<T, 1>(panel + k * kPanelRows, values, dots);
    }
    for (int32_t pair = 0; pair < kPairs; ++pair) {
      add_rows<0>(dots[pair], scales, sums + 2 * pair * kPanelRows);
      if (2 * pair + 1 < T) add_rows<1>(dots[pair], scales, sums + (2 * pair + 1) * kPanelRows);
    }
  }
}

// 12 independent chains hide the latency; the empty assembly keeps the compiler from removing them.
int64_t burn_int8(int64_t rounds) {
  int32x4_t sums[12];
  for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
  int8x16_t codes = vdupq_n_s8(2), values = vdupq_n_s8(3);
  for (int64_t i = 0; i < rounds; ++i) {
    for (int32x4_t& sum : sums) sum = vmmlaq_s32(sum, codes, values);
    __asm__ volatile("" : "+w"(codes), "+w"(values));
  }
  for (int32x4_t& sum : sums) __asm__ volatile("" : : "w"(sum));
  return rounds * 12 * 32;
}

}  // namespace
}  // namespace wf

#include "kernels/ternary_panel-inl.h"

#include "kernels/table-inl.h"

namespace wf {

const Kernels kNeonI8mmKernels = table_named("neon_i8mm");

}  // namespace wf
