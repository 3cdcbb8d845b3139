// NEON with the dot product (Armv8.2): sdot multiplies 16 signed by 16 signed bytes and adds groups of four to 4 int32
// sums, so nothing overflows (|sum| <= 2 * 127 * columns) and nothing needs flushing but for scales. The codes 0, 1, 2
// are small enough to be signed bytes.
#include <arm_neon.h>

#include "kernels/kernels.h"

namespace wf {
namespace {

struct V {
  using F = float32x4_t;
  static constexpr int32_t kLanes = 4;
  static constexpr int32_t kAttendRows = 4;  // 4 x 4 sums + 4 values of 32 registers
  static constexpr int32_t kTileTokens = 4;  // 4 x 4 sums + 4 activations + 1 weight of 32 registers
  static F zero() { return vdupq_n_f32(0.0f); }
  static F set1(float x) { return vdupq_n_f32(x); }
  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F x) { vst1q_f32(p, x); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F round(F x) { return vrndnq_f32(x); }
  static F pow2(F n) { return vreinterpretq_f32_s32(vshlq_n_s32(vcvtnq_s32_f32(vaddq_f32(n, set1(127.0f))), 23)); }
  static float sqrt1(float x) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }
  static float sum(F x) { return vaddvq_f32(x); }
  static void sum4(F a, F b, F c, F d, float* out) { vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))); }
  static float peak(F x) { return vmaxvq_f32(x); }
  static F from_i8(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
  }
  static F from_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static void to_i8(int8_t* p, F x) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(x));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    __builtin_memcpy(p, &four, 4);
  }
  static void transpose(F* x) {
    const float32x4x2_t a = vzipq_f32(x[0], x[2]), b = vzipq_f32(x[1], x[3]);
    const float32x4x2_t low = vzipq_f32(a.val[0], b.val[0]), high = vzipq_f32(a.val[1], b.val[1]);
    x[0] = low.val[0], x[1] = low.val[1], x[2] = high.val[0], x[3] = high.val[1];
  }
  static void to_f16(uint16_t* p, F x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
};

}  // namespace
}  // namespace wf

#include "kernels/float_ops-inl.h"
#include "kernels/attend_block-inl.h"

namespace wf {
namespace {

constexpr int32_t kPanelRows = 8;   // two registers of 4 rows
constexpr int32_t kTileTokens = 8;  // 2 x 8 sums, 8 activations, 2 codes of 32 registers
constexpr int32_t kFewTokens = 4;   // 4 rows x 4 tokens of sums
constexpr int32_t kFewGroupedTokens = 4;
constexpr int32_t kSegmentBlocks = 8;  // a whole panel

constexpr int32_t row_at(int32_t position) { return position; }
WF_ALWAYS_INLINE F in_row_order(F x) { return x; }
WF_ALWAYS_INLINE F in_position_order(F x) { return x; }

inline void four_from_f16(const uint16_t* p, float* out) { vst1q_f32(out, V::from_f16(p)); }

// 16 columns of one row in each register: bits 2p and 2p + 1 of the row's 16 bytes of a block.
struct Planes {
  int8x16_t plane[4];
};

WF_ALWAYS_INLINE Planes planes_of(uint8x16_t codes) {
  const uint8x16_t two_bits = vdupq_n_u8(3);
  return {{vreinterpretq_s8_u8(vandq_u8(codes, two_bits)),
           vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 2), two_bits)),
           vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 4), two_bits)), vreinterpretq_s8_u8(vshrq_n_u8(codes, 6))}};
}

// The integer sums of the 4 rows of one block over the column blocks [first, last).
template <int32_t T>
WF_ALWAYS_INLINE void few_dots(const uint8_t* codes, const int8_t* q, int64_t q_stride, int32_t first, int32_t last,
                               int32x4_t* dots) {
  int32x4_t sums[T][kRowsPerBlock];
  for (int32_t t = 0; t < T; ++t)
    for (int32_t r = 0; r < kRowsPerBlock; ++r) sums[t][r] = vdupq_n_s32(0);
  for (int32_t c = first; c < last; ++c)
    for (int32_t r = 0; r < kRowsPerBlock; ++r) {
      const Planes row = planes_of(vld1q_u8(codes + static_cast<int64_t>(c) * kBytesPerBlock + 16 * r));
      for (int32_t t = 0; t < T; ++t) {
        const int8_t* line = q + t * q_stride + static_cast<int64_t>(c) * kColumnsPerBlock;
        for (int32_t p = 0; p < 4; ++p) sums[t][r] = vdotq_s32(sums[t][r], row.plane[p], vld1q_s8(line + 16 * p));
      }
    }
  for (int32_t t = 0; t < T; ++t)
    dots[t] = vpaddq_s32(vpaddq_s32(sums[t][0], sums[t][1]), vpaddq_s32(sums[t][2], sums[t][3]));
}

template <int32_t T, bool kGrouped, bool kScaled>
WF_ALWAYS_INLINE void few_block(const TernaryMatrix* w, int32_t block, const int8_t* q, const int32_t* block_sums,
                                const int32_t* totals, float* out) {
  const int32_t columns = w->column_blocks, group_blocks = kGrouped ? w->group_blocks : columns;
  const int64_t q_stride = static_cast<int64_t>(columns) * kColumnsPerBlock;
  const uint8_t* codes = w->codes + static_cast<int64_t>(block) * columns * kBytesPerBlock;
  const int32_t groups = (columns + group_blocks - 1) / group_blocks;
  const uint16_t* scales = w->group_scales + static_cast<int64_t>(block) * groups * kRowsPerBlock;
  F sums[T];
  for (int32_t t = 0; t < T; ++t) sums[t] = V::zero();
  for (int32_t group = 0; group < groups; ++group) {
    const int32_t first = group * group_blocks, last = min_of(first + group_blocks, columns);
    int32x4_t dots[T];
    few_dots<T>(codes, q, q_stride, first, last, dots);
    const F scale = kGrouped && kScaled ? V::from_f16(scales + group * kRowsPerBlock) : V::set1(1.0f);
    for (int32_t t = 0; t < T; ++t) {  // codes are the ternary values plus one: take the activations' sum away
      int32_t total = kGrouped ? 0 : totals[t];
      for (int32_t c = first; kGrouped && c < last; ++c) total += block_sums[t * columns + c];
      sums[t] = V::fma(vcvtq_f32_s32(vsubq_s32(dots[t], vdupq_n_s32(total))), scale, sums[t]);
    }
  }
  for (int32_t t = 0; t < T; ++t) V::store(out + t * kRowsPerBlock, sums[t]);
}

// 4 rows x 16 columns to 4 registers of 4 columns x 4 rows: dword d of row r goes to register d, element r.
WF_ALWAYS_INLINE void transpose_dwords(const int8x16_t* rows, int8x16_t* out) {
  const uint32x4x2_t low = vzipq_u32(vreinterpretq_u32_s8(rows[0]), vreinterpretq_u32_s8(rows[2]));
  const uint32x4x2_t high = vzipq_u32(vreinterpretq_u32_s8(rows[1]), vreinterpretq_u32_s8(rows[3]));
  for (int32_t i = 0; i < 2; ++i) {
    const uint32x4x2_t both = vzipq_u32(low.val[i], high.val[i]);
    out[2 * i] = vreinterpretq_s8_u32(both.val[0]);
    out[2 * i + 1] = vreinterpretq_s8_u32(both.val[1]);
  }
}

inline void unpack_panel(const uint8_t* codes, int64_t row_stride, int32_t row_blocks, int32_t blocks, uint8_t* panel) {
  for (int32_t half = 0; half < 2; ++half)
    for (int32_t c = 0; c < blocks; ++c) {
      Planes rows[4];
      for (int32_t r = 0; r < 4; ++r)
        rows[r] = planes_of(half < row_blocks ? vld1q_u8(codes + half * row_stride + c * kBytesPerBlock + 16 * r)
                                              : vdupq_n_u8(0));
      for (int32_t p = 0; p < 4; ++p) {
        const int8x16_t in[4] = {rows[0].plane[p], rows[1].plane[p], rows[2].plane[p], rows[3].plane[p]};
        int8x16_t out[4];
        transpose_dwords(in, out);
        for (int32_t d = 0; d < 4; ++d)
          vst1q_s8(reinterpret_cast<int8_t*>(panel) + (c * 16 + p * 4 + d) * (kPanelRows * 4) + half * 16, out[d]);
      }
    }
}

// 4 columns (dword kLane of 16) of 8 rows for T tokens.
template <int32_t T, int32_t kLane>
WF_ALWAYS_INLINE void four_columns(const uint8_t* panel, const int8x16_t* values, int32x4_t* low, int32x4_t* high) {
  const int8_t* codes = reinterpret_cast<const int8_t*>(panel) + kLane * kPanelRows * 4;
  const int8x16_t low_codes = vld1q_s8(codes), high_codes = vld1q_s8(codes + 16);
  for (int32_t t = 0; t < T; ++t) {
    low[t] = vdotq_laneq_s32(low[t], low_codes, values[t], kLane);
    high[t] = vdotq_laneq_s32(high[t], high_codes, values[t], kLane);
  }
}

// 8 rows x T tokens: for 16 columns 8 loads of codes and T of activations feed 8 T sdot.
template <int32_t T>
inline void tile(const uint8_t* panel, const float* scales, const int8_t* q, int64_t q_stride,
                 const int32_t* block_sums, int32_t sums_stride, int32_t blocks, int32_t segment_blocks, float* sums) {
  for (int32_t first = 0; first < blocks; first += segment_blocks, scales += kPanelRows) {
    const int32_t last = min_of(first + segment_blocks, blocks);
    int32x4_t low[T], high[T];
    for (int32_t t = 0; t < T; ++t) {
      int32_t total = 0;
      for (int32_t c = first; c < last; ++c) total += block_sums[static_cast<int64_t>(t) * sums_stride + c];
      low[t] = high[t] = vdupq_n_s32(-total);
    }
    for (int32_t k = first * kColumnsPerBlock; k < last * kColumnsPerBlock; k += 16) {
      int8x16_t values[T];
      for (int32_t t = 0; t < T; ++t) values[t] = vld1q_s8(q + t * q_stride + k);
      four_columns<T, 0>(panel + k * kPanelRows, values, low, high);
      four_columns<T, 1>(panel + k * kPanelRows, values, low, high);
      four_columns<T, 2>(panel + k * kPanelRows, values, low, high);
      four_columns<T, 3>(panel + k * kPanelRows, values, low, high);
    }
    for (int32_t t = 0; t < T; ++t) {
      float* to = sums + t * kPanelRows;
      V::store(to, V::fma(vcvtq_f32_s32(low[t]), V::load(scales), V::load(to)));
      V::store(to + 4, V::fma(vcvtq_f32_s32(high[t]), V::load(scales + 4), V::load(to + 4)));
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

namespace wf {

const Kernels kNeonDotprodKernels = {
    "neon_dotprod", quantize, ternary_gemm, ternary_dots, q8_gemm,    f16_gemm,  rms_norm,     silu_mul,
    relu2_mul,      add,      attend,       store_f16,    attend_f32, burn_int8, attend_block, attend_block_f32,
};

}  // namespace wf
