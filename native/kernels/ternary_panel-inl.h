// The ternary product for many tokens, as far as it is the same on every instruction set: blocking, scales, output.
//
// A panel is kPanelRows rows x up to 512 columns of codes, unpacked once to bytes in L1 in the order
// [column / 4][row][column % 4], so that one vector load gives 4 columns of consecutive rows and a broadcast of 4
// activations meets them. Every product of the panel then serves up to kPanelTokens tokens.
// Sums run as integers over a segment (the columns that share a scale, or as many as the integers allow), the sum
// of the activations is subtracted, since codes are the ternary values plus one, and the exact integer is converted
// to float32, scaled and added. Without scales the float32 sums stay exact: |dot| <= 127 * columns < 2^24 for up to
// 132,104 columns.
//
// Each kernel file defines before it includes this one (besides what ternary_few-inl.h asks for):
//   kPanelRows (a multiple of 16), kTileTokens (tokens of the register tile),
//   kSegmentBlocks (the most column blocks of a segment without group scales),
//   unpack_two_bits(codes, panel): one block of 256 bytes; the step s (of 16) of 4 columns goes to
//     panel + s * kPanelRows * 4, 16 rows x 4 bytes,
//   unpack_five_trits(codes, panel): one superblock of 1,024 bytes, five blocks as above one behind the other,
//   tile<T>(panel, scales, q, q_stride, block_sums, sums_stride, blocks, segment_blocks, sums): adds to
//     sums [T][kPanelRows] the products of `blocks` column blocks; scales [segment][kPanelRows].
#pragma once
#include "kernels/ternary_few-inl.h"

namespace wf {
namespace {

constexpr int32_t kPanelColumnBlocks = 8;
constexpr int32_t kPanelTokens = 96;
constexpr int32_t kPanelBlocks = kPanelRows / kRowsPerBlock;
constexpr int32_t kPanelBytes = kPanelRows * kColumnsPerBlock;  // of one column block

template <int32_t T>
inline void panel_tokens(const uint8_t* panel, const float* scales, const int8_t* q, int64_t q_stride,
                         const int32_t* block_sums, int32_t sums_stride, int32_t blocks, int32_t segment_blocks,
                         int32_t tokens, float* sums) {
  if constexpr (T > 1) {  // as few tiles, but of equal size: one of two tokens has too few chains of sums to be fast
    if ((tokens + T - 2) / (T - 1) == (tokens + T - 1) / T)
      return panel_tokens<T - 1>(panel, scales, q, q_stride, block_sums, sums_stride, blocks, segment_blocks, tokens,
                                 sums);
  }
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

// Where the column blocks from `first` on of a row of blocks are stored, and how many of them a panel takes.
struct PanelPiece {
  int64_t offset;  // from the first code of the row of blocks
  int32_t blocks;
  bool fives;
};

inline PanelPiece panel_piece(const TernaryMatrix* w, int32_t first) {
  if (w->layout == TernaryLayout::kTwoBit)
    return {int64_t{first} * kBytesPerBlock, min_of(kPanelColumnBlocks, w->column_blocks - first), false};
  const int32_t in_fives = w->column_blocks / kBlocksPerFive * kBlocksPerFive;
  if (first < in_fives) return {int64_t{first / kBlocksPerFive} * kBytesPerFive, kBlocksPerFive, true};
  return {int64_t{in_fives / kBlocksPerFive} * kBytesPerFive + int64_t{first - in_fives} * kBytesPerBlock,
          w->column_blocks - first, false};
}

inline void unpack_piece(const PanelPiece& piece, const uint8_t* codes, uint8_t* panel) {
  if (piece.fives) return unpack_five_trits(codes + piece.offset, panel);
  for (int32_t c = 0; c < piece.blocks; ++c)
    unpack_two_bits(codes + piece.offset + int64_t{c} * kBytesPerBlock, panel + c * kPanelBytes);
}

// Asks for the codes of a panel while another one is being multiplied: unpacking reads a short piece of each row
// block, which the hardware's own prefetching of long streams does not see coming.
inline void prefetch_piece(const PanelPiece& piece, const uint8_t* codes) {
  const int32_t bytes = piece.fives ? kBytesPerFive : piece.blocks * kBytesPerBlock;
  for (int32_t i = 0; i < bytes; i += 64) __builtin_prefetch(codes + piece.offset + i, 0, 2);
}

// Column blocks that share a scale within a panel: superblocks of five do not begin where groups of 2 or 4 do.
inline int32_t blocks_of_segment(const TernaryMatrix* w) {
  if (w->group_blocks == 0) return kSegmentBlocks;
  return w->layout == TernaryLayout::kTwoBit ? w->group_blocks : 1;
}

// The scales of a panel's segments, [segment][row]; ones when the scale comes at the end.
template <Output kOutput>
inline void panel_scales(const TernaryMatrix* w, int32_t block, int32_t row_blocks, int32_t first, int32_t blocks,
                         int32_t segment_blocks, float* scales) {
  const int32_t segments = (blocks + segment_blocks - 1) / segment_blocks;
  if (kOutput == Output::kDots || w->group_blocks == 0) {
    for (int32_t i = 0; i < segments * kPanelRows; ++i) scales[i] = 1.0f;
    return;
  }
  const int32_t groups = (w->column_blocks + w->group_blocks - 1) / w->group_blocks;
  for (int32_t b = 0; b < kPanelBlocks; ++b) {
    const int32_t source = block + min_of(b, row_blocks - 1);  // missing rows: any scale, their sums are dropped
    const uint16_t* line = w->group_scales + static_cast<int64_t>(source) * groups * kRowsPerBlock;
    for (int32_t s = 0; s < segments; ++s) {
      const int32_t group = (first + s * segment_blocks) / w->group_blocks;
      for (int32_t i = 0; i < kRowsPerBlock; i += kLanes)
        V::store(scales + s * kPanelRows + b * kRowsPerBlock + i, V::from_f16(line + group * kRowsPerBlock + i));
    }
  }
}

// Rows of the blocks [begin, end) for up to kPanelTokens tokens.
template <Output kOutput>
inline void panel_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, int32_t tokens,
                          int32_t begin, int32_t end, const ProductOutput& out) {
  alignas(64) uint8_t panel[kPanelBytes * kPanelColumnBlocks];
  alignas(64) float scales[kPanelColumnBlocks * kPanelRows];
  alignas(64) float sums[kPanelTokens * kPanelRows];
  const int64_t q_stride = static_cast<int64_t>(w->column_blocks) * kColumnsPerBlock;
  const int64_t row_bytes = row_block_bytes(w->layout, w->column_blocks);
  const int32_t segment_blocks = blocks_of_segment(w);
  for (int32_t block = begin; block < end; block += kPanelBlocks) {
    const int32_t row_blocks = min_of(kPanelBlocks, end - block);
    for (int32_t i = 0; i < tokens * kPanelRows; i += kLanes) V::store(sums + i, V::zero());
    for (int32_t first = 0; first < w->column_blocks;) {
      const PanelPiece piece = panel_piece(w, first);
      for (int32_t b = 0; b < kPanelBlocks; ++b)  // missing rows: codes of others, their sums are dropped
        unpack_piece(piece, w->codes + (block + min_of(b, row_blocks - 1)) * row_bytes, panel + b * kRowsPerBlock * 4);
      const int32_t next = first + piece.blocks;
      if (next < w->column_blocks) {
        for (int32_t b = 0; b < row_blocks; ++b)
          prefetch_piece(panel_piece(w, next), w->codes + (block + b) * row_bytes);
      } else {
        for (int32_t b = block + kPanelBlocks; b < min_of(block + 2 * kPanelBlocks, end); ++b)
          prefetch_piece(panel_piece(w, 0), w->codes + b * row_bytes);
      }
      panel_scales<kOutput>(w, block, row_blocks, first, piece.blocks, segment_blocks, scales);
      panel_tokens<kTileTokens>(panel, scales, q + first * kColumnsPerBlock, q_stride, block_sums + first,
                                w->column_blocks, piece.blocks, segment_blocks, tokens, sums);
      first = next;
    }
    const int32_t row = block * kRowsPerBlock, rows = min_of(row_blocks * kRowsPerBlock, w->rows - row);
    for (int32_t t = 0; t < tokens; ++t) write_rows<kOutput>(w, out, t, row, rows, sums + t * kPanelRows);
  }
}

template <Output kOutput, class Y>
inline void ternary_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                            int32_t tokens, int32_t begin, int32_t end, Y* y, int64_t y_stride) {
  if (tokens <= 0) return;
  if (tokens <= most_few_tokens(w))
    return few_product<kOutput>(w, q, block_sums, tokens, begin, end, {y, y_stride, scales});
  for (int32_t t = 0; t < tokens; t += kPanelTokens) {
    const int64_t blocks = static_cast<int64_t>(t) * w->column_blocks;
    panel_product<kOutput>(w, q + blocks * kColumnsPerBlock, block_sums + blocks, min_of(kPanelTokens, tokens - t),
                           begin, end, {y + t * y_stride, y_stride, scales ? scales + t : nullptr});
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
