// NEON with the dot product (Armv8.2): sdot multiplies 16 signed by 16 signed bytes and adds groups of four to 4 int32
// sums, so nothing overflows (|sum| <= 2 * 127 * columns) and nothing needs flushing but for scales.
#include "kernels/neon_table-inl.h"

namespace wf {
namespace {

constexpr int32_t kPanelRows = 16;     // four registers of 4 rows
constexpr int32_t kTileTokens = 6;     // 4 x 6 sums, 6 activations, 1 code of 32 registers
constexpr int32_t kSegmentBlocks = 8;  // a whole panel

inline void unpack_two_bits(const uint8_t* codes, uint8_t* panel) {
  for (int32_t i = 0; i < kBytesPerBlock; i += 16) {
    const TwoBits bits = two_bits_of(vld1q_u8(codes + i));
    for (int32_t p = 0; p < 4; ++p) vst1q_s8(reinterpret_cast<int8_t*>(panel) + kBytesPerBlock * p + i, bits.plane[p]);
  }
}

inline void unpack_five_trits(const uint8_t* codes, uint8_t* panel) {
  for (int32_t i = 0; i < kBytesPerFive; i += 16) {
    const FiveTrits trits = five_trits_of(vld1q_u8(codes + i));
    for (int32_t p = 0; p < 5; ++p) vst1q_s8(reinterpret_cast<int8_t*>(panel) + kBytesPerFive * p + i, trits.plane[p]);
  }
}

// Step kDword (of 4) of 16 columns: 4 columns of 16 rows for T tokens.
template <int32_t T, int32_t kDword>
WF_ALWAYS_INLINE void panel_step(const uint8_t* panel, const int8x16_t* values, int32x4_t (*dots)[kQuads]) {
#pragma GCC unroll 4
  for (int32_t quad = 0; quad < kQuads; ++quad) {
    const int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(panel + 4 * kPanelRows * kDword + 16 * quad));
    four_columns<T, kDword>(codes, values, 1, dots[0] + quad, kQuads);
  }
}

// 16 rows x T tokens: for 16 columns 16 loads of codes and T of activations feed 16 T sdot.
template <int32_t T>
inline void tile(const uint8_t* panel, const float* scales, const int8_t* q, int64_t q_stride,
                 const int32_t* block_sums, int32_t sums_stride, int32_t blocks, int32_t segment_blocks, float* sums) {
  for (int32_t first = 0; first < blocks; first += segment_blocks, scales += kPanelRows) {
    const int32_t last = min_of(first + segment_blocks, blocks);
    int32x4_t dots[T][kQuads];
    for (int32_t t = 0; t < T; ++t) {
      int32_t total = 0;
      for (int32_t c = first; c < last; ++c) total += block_sums[int64_t{t} * sums_stride + c];
      for (int32_t quad = 0; quad < kQuads; ++quad) dots[t][quad] = vdupq_n_s32(-total);
    }
    for (int32_t k = first * kColumnsPerBlock; k < last * kColumnsPerBlock; k += 16) {
      int8x16_t values[T];
      for (int32_t t = 0; t < T; ++t) values[t] = vld1q_s8(q + t * q_stride + k);
      panel_step<T, 0>(panel + k * kPanelRows, values, dots);
      panel_step<T, 1>(panel + k * kPanelRows, values, dots);
      panel_step<T, 2>(panel + k * kPanelRows, values, dots);
      panel_step<T, 3>(panel + k * kPanelRows, values, dots);
    }
    for (int32_t t = 0; t < T; ++t)
      for (int32_t quad = 0; quad < kQuads; ++quad) {
        float* to = sums + t * kPanelRows + 4 * quad;
        V::store(to, V::fma(vcvtq_f32_s32(dots[t][quad]), V::load(scales + 4 * quad), V::load(to)));
      }
  }
}

// 12 independent chains hide the latency; the empty assembly keeps the compiler from removing them.
int64_t burn_int8(int64_t rounds) {
  int32x4_t sums[12];
  for (int32x4_t& sum : sums) sum = vdupq_n_s32(0);
  int8x16_t codes = vdupq_n_s8(2), values = vdupq_n_s8(3);
  for (int64_t i = 0; i < rounds; ++i) {
    for (int32x4_t& sum : sums) sum = vdotq_s32(sum, codes, values);
    __asm__ volatile("" : "+w"(codes), "+w"(values));
  }
  for (int32x4_t& sum : sums) __asm__ volatile("" : : "w"(sum));
  return rounds * 12 * 16;
}

}  // namespace
}  // namespace wf

#include "kernels/ternary_panel-inl.h"

#include "kernels/table-inl.h"

namespace wf {

const Kernels kNeonDotprodKernels = table_named("neon_dotprod");

}  // namespace wf
