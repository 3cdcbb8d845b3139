// The ternary product for many tokens, as far as it is the same on every instruction set: blocking, scales, output.
//
// A panel is kPanelRows rows x kPanelColumns columns of codes, unpacked once to bytes in L1 in the order
// [column / 4][row][column % 4], so that one vector load gives 4 columns of consecutive rows and a broadcast of 4
// activations meets them. Every product of the panel then serves up to kPanelTokens tokens.
// Sums run as integers over a segment (the columns that share a scale, or as many as the integers allow), the sum
// of the activations is subtracted, since codes are the ternary values plus one, and the exact integer is converted
// to float32, scaled and added. Without scales the float32 sums stay exact: |dot| <= 127 * columns < 2^24 for up to
// 132,104 columns.
//
// A few tokens take another way: the codes are unpacked in registers and never stored, because there the memory
// that delivers them is the limit.
//
// Each kernel file defines before it includes this one:
//   kPanelRows, kTileTokens (tokens of the register tile),
//   kFewTokens and kFewGroupedTokens (the most tokens of the other way without and with group scales),
//   kSegmentBlocks (column blocks of a segment without group scales: 4 or 8),
//   row_at(position): the panel's row held in that position,
//   in_row_order(F) and in_position_order(F): a vector of positions as a vector of rows, and back,
//   four_from_f16, unpack_panel, tile<T>, few_block<T, kGrouped, kScaled>.
#include "kernels/kernels.h"

namespace wf {
namespace {

constexpr int32_t kPanelColumns = 512;
constexpr int32_t kPanelColumnBlocks = kPanelColumns / kColumnsPerBlock;
constexpr int32_t kPanelTokens = 96;
constexpr int32_t kPanelBlocks = kPanelRows / kRowsPerBlock;

enum class Output { kScaled, kDots };

// Where the sums of one panel go.
struct PanelOutput {
  void* y;
  int64_t stride;
  int32_t row, rows;  // the panel's first row and how many of its rows exist
  const float* token_scales;
  const float* row_scales;  // null with group scales
};

template <Output kOutput>
inline void write_panel(const float* sums, int32_t tokens, const PanelOutput& out) {
  for (int32_t t = 0; t < tokens; ++t, sums += kPanelRows) {
    if constexpr (kOutput == Output::kDots) {
      int32_t* dots = static_cast<int32_t*>(out.y) + t * out.stride + out.row;
      for (int32_t i = 0; i < kPanelRows; ++i)
        if (row_at(i) < out.rows) dots[row_at(i)] = static_cast<int32_t>(sums[i]);
    } else {
      float* y = static_cast<float*>(out.y) + t * out.stride + out.row;
      const float scale = out.token_scales[t];
      for (int32_t i = 0; i < kPanelRows; i += kLanes) {
        F value = V::mul(in_row_order(V::load(sums + i)), V::set1(scale));
        const int32_t left = out.rows - i;
        if (left <= 0) break;
        if (out.row_scales) value = V::mul(value, widen_some(out.row_scales + out.row + i, left));
        store_some(y + i, value, left);
      }
    }
  }
}

template <int32_t T>
inline void panel_tokens(const uint8_t* panel, const float* scales, const int8_t* q, int64_t q_stride,
                         const int32_t* block_sums, int32_t sums_stride, int32_t blocks, int32_t segment_blocks,
                         int32_t tokens, float* sums) {
  int32_t t = 0;
  for (; t + T <= tokens; t += T)
    tile<T>(panel, scales, q + t * q_stride, q_stride, block_sums + static_cast<int64_t>(t) * sums_stride, sums_stride,
            blocks, segment_blocks, sums + t * kPanelRows);
  if constexpr (T > 1) {
    if (t < tokens)
      panel_tokens<T - 1>(panel, scales, q + t * q_stride, q_stride, block_sums + static_cast<int64_t>(t) * sums_stride,
                          sums_stride, blocks, segment_blocks, tokens - t, sums + t * kPanelRows);
  }
}

// The scales of a panel's segments, [segment][position]; ones when the scale comes at the end.
template <Output kOutput>
inline void panel_scales(const TernaryMatrix* w, int32_t block, int32_t row_blocks, int32_t first_segment,
                         int32_t segments, float* scales) {
  if (kOutput == Output::kDots || w->group_blocks == 0) {
    for (int32_t i = 0; i < segments * kPanelRows; ++i) scales[i] = 1.0f;
    return;
  }
  const int32_t groups = (w->column_blocks + w->group_blocks - 1) / w->group_blocks;
  for (int32_t b = 0; b < kPanelBlocks; ++b) {
    const int32_t source = block + min_of(b, row_blocks - 1);  // missing rows: any scale, their sums are dropped
    const uint16_t* line = w->group_scales + (static_cast<int64_t>(source) * groups + first_segment) * kRowsPerBlock;
    for (int32_t s = 0; s < segments; ++s)
      four_from_f16(line + s * kRowsPerBlock, scales + s * kPanelRows + b * kRowsPerBlock);
  }
  for (int32_t i = 0; i < segments * kPanelRows; i += kLanes)
    V::store(scales + i, in_position_order(V::load(scales + i)));
}

// Asks for the codes of a panel while another one is being multiplied: unpacking reads a short piece of each row
// block, which the hardware's own prefetching of long streams does not see coming.
inline void prefetch_panel(const uint8_t* codes, int64_t row_stride, int32_t row_blocks, int32_t blocks) {
  for (int32_t b = 0; b < row_blocks; ++b)
    for (int32_t c = 0; c < blocks; ++c) __builtin_prefetch(codes + b * row_stride + c * kBytesPerBlock, 0, 2);
}

// Rows of the blocks [begin, end) for up to kPanelTokens tokens.
template <Output kOutput>
inline void panel_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                          int32_t tokens, int32_t begin, int32_t end, void* y, int64_t y_stride) {
  alignas(64) uint8_t panel[kPanelRows * kPanelColumns];
  alignas(64) float panel_scale[kPanelColumnBlocks * kPanelRows];
  alignas(64) float sums[kPanelTokens * kPanelRows];
  const int64_t q_stride = static_cast<int64_t>(w->column_blocks) * kColumnsPerBlock;
  const int64_t row_stride = static_cast<int64_t>(w->column_blocks) * kBytesPerBlock;
  const int32_t segment_blocks = w->group_blocks ? w->group_blocks : kSegmentBlocks;
  for (int32_t block = begin; block < end; block += kPanelBlocks) {
    const int32_t row_blocks = min_of(kPanelBlocks, end - block);
    for (int32_t i = 0; i < tokens * kPanelRows; i += kLanes) V::store(sums + i, V::zero());
    for (int32_t first = 0; first < w->column_blocks; first += kPanelColumnBlocks) {
      const int32_t blocks = min_of(kPanelColumnBlocks, w->column_blocks - first);
      const int32_t segments = (blocks + segment_blocks - 1) / segment_blocks;
      unpack_panel(w->codes + block * row_stride + first * kBytesPerBlock, row_stride, row_blocks, blocks, panel);
      const int32_t next = first + kPanelColumnBlocks;
      if (next < w->column_blocks) {
        prefetch_panel(w->codes + block * row_stride + next * kBytesPerBlock, row_stride, row_blocks,
                       min_of(kPanelColumnBlocks, w->column_blocks - next));
      } else if (block + kPanelBlocks < end) {
        prefetch_panel(w->codes + (block + kPanelBlocks) * row_stride, row_stride,
                       min_of(kPanelBlocks, end - block - kPanelBlocks), min_of(kPanelColumnBlocks, w->column_blocks));
      }
      panel_scales<kOutput>(w, block, row_blocks, first / segment_blocks, segments, panel_scale);
      panel_tokens<kTileTokens>(panel, panel_scale, q + first * kColumnsPerBlock, q_stride, block_sums + first,
                                w->column_blocks, blocks, segment_blocks, tokens, sums);
    }
    const int32_t row = block * kRowsPerBlock;
    const PanelOutput out{y,      y_stride,
                          row,    min_of(row_blocks * kRowsPerBlock, w->rows - row),
                          scales, w->group_blocks ? nullptr : w->row_scales};
    write_panel<kOutput>(sums, tokens, out);
  }
}

// All tokens at once, block by block, for T = 1 .. kFewTokens.
template <Output kOutput, int32_t T, bool kGrouped>
inline void few_rows(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                     int32_t begin, int32_t end, void* y, int64_t y_stride) {
  int32_t totals[T] = {};
  if constexpr (!kGrouped)
    for (int32_t t = 0; t < T; ++t)
      for (int32_t c = 0; c < w->column_blocks; ++c) totals[t] += block_sums[t * w->column_blocks + c];
  for (int32_t block = begin; block < end; ++block) {
    float sums[T * kRowsPerBlock];
    few_block<T, kGrouped, kOutput == Output::kScaled>(w, block, q, block_sums, totals, sums);
    const int32_t row = block * kRowsPerBlock, rows = min_of(kRowsPerBlock, w->rows - row);
    for (int32_t t = 0; t < T; ++t)
      for (int32_t r = 0; r < rows; ++r) {
        const float sum = sums[t * kRowsPerBlock + r];
        if constexpr (kOutput == Output::kDots) {
          static_cast<int32_t*>(y)[t * y_stride + row + r] = static_cast<int32_t>(sum);
        } else {
          static_cast<float*>(y)[t * y_stride + row + r] = sum * (kGrouped ? 1.0f : w->row_scales[row + r]) * scales[t];
        }
      }
  }
}

template <Output kOutput, int32_t T = kFewTokens>
inline void few_tokens(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                       int32_t tokens, int32_t begin, int32_t end, void* y, int64_t y_stride) {
  if constexpr (T > 1) {
    if (tokens < T) return few_tokens<kOutput, T - 1>(w, q, block_sums, scales, tokens, begin, end, y, y_stride);
  }
  if (w->group_blocks) {
    few_rows<kOutput, T, true>(w, q, block_sums, scales, begin, end, y, y_stride);
  } else {
    few_rows<kOutput, T, false>(w, q, block_sums, scales, begin, end, y, y_stride);
  }
}

template <Output kOutput, class Y>
inline void ternary_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                            int32_t tokens, int32_t begin, int32_t end, Y* y, int64_t y_stride) {
  if (tokens <= 0) return;
  if (tokens <= (w->group_blocks ? kFewGroupedTokens : kFewTokens))
    return few_tokens<kOutput>(w, q, block_sums, scales, tokens, begin, end, y, y_stride);
  for (int32_t t = 0; t < tokens; t += kPanelTokens) {
    const int64_t blocks = static_cast<int64_t>(t) * w->column_blocks;
    panel_product<kOutput>(w, q + blocks * kColumnsPerBlock, block_sums + blocks, scales ? scales + t : nullptr,
                           min_of(kPanelTokens, tokens - t), begin, end, y + t * y_stride, y_stride);
  }
}

void ternary_gemm(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                  int32_t tokens, int32_t begin, int32_t end, float* y, int64_t y_stride) {
  ternary_product<Output::kScaled>(w, q, block_sums, scales, tokens, begin, end, y, y_stride);
}

void ternary_dots(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, int32_t tokens, int32_t begin,
                  int32_t end, int32_t* dots, int64_t dots_stride) {
  ternary_product<Output::kDots>(w, q, block_sums, nullptr, tokens, begin, end, dots, dots_stride);
}

}  // namespace
}  // namespace wf
