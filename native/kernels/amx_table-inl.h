// The product with quantised tables in tiles: sums of the high and of the low halves of the activations side by side,
// 16 tokens x 32 rows a turn. See avx512_table-inl.h for what happens to them.
#pragma once
#include "kernels/amx_tiles-inl.h"

namespace wf {
namespace {

// Measured: the most tokens that are faster without tiles, of bytes and of entries that have to be unpacked.
constexpr int32_t kFewByteTokens = 1;
constexpr int32_t kFewTableTokens = 3;
constexpr int32_t kTableAhead = 4;         // tiles are used up so fast that requests go this much further ahead
constexpr int32_t kMostTableTokens = 128;  // of one walk over the table

// Two row blocks of a table, and some tokens.
struct TablePair {
  int32_t blocks[kPanelBlocks];
  int32_t first, tokens;
};

// What a call multiplies with.
struct TableCall {
  const TableMatrix* w;
  WideActivations x;
  int64_t stride;  // of a token's activations
  int64_t row_bytes;
  double offsets[kMostTableTokens];  // of kQ8: what values being bytes adds to a sum, negative
  float* y;
  int64_t y_stride;

  TableCall(const TableMatrix* table, const WideActivations& activations, int32_t tokens, float* out,
            int64_t out_stride)
      : w(table),
        x(activations),
        stride(int64_t{w->column_blocks} * kColumnsPerBlock),
        row_bytes(w->column_blocks * table_block_bytes(w->format)),
        y(out),
        y_stride(out_stride) {
    const int32_t halves = 2 * w->column_blocks;
    for (int32_t t = 0; t < tokens; ++t) {
      int64_t total = 0;
      for (int32_t i = 0; i < halves; ++i) total += x.half_sums[int64_t{t} * halves + i];
      offsets[t] = -128.0 * static_cast<double>(total);
    }
  }

  WF_ALWAYS_INLINE const uint8_t* codes(int32_t block) const { return w->codes + block * row_bytes; }
};

// Adds a step of up to 64 columns: the tiles 0 and 1 hold the sums of the high halves, 2 and 3 those of the low ones.
WF_ALWAYS_INLINE void multiply_wide(const TableCall& call, int64_t place, const uint8_t* first, const uint8_t* second) {
  _tile_loadd(6, first, 64);
  _tile_loadd(7, second, 64);
  _tile_loadd(4, call.x.high + place, call.stride);
  _tile_loadd(5, call.x.low + place, call.stride);
  _tile_dpbsud(0, 4, 6);
  _tile_dpbsud(1, 4, 7);
  _tile_dpbsud(2, 5, 6);
  _tile_dpbsud(3, 5, 7);
}

struct WideDots {
  alignas(64) int32_t high[kTile * kPanelRows], low[kTile * kPanelRows];  // [token][32]

  WF_ALWAYS_INLINE void store() {
    settle_memory();
    _tile_stored(0, high, kPanelRows * 4);
    _tile_stored(1, high + kTile, kPanelRows * 4);
    _tile_stored(2, low, kPanelRows * 4);
    _tile_stored(3, low + kTile, kPanelRows * 4);
    settle_memory();
  }
  __m512i high_of(int32_t t, int32_t b) const { return _mm512_load_si512(high + t * kPanelRows + b * kTile); }
  __m512i low_of(int32_t t, int32_t b) const { return _mm512_load_si512(low + t * kPanelRows + b * kTile); }
};

WF_ALWAYS_INLINE void write_table(const TableCall& call, const TablePair& pair, int32_t t, int32_t b, F sums) {
  const int32_t row = pair.blocks[b] * kRowsPerBlock, token = pair.first + t;
  store_some(call.y + token * call.y_stride + row, V::mul(sums, V::set1(call.x.scales[token])), call.w->rows - row);
}

// The sums of a pair with kQ8 to the logits.
inline void write_q8(const TableCall& call, const TablePair& pair, const WideDots& dots) {
  for (int32_t t = 0; t < pair.tokens; ++t)
    for (int32_t b = 0; b < kPanelBlocks; ++b) {
      const F whole = whole_of(dots.high_of(t, b), dots.low_of(t, b), call.offsets[pair.first + t]);
      write_table(call, pair, t, b, V::mul(whole, V::load(call.w->row_scales + pair.blocks[b] * kRowsPerBlock)));
    }
}

// The blocks are tiles as they lie in memory.
inline void pair_q8(const TableCall& call, const TablePair& pair) {
  const uint8_t *one = call.codes(pair.blocks[0]), *two = call.codes(pair.blocks[1]);
  const int64_t tokens = pair.first * call.stride;
  clear_sums<true>();
  for (int32_t c = 0; c < call.w->column_blocks; ++c, one += kTileBytes, two += kTileBytes) {
    ask_for<kTableAhead>(call.w, one);
    ask_for<kTableAhead>(call.w, two);
    multiply_wide(call, tokens + c * kColumnsPerBlock, one, two);
  }
}

// sums += the group's integers, less kOffset times its activations, times its scales.
template <TableFormat kFormat>
inline void add_wide_group(const TableCall& call, const TablePair& pair, const WideDots& dots, int32_t group,
                           float* sums) {
  const TableMatrix* w = call.w;
  const int64_t groups = kFormat == TableFormat::kQ4 ? 2 * w->column_blocks : w->column_blocks;
  for (int32_t b = 0; b < kPanelBlocks; ++b) {
    const F scale = V::from_f16(w->group_scales + (pair.blocks[b] * groups + group) * kRowsPerBlock);
    for (int32_t t = 0; t < pair.tokens; ++t) {
      const int32_t* halves = call.x.half_sums + int64_t{pair.first + t} * w->column_blocks * 2;
      const int32_t offset =
          kFormat == TableFormat::kQ4 ? 8 * halves[group] : 32 * (halves[2 * group] + halves[2 * group + 1]);
      float* line = sums + t * kPanelRows + b * kTile;
      V::store(line, group_of(dots.high_of(t, b), dots.low_of(t, b), offset, scale, V::load(line)));
    }
  }
}

// A group's integers are added while the tiles multiply the next one.
template <TableFormat kFormat>
inline void pair_grouped(const TableCall& call, const TablePair& pair) {
  constexpr int32_t kHalves = kFormat == TableFormat::kQ4 ? 2 : 1;
  const TableMatrix* w = call.w;
  alignas(64) uint8_t tiles[2][kPanelBlocks][kTileBytes];
  alignas(64) float sums[kTile * kPanelRows];
  WideDots dots[2];
  for (int32_t i = 0; i < pair.tokens * kPanelRows; i += kLanes) V::store(sums + i, V::zero());
  const int32_t groups = w->column_blocks * kHalves;
  for (int32_t group = 0; group < groups; ++group) {
    const int32_t c = group / kHalves, half = group % kHalves;
    for (int32_t b = 0; half == 0 && b < kPanelBlocks; ++b) {
      const uint8_t* codes = call.codes(pair.blocks[b]) + c * table_block_bytes(kFormat);
      ask_for<1>(w, codes);
#pragma GCC unroll 16
      for (int32_t k = 0; k < 16; ++k)
        _mm512_store_si512(tiles[c % 2][b] + 64 * k,
                           kFormat == TableFormat::kQ4 ? entries_q4(codes, k) : entries_q6(codes, k));
    }
    settle_memory();
    clear_sums<true>();
    multiply_wide(call, pair.first * call.stride + c * kColumnsPerBlock + 32 * half, tiles[c % 2][0] + 512 * half,
                  tiles[c % 2][1] + 512 * half);
    if (group > 0) add_wide_group<kFormat>(call, pair, dots[(group - 1) % 2], group - 1, sums);
    dots[group % 2].store();
  }
  add_wide_group<kFormat>(call, pair, dots[(groups - 1) % 2], groups - 1, sums);
  for (int32_t t = 0; t < pair.tokens; ++t)
    for (int32_t b = 0; b < kPanelBlocks; ++b)
      write_table(call, pair, t, b, V::load(sums + t * kPanelRows + b * kTile));
}

// Two streams of row blocks; a pair meets sets of up to 16 tokens, one after the other and all of one size (the last
// may begin inside the one before), so that the tile registers keep their shapes. The integers of a set are written
// while the tiles multiply the next one.
inline void table_tiles(const TableCall& call, int32_t tokens, int32_t begin, int32_t end) {
  const int32_t sets = (tokens + kTile - 1) / kTile, each = (tokens + sets - 1) / sets;
  configure(TileShapes(each, each, call.w->format == TableFormat::kQ4 ? 32 : kColumnsPerBlock));
  Streams streams(begin, end);
  WideDots dots[2];
  TablePair waiting{};
  for (int32_t i = 0; i < streams.count * sets; ++i) {
    const TablePair pair{{streams.blocks[0], streams.blocks[1]}, min_of(i % sets * each, tokens - each), each};
    if (call.w->format == TableFormat::kQ8) {
      pair_q8(call, pair);
      if (i > 0) write_q8(call, waiting, dots[(i - 1) % 2]);
      dots[i % 2].store();
      waiting = pair;
    } else if (call.w->format == TableFormat::kQ6) {
      pair_grouped<TableFormat::kQ6>(call, pair);
    } else {
      pair_grouped<TableFormat::kQ4>(call, pair);
    }
    if (i % sets == sets - 1) streams.next();
  }
  if (call.w->format == TableFormat::kQ8) write_q8(call, waiting, dots[(streams.count * sets - 1) % 2]);
}

void table_gemm(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t begin, int32_t end, float* y,
                int64_t y_stride) {
  if (begin >= end) return;
  if (tokens <= (w->format == TableFormat::kQ8 ? kFewByteTokens : kFewTableTokens))
    return table_rows<kFewTableTokens>(w, x, tokens, begin, end, y, y_stride);
  const Tiles tiles;
  for (int32_t t = 0; t < tokens; t += kMostTableTokens) {
    const int32_t count = min_of(kMostTableTokens, tokens - t);
    const TableCall call(w, from_token(w, x, t), count, y + t * y_stride, y_stride);
    table_tiles(call, count, begin, end);
  }
}

}  // namespace
}  // namespace wf
