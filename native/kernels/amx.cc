// AMX: tiles of 16 x 16 sums, 16 x 64 x 16 multiply-adds an instruction. A few tokens stream as with AVX-512
// (avx512-inl.h); from then on the codes are unpacked to tiles (amx_tiles-inl.h).
#include <cstdint>

namespace wf {
namespace {

// Measured: where both ways are equally fast.
constexpr int32_t kFewTokens = 4;
constexpr int32_t kFewGroupedTokens = 4;
constexpr int32_t kFewDenseTokens = 3;
constexpr int32_t kFewDenseGroupedTokens = 1;

}  // namespace
}  // namespace wf

#include "kernels/amx_tiles-inl.h"
#include "kernels/ternary_few-inl.h"

namespace wf {
namespace {

constexpr int32_t kPanelColumnBlocks = 10;  // 10 KiB of unpacked codes a row block
constexpr int32_t kPanelTokens = 128;
constexpr int32_t kDots = 2 * kTile * kPanelRows;  // sums of 32 tokens

// What meets two tiles of weights: the activations of up to 32 tokens.
struct Operands {
  const int8_t* q;  // of the first token
  int64_t q_stride;
};

// Adds one step of 64 columns to the sums in the tiles.
template <bool kValues, bool kTwoSets>
WF_ALWAYS_INLINE void multiply(const Operands& o, int32_t c, const uint8_t* first, const uint8_t* second) {
  _tile_loadd(6, first, 64);
  _tile_loadd(7, second, 64);
  _tile_loadd(4, o.q + c * kColumnsPerBlock, o.q_stride);
  if constexpr (kValues) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
  } else {
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(1, 4, 7);
  }
  if constexpr (kTwoSets) {
    _tile_loadd(5, o.q + c * kColumnsPerBlock + kTile * o.q_stride, o.q_stride);
    if constexpr (kValues) {
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
}

// Two row blocks of a product.
struct Pair {
  const TernaryMatrix* w;
  int32_t blocks[kPanelBlocks];
};

// The integers of one group on their way to the float32 sums: they are added while the tiles multiply the next one.
struct Waiting {
  int32_t group = 0;
  const int32_t* dots = nullptr;  // [tokens][32]; null: nothing to add
};

// sums [tokens][32] += integers times the scales of their group.
inline void add_group(const Pair& pair, const Waiting& waiting, int32_t tokens, float* sums) {
  if (!waiting.dots) return;
  const int32_t group_blocks = pair.w->group_blocks;
  const int64_t groups = (pair.w->column_blocks + group_blocks - 1) / group_blocks;
  F scale[kPanelBlocks];
  for (int32_t b = 0; b < kPanelBlocks; ++b)
    scale[b] = V::from_f16(pair.w->group_scales + (pair.blocks[b] * groups + waiting.group) * kRowsPerBlock);
  for (int32_t t = 0; t < tokens; ++t)
    for (int32_t b = 0; b < kPanelBlocks; ++b) {
      const int32_t place = t * kPanelRows + b * kRowsPerBlock;
      const F value = _mm512_cvtepi32_ps(_mm512_load_si512(waiting.dots + place));
      V::store(sums + place, V::fma(value, scale[b], V::load(sums + place)));
    }
}

inline bool ends_group(const TernaryMatrix* w, int32_t c) { return (c + 1) % w->group_blocks == 0; }

// The products of up to 32 tokens with a pair of row blocks over the column blocks [first, last), whose tiles
// tiles_of(c, b) gives: added to the float32 sums with group scales, to the integers without.
template <bool kGrouped, bool kTwoSets, class TilesOf>
WF_ALWAYS_INLINE void add_products(const Pair& pair, const Operands& o, int32_t first, int32_t last, int32_t tokens,
                                   const TilesOf& tiles_of, int32_t* integers, float* sums) {
  alignas(64) int32_t dots[2][kDots];
  int32_t turn = 0;
  Waiting waiting;
  if constexpr (kGrouped) {
    clear_sums<kTwoSets>();
  } else {
    load_sums<kTwoSets>(integers);
  }
  for (int32_t c = first; c < last; ++c) {
    const uint8_t* const one = tiles_of(c, 0);
    multiply<kGrouped, kTwoSets>(o, c, one, tiles_of(c, 1));
    if (!kGrouped || (!ends_group(pair.w, c) && c + 1 < last)) continue;
    add_group(pair, waiting, tokens, sums);
    store_sums<kTwoSets>(dots[turn]);
    clear_sums<kTwoSets>();
    waiting = {c / pair.w->group_blocks, dots[turn]};
    turn ^= 1;
  }
  if constexpr (kGrouped) {
    add_group(pair, waiting, tokens, sums);
  } else {
    store_sums<kTwoSets>(integers);
  }
}

// The sums of a pair of row blocks for many tokens, [tokens][32]: integers with row scales, else float32.
struct Sums {
  alignas(64) int32_t integers[kPanelTokens * kPanelRows];
  alignas(64) float floats[kPanelTokens * kPanelRows];

  template <bool kGrouped>
  void clear(int32_t tokens) {
    for (int32_t i = 0; i < tokens * kPanelRows; i += kLanes) {
      if constexpr (kGrouped) {
        V::store(floats + i, V::zero());
      } else {
        _mm512_store_si512(integers + i, _mm512_setzero_si512());
      }
    }
  }

  // Codes are the ternary values plus one, so without groups the sum of each token's activations goes off.
  template <Output kOutput, bool kGrouped>
  void write(const Pair& pair, int32_t row_blocks, int32_t tokens, const int32_t* totals, const ProductOutput& out) {
    for (int32_t b = 0; b < row_blocks; ++b) {
      const int32_t row = pair.blocks[b] * kRowsPerBlock, rows = min_of(kRowsPerBlock, pair.w->rows - row);
      for (int32_t t = 0; t < tokens; ++t) {
        float* line = floats + t * kPanelRows + b * kRowsPerBlock;
        if constexpr (!kGrouped) {
          const __m512i dots = _mm512_load_si512(integers + t * kPanelRows + b * kRowsPerBlock);
          V::store(line, _mm512_cvtepi32_ps(_mm512_sub_epi32(dots, _mm512_set1_epi32(totals[t]))));
        }
        write_rows<kOutput>(pair.w, out, t, row, rows, line);
      }
    }
  }
};

// One call's activations: up to kPanelTokens tokens.
struct Activations {
  const int8_t* q;
  int64_t stride;
  int32_t tokens;
  int32_t totals[kPanelTokens];

  Activations(const TernaryMatrix* w, const int8_t* values, const int32_t* block_sums, int32_t count)
      : q(values), stride(int64_t{w->column_blocks} * kColumnsPerBlock), tokens(count) {
    for (int32_t t = 0; t < tokens; ++t) {
      totals[t] = 0;
      for (int32_t c = 0; c < w->column_blocks; ++c) totals[t] += block_sums[int64_t{t} * w->column_blocks + c];
    }
  }
};

// Many tokens: the tiles of a panel are unpacked once and serve 32 tokens after the other.
template <Output kOutput, bool kGrouped>
inline void panel_product(const TernaryMatrix* w, const Activations& x, int32_t begin, int32_t end,
                          const ProductOutput& out) {
  alignas(64) uint8_t tiles[kPanelBlocks][kPanelColumnBlocks * kTileBytes];
  Sums sums;
  const int64_t row_bytes = row_block_bytes(w->layout, w->column_blocks);
  for (int32_t block = begin; block < end; block += kPanelBlocks) {
    const Pair pair{w, {block, min_of(block + 1, end - 1)}};
    sums.clear<kGrouped>(x.tokens);
    for (int32_t first = 0; first < w->column_blocks; first += kPanelColumnBlocks) {
      const int32_t count = min_of(kPanelColumnBlocks, w->column_blocks - first);
      for (int32_t b = 0; b < kPanelBlocks; ++b)
        unpack_panel<kGrouped>(w, w->codes + pair.blocks[b] * row_bytes, first, count, tiles[b]);
      const auto tiles_of = [&](int32_t c, int32_t b) { return tiles[b] + (c - first) * kTileBytes; };
      for (int32_t t = 0; t < x.tokens; t += 2 * kTile) {
        const TokenSets sets(min_of(2 * kTile, x.tokens - t));
        if (sets.second < kTile) configure(TileShapes(sets.first, sets.second));
        const Operands o{x.q + t * x.stride, x.stride};
        int32_t* integers = sums.integers + t * kPanelRows;
        float* floats = sums.floats + t * kPanelRows;
        const int32_t tokens = sets.first + sets.second;
        if (sets.second > 0) {
          add_products<kGrouped, true>(pair, o, first, first + count, tokens, tiles_of, integers, floats);
        } else {
          add_products<kGrouped, false>(pair, o, first, first + count, tokens, tiles_of, integers, floats);
        }
        if (sets.second < kTile) configure(TileShapes(kTile, kTile));
      }
    }
    sums.write<kOutput, kGrouped>(pair, min_of(kPanelBlocks, end - block), x.tokens, x.totals, out);
  }
}

// Up to 32 tokens: each pair of tiles is used soon after it is unpacked, while the next codes are on their way.
template <Output kOutput, bool kGrouped>
inline void stream_product(const TernaryMatrix* w, const Activations& x, int32_t begin, int32_t end,
                           const ProductOutput& out) {
  Sums sums;
  const TokenSets sets(x.tokens);
  configure(TileShapes(sets.first, sets.second));
  const Operands o{x.q, x.stride};
  const int32_t apart = (end - begin + 1) / 2;  // two streams of codes; with an odd number the last meets itself
  for (int32_t block = begin; block < begin + apart; ++block) {
    const bool both = block + apart < end;
    const Pair pair{w, {block, both ? block + apart : block}};
    sums.clear<kGrouped>(x.tokens);
    Ring ring(w, pair.blocks);
    const auto tiles_of = [&](int32_t c, int32_t b) {
      if (b == 0) ring.unpack_to<kGrouped>(c);
      return ring.tile(b, c);
    };
    if (sets.second > 0) {
      add_products<kGrouped, true>(pair, o, 0, w->column_blocks, x.tokens, tiles_of, sums.integers, sums.floats);
    } else {
      add_products<kGrouped, false>(pair, o, 0, w->column_blocks, x.tokens, tiles_of, sums.integers, sums.floats);
    }
    sums.write<kOutput, kGrouped>(pair, both ? 2 : 1, x.tokens, x.totals, out);
  }
}

template <Output kOutput, bool kGrouped>
inline void tile_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, int32_t tokens,
                         int32_t begin, int32_t end, const ProductOutput& out) {
  const Tiles tiles;
  for (int32_t t = 0; t < tokens; t += kPanelTokens) {
    const int64_t blocks = int64_t{t} * w->column_blocks;
    const Activations x(w, q + blocks * kColumnsPerBlock, block_sums + blocks, min_of(kPanelTokens, tokens - t));
    const ProductOutput part = out.from_token<kOutput>(t);
    if (x.tokens <= 2 * kTile) {
      stream_product<kOutput, kGrouped>(w, x, begin, end, part);
    } else {
      panel_product<kOutput, kGrouped>(w, x, begin, end, part);
    }
  }
}

template <Output kOutput, class Y>
inline void ternary_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                            int32_t tokens, int32_t begin, int32_t end, Y* y, int64_t y_stride) {
  const ProductOutput out{y, y_stride, scales};
  if (tokens <= 0) return;
  if (tokens <= most_few_tokens(w)) return few_product<kOutput>(w, q, block_sums, tokens, begin, end, out);
  if (kOutput == Output::kScaled && w->group_blocks) {
    tile_product<kOutput, true>(w, q, block_sums, tokens, begin, end, out);
  } else {
    tile_product<kOutput, false>(w, q, block_sums, tokens, begin, end, out);
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

#include "kernels/amx_table-inl.h"

namespace wf {
namespace {

// Four independent chains; each instruction takes 16 cycles of the unit.
int64_t burn_int8(int64_t rounds) {
  const Tiles tiles;
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  return rounds * 4 * kTile * kTile * kColumnsPerBlock;
}

}  // namespace

}  // namespace wf

#include "kernels/table-inl.h"

namespace wf {

const Kernels kAmxKernels = table_named("amx");

}  // namespace wf
