// The product with quantised tables in tiles: sums of the high and of the low halves of the activations side by side,
// 16 tokens x 32 rows a turn. See avx512_table-inl.h for what happens to them.
#pragma once
#include "kernels/amx_tiles-inl.h"

namespace wf {
namespace {

constexpr int32_t kFewTableTokens = 3;

// Two row blocks of a table, and up to 16 tokens.
struct TablePair {
  const TableMatrix* w;
  const WideActivations* x;
  int32_t blocks[kPanelBlocks];
  int32_t tokens;
};

// Adds a step of up to 64 columns: the tiles 0 and 1 hold the sums of the high halves, 2 and 3 those of the low ones.
WF_ALWAYS_INLINE void multiply_wide(const TablePair& pair, int64_t place, const uint8_t* first, const uint8_t* second) {
  const int64_t stride = int64_t{pair.w->column_blocks} * kColumnsPerBlock;
  _tile_loadd(6, first, 64);
  _tile_loadd(7, second, 64);
  _tile_loadd(4, pair.x->high + place, stride);
  _tile_loadd(5, pair.x->low + place, stride);
  _tile_dpbsud(0, 4, 6);
  _tile_dpbsud(1, 4, 7);
  _tile_dpbsud(2, 5, 6);
  _tile_dpbsud(3, 5, 7);
}

struct WideDots {
  alignas(64) int32_t high[kTile * kPanelRows], low[kTile * kPanelRows];  // [token][32]

  WF_ALWAYS_INLINE void store() {
    _tile_stored(0, high, kPanelRows * 4);
    _tile_stored(1, high + kTile, kPanelRows * 4);
    _tile_stored(2, low, kPanelRows * 4);
    _tile_stored(3, low + kTile, kPanelRows * 4);
    settle_memory();
  }
  __m512i high_of(int32_t t, int32_t b) const { return _mm512_load_si512(high + t * kPanelRows + b * kTile); }
  __m512i low_of(int32_t t, int32_t b) const { return _mm512_load_si512(low + t * kPanelRows + b * kTile); }
};

// The blocks are tiles as they lie in memory.
inline void pair_q8(const TablePair& pair, float* sums) {
  const TableMatrix* w = pair.w;
  const int64_t row_bytes = int64_t{w->column_blocks} * table_block_bytes(TableFormat::kQ8);
  const uint8_t* codes[] = {w->codes + pair.blocks[0] * row_bytes, w->codes + pair.blocks[1] * row_bytes};
  WideDots dots;
  clear_sums<true>();
  for (int32_t c = 0; c < w->column_blocks; ++c) {
    const int64_t place = int64_t{c} * kTileBytes;
    for (int32_t b = 0; b < kPanelBlocks; ++b) ask_for(w, codes[b] + place);
    multiply_wide(pair, c * kColumnsPerBlock, codes[0] + place, codes[1] + place);
  }
  dots.store();
  for (int32_t t = 0; t < pair.tokens; ++t) {
    int64_t total = 0;
    for (int32_t i = 0; i < 2 * w->column_blocks; ++i)
      total += pair.x->half_sums[int64_t{t} * 2 * w->column_blocks + i];
    for (int32_t b = 0; b < kPanelBlocks; ++b)
      V::store(sums + t * kPanelRows + b * kTile, V::mul(whole_of(dots.high_of(t, b), dots.low_of(t, b), total),
                                                         V::load(w->row_scales + pair.blocks[b] * kRowsPerBlock)));
  }
}

// sums += the group's integers, less kOffset times its activations, times its scales.
template <TableFormat kFormat>
inline void add_wide_group(const TablePair& pair, const WideDots& dots, int32_t c, int32_t half, float* sums) {
  const TableMatrix* w = pair.w;
  const int64_t groups = kFormat == TableFormat::kQ4 ? 2 * w->column_blocks : w->column_blocks;
  const int64_t group = kFormat == TableFormat::kQ4 ? 2 * c + half : c;
  for (int32_t b = 0; b < kPanelBlocks; ++b) {
    const F scale = V::from_f16(w->group_scales + (pair.blocks[b] * groups + group) * kRowsPerBlock);
    for (int32_t t = 0; t < pair.tokens; ++t) {
      const int32_t* halves = pair.x->half_sums + (int64_t{t} * w->column_blocks + c) * 2;
      const int32_t offset = kFormat == TableFormat::kQ4 ? 8 * halves[half] : 32 * (halves[0] + halves[1]);
      float* line = sums + t * kPanelRows + b * kTile;
      V::store(line, group_of(dots.high_of(t, b), dots.low_of(t, b), offset, scale, V::load(line)));
    }
  }
}

template <TableFormat kFormat>
inline void pair_grouped(const TablePair& pair, float* sums) {
  const TableMatrix* w = pair.w;
  const int64_t row_bytes = w->column_blocks * table_block_bytes(kFormat);
  alignas(64) uint8_t tiles[2][kPanelBlocks][kTileBytes];
  WideDots dots;
  for (int32_t i = 0; i < pair.tokens * kPanelRows; i += kLanes) V::store(sums + i, V::zero());
  for (int32_t c = 0; c < w->column_blocks; ++c) {
    for (int32_t b = 0; b < kPanelBlocks; ++b) {
      const uint8_t* codes = w->codes + pair.blocks[b] * row_bytes + c * table_block_bytes(kFormat);
      ask_for(w, codes);
#pragma GCC unroll 16
      for (int32_t k = 0; k < 16; ++k)
        _mm512_store_si512(tiles[c % 2][b] + 64 * k,
                           kFormat == TableFormat::kQ4 ? entries_q4(codes, k) : entries_q6(codes, k));
    }
    settle_memory();
    constexpr int32_t kHalves = kFormat == TableFormat::kQ4 ? 2 : 1;
    for (int32_t half = 0; half < kHalves; ++half) {
      clear_sums<true>();
      multiply_wide(pair, c * kColumnsPerBlock + 32 * half, tiles[c % 2][0] + 512 * half, tiles[c % 2][1] + 512 * half);
      dots.store();
      add_wide_group<kFormat>(pair, dots, c, half, sums);
    }
  }
}

void table_gemm(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t begin, int32_t end, float* y,
                int64_t y_stride) {
  if (tokens <= kFewTableTokens) return table_rows<kFewTableTokens>(w, x, tokens, begin, end, y, y_stride);
  const Tiles tiles;
  alignas(64) float sums[kTile * kPanelRows];
  const int32_t columns = w->format == TableFormat::kQ4 ? 32 : kColumnsPerBlock;
  for (int32_t block = begin; block < end; block += kPanelBlocks)
    for (int32_t t = 0; t < tokens; t += kTile) {
      const WideActivations part = from_token(w, x, t);
      const TablePair pair{w, &part, {block, min_of(block + 1, end - 1)}, min_of(kTile, tokens - t)};
      configure(TileShapes(pair.tokens, pair.tokens, columns));
      if (w->format == TableFormat::kQ8) {
        pair_q8(pair, sums);
      } else if (w->format == TableFormat::kQ6) {
        pair_grouped<TableFormat::kQ6>(pair, sums);
      } else {
        pair_grouped<TableFormat::kQ4>(pair, sums);
      }
      for (int32_t b = 0; b < min_of(kPanelBlocks, end - block); ++b)
        for (int32_t i = 0; i < pair.tokens; ++i)
          store_some(y + (t + i) * y_stride + pair.blocks[b] * kRowsPerBlock,
                     V::mul(V::load(sums + i * kPanelRows + b * kTile), V::set1(part.scales[i])),
                     w->rows - pair.blocks[b] * kRowsPerBlock);
    }
}

}  // namespace
}  // namespace wf
