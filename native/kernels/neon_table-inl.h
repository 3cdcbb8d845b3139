// The product with quantised tables on NEON: signed entries meet the two halves of the activations in sdot,
// x16 = 128 * high + low, and the two sums are put together behind it.
#include "kernels/neon_few-inl.h"

namespace wf {
namespace {

// Tokens at once: 3 have 24 sums and 6 activations in 32 registers, which leaves too few to put entries together in.
constexpr int32_t kQ8Tokens = 3;
constexpr int32_t kGroupedTableTokens = 2;

// What is taken from an unsigned entry for its value; the entries of kQ8 are made signed at once.
constexpr int32_t offset_of(TableFormat format) {
  return format == TableFormat::kQ8 ? 0 : format == TableFormat::kQ6 ? 32 : 8;
}

// The columns 16 kPart + 4 d ... 16 kPart + 4 d + 3 of the 4 rows of a quad, as signed bytes.
template <TableFormat kFormat, int32_t kPart, int32_t d>
WF_ALWAYS_INLINE int8x16_t entries(const uint8_t* block, int32_t quad) {
  if constexpr (kFormat == TableFormat::kQ8) {
    const uint8x16_t bytes = vld1q_u8(block + 64 * (4 * kPart + d) + 16 * quad);
    return vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80)));
  } else {
    const uint8x16_t bytes = vld1q_u8(block + 64 * (4 * (kPart % 2) + d) + 16 * quad);
    const uint8x16_t bottom = kPart < 2 ? vandq_u8(bytes, vdupq_n_u8(15)) : vshrq_n_u8(bytes, 4);
    if constexpr (kFormat == TableFormat::kQ4) return vreinterpretq_s8_u8(bottom);
    const uint8x16_t tops = vld1q_u8(block + 512 + 64 * d + 16 * quad);  // bits 2 kPart, 2 kPart + 1 go to bits 4, 5
    const uint8x16_t top = kPart == 0   ? vshlq_n_u8(tops, 4)
                           : kPart == 1 ? vshlq_n_u8(tops, 2)
                           : kPart == 2 ? tops
                                        : vshrq_n_u8(tops, 2);
    return vreinterpretq_s8_u8(vbslq_u8(vdupq_n_u8(0x30), top, bottom));
  }
}

template <int32_t T>
struct WideSums {
  int32x4_t high[T][kQuads], low[T][kQuads];
};

template <int32_t T>
WF_ALWAYS_INLINE void clear(WideSums<T>& sums) {
  for (int32_t t = 0; t < T; ++t)
    for (int32_t quad = 0; quad < kQuads; ++quad) sums.high[t][quad] = sums.low[t][quad] = vdupq_n_s32(0);
}

template <TableFormat kFormat, int32_t kPart, int32_t d, int32_t T>
WF_ALWAYS_INLINE void table_step(const uint8_t* block, const int8x16_t* high, const int8x16_t* low, WideSums<T>& sums) {
#pragma GCC unroll 4
  for (int32_t quad = 0; quad < kQuads; ++quad) {
    const int8x16_t values = entries<kFormat, kPart, d>(block, quad);
    four_columns<T, d>(values, high, 1, sums.high[0] + quad, kQuads);
    four_columns<T, d>(values, low, 1, sums.low[0] + quad, kQuads);
  }
}

// The 16 columns from 16 kPart on of a block of 16 rows x 64 columns; `first` is the block's first column.
template <TableFormat kFormat, int32_t kPart, int32_t T>
WF_ALWAYS_INLINE void table_part(const WideActivations* x, const uint8_t* block, int64_t first, int64_t stride,
                                 WideSums<T>& sums) {
  int8x16_t high[T], low[T];
  for (int32_t t = 0; t < T; ++t) {
    high[t] = vld1q_s8(x->high + t * stride + first + 16 * kPart);
    low[t] = vld1q_s8(x->low + t * stride + first + 16 * kPart);
  }
  table_step<kFormat, kPart, 0, T>(block, high, low, sums);
  table_step<kFormat, kPart, 1, T>(block, high, low, sums);
  table_step<kFormat, kPart, 2, T>(block, high, low, sums);
  table_step<kFormat, kPart, 3, T>(block, high, low, sums);
}

// One scale a row: |high| <= 128 * 127 * columns < 2^31 for up to 132,104 columns, but 128 * high + low may exceed 32
// bits. It is exact in 64 bits and, below 2^53, in float64, and rounded once, to float32.
WF_ALWAYS_INLINE F whole_of(int32x4_t high, int32x4_t low) {
  const int64x2_t first = vaddw_s32(vshll_n_s32(vget_low_s32(high), 7), vget_low_s32(low));
  const int64x2_t second = vaddw_s32(vshll_n_s32(vget_high_s32(high), 7), vget_high_s32(low));
  return vcvt_high_f32_f64(vcvt_f32_f64(vcvtq_f64_s64(first)), vcvtq_f64_s64(second));
}

// One scale a group of 32 or 64 columns: |128 * high + low| <= 63 * 16256 * 64 < 2^31.
template <int32_t T>
WF_ALWAYS_INLINE void add_table_group(const WideSums<T>& from, const int32_t* offsets, const uint16_t* scales,
                                      F (*sums)[kQuads]) {
  for (int32_t t = 0; t < T; ++t)
    for (int32_t quad = 0; quad < kQuads; ++quad) {
      const int32x4_t dots = vaddq_s32(vshlq_n_s32(from.high[t][quad], 7), from.low[t][quad]);
      sums[t][quad] = V::fma(vcvtq_f32_s32(vsubq_s32(dots, vdupq_n_s32(offsets[t]))), V::from_f16(scales + 4 * quad),
                             sums[t][quad]);
    }
}

// 16 rows of one row block for T tokens, before the token scales.
template <TableFormat kFormat, int32_t T>
WF_ALWAYS_INLINE void table_block(const TableMatrix* w, const WideActivations* x, int32_t row_block,
                                  F (*sums)[kQuads]) {
  constexpr int64_t kBytes = table_block_bytes(kFormat);
  constexpr int32_t kGroups = kFormat == TableFormat::kQ4 ? 2 : 1;  // of a column block
  const int64_t stride = int64_t{w->column_blocks} * kColumnsPerBlock;
  const uint8_t* block = w->codes + int64_t{row_block} * w->column_blocks * kBytes;
  const int64_t first_scale = int64_t{row_block} * w->column_blocks * kGroups * kRowsPerBlock;
  const uint16_t* scales = kFormat == TableFormat::kQ8 ? nullptr : w->group_scales + first_scale;
  WideSums<T> dots;
  clear(dots);
  for (int32_t c = 0; c < w->column_blocks; ++c, block += kBytes) {
    const int64_t first = int64_t{c} * kColumnsPerBlock;
    int32_t offsets[2][T];  // of the two halves of the block
    for (int32_t t = 0; t < T; ++t)
      for (int32_t half = 0; half < 2; ++half)
        offsets[half][t] = offset_of(kFormat) * x->half_sums[(int64_t{t} * w->column_blocks + c) * 2 + half];
    ask_for(block, kBytes, w->prefetch);
    table_part<kFormat, 0, T>(x, block, first, stride, dots);
    table_part<kFormat, 1, T>(x, block, first, stride, dots);
    if constexpr (kFormat == TableFormat::kQ4) {
      add_table_group<T>(dots, offsets[0], scales, sums);
      scales += kRowsPerBlock;
      clear(dots);
    }
    table_part<kFormat, 2, T>(x, block, first, stride, dots);
    table_part<kFormat, 3, T>(x, block, first, stride, dots);
    if constexpr (kFormat == TableFormat::kQ8) continue;
    if constexpr (kFormat == TableFormat::kQ6)
      for (int32_t t = 0; t < T; ++t) offsets[1][t] += offsets[0][t];
    add_table_group<T>(dots, offsets[1], scales, sums);
    scales += kRowsPerBlock;
    clear(dots);
  }
  if constexpr (kFormat == TableFormat::kQ8)
    for (int32_t t = 0; t < T; ++t)
      for (int32_t quad = 0; quad < kQuads; ++quad)
        sums[t][quad] = V::mul(whole_of(dots.high[t][quad], dots.low[t][quad]),
                               V::load(w->row_scales + row_block * kRowsPerBlock + 4 * quad));
}

template <TableFormat kFormat, int32_t T>
inline void table_rows(const TableMatrix* w, const WideActivations* x, int32_t block, float* y, int64_t y_stride) {
  F sums[T][kQuads];
  for (int32_t t = 0; t < T; ++t)
    for (int32_t quad = 0; quad < kQuads; ++quad) sums[t][quad] = V::zero();
  table_block<kFormat, T>(w, x, block, sums);
  const int32_t row = block * kRowsPerBlock, rows = min_of(kRowsPerBlock, w->rows - row);
  for (int32_t t = 0; t < T; ++t)
    for (int32_t i = 0; i < rows; i += kLanes)
      store_some(y + t * y_stride + row + i, V::mul(sums[t][i / kLanes], V::set1(x->scales[t])), rows - i);
}

// One row block for the tokens [first, tokens) in sets of T.
template <TableFormat kFormat, int32_t T>
inline void table_tokens(const TableMatrix* w, const WideActivations* x, int32_t first, int32_t tokens, int32_t block,
                         float* y, int64_t y_stride) {
  for (; first + T <= tokens; first += T) {
    const int64_t blocks = int64_t{first} * w->column_blocks;
    const WideActivations part = {x->high + blocks * kColumnsPerBlock, x->low + blocks * kColumnsPerBlock,
                                  x->half_sums + blocks * 2, x->scales + first};
    table_rows<kFormat, T>(w, &part, block, y + first * y_stride, y_stride);
  }
  if constexpr (T > 1) {
    if (first < tokens) table_tokens<kFormat, T - 1>(w, x, first, tokens, block, y, y_stride);
  }
}

// All tokens meet a row block while it is in the cache. There are no panels: unpacking costs little beside the two
// products with the halves.
void table_gemm(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t begin, int32_t end, float* y,
                int64_t y_stride) {
  for (int32_t block = begin; block < end; ++block)
    if (w->format == TableFormat::kQ8) {
      table_tokens<TableFormat::kQ8, kQ8Tokens>(w, x, 0, tokens, block, y, y_stride);
    } else if (w->format == TableFormat::kQ6) {
      table_tokens<TableFormat::kQ6, kGroupedTableTokens>(w, x, 0, tokens, block, y, y_stride);
    } else {
      table_tokens<TableFormat::kQ4, kGroupedTableTokens>(w, x, 0, tokens, block, y, y_stride);
    }
}

}  // namespace
}  // namespace wf
