// AMX: tiles of 16 x 16 sums, 16 x 64 x 16 multiply-adds an instruction. A few tokens stream as with AVX-512
// (avx512-inl.h); from then on the codes are unpacked to tiles (amx_tiles-inl.h).
#include <cstdint>

namespace wf {
namespace {

// Measured: where both ways are equally fast.
constexpr int32_t kFewTokens = 3;
constexpr int32_t kFewGroupedTokens = 3;
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

// The activations of up to 32 tokens.
struct Operands {
  const int8_t* q;  // of the first token
  int64_t q_stride;
};

// Adds one step of 64 columns to the sums in the tiles.
template <bool kTwoSets>
WF_ALWAYS_INLINE void multiply(const Operands& o, int32_t c, const uint8_t* first, const uint8_t* second) {
  _tile_loadd(6, first, 64);
  _tile_loadd(7, second, 64);
  _tile_loadd(4, o.q + c * kColumnsPerBlock, o.q_stride);
  _tile_dpbsud(0, 4, 6);
  _tile_dpbsud(1, 4, 7);
  if constexpr (kTwoSets) {
    _tile_loadd(5, o.q + c * kColumnsPerBlock + kTile * o.q_stride, o.q_stride);
    _tile_dpbsud(2, 5, 6);
    _tile_dpbsud(3, 5, 7);
  }
}

// The exact integers of a pair of row blocks for many tokens, [tokens][32].
template <int32_t kMost>
struct Sums {
  alignas(64) int32_t integers[kMost * kPanelRows];

  void clear(int32_t tokens) {
    for (int32_t i = 0; i < tokens * kPanelRows; i += kLanes) _mm512_store_si512(integers + i, _mm512_setzero_si512());
  }

  // Codes are the ternary values plus one, so the sum of each token's activations goes off.
  template <Output kOutput>
  void write(const TernaryMatrix* w, const int32_t* blocks, int32_t tokens, const int32_t* totals,
             const ProductOutput& out) const {
    alignas(64) float line[kRowsPerBlock];
    for (int32_t b = 0; b < kPanelBlocks; ++b) {
      const int32_t row = blocks[b] * kRowsPerBlock, rows = min_of(kRowsPerBlock, w->rows - row);
      for (int32_t t = 0; t < tokens; ++t) {
        const __m512i dots = _mm512_load_si512(integers + t * kPanelRows + b * kRowsPerBlock);
        V::store(line, _mm512_cvtepi32_ps(_mm512_sub_epi32(dots, _mm512_set1_epi32(totals[t]))));
        write_rows<kOutput>(w, out, t, row, rows, line);
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

// The products of up to 32 tokens with the column blocks [first, first + count), added to the integers.
template <bool kTwoSets>
inline void add_panel(const Operands& o, int32_t first, int32_t count, const uint8_t* one, const uint8_t* two,
                      int32_t* integers) {
  load_sums<kTwoSets>(integers);
  for (int32_t c = 0; c < count; ++c) multiply<kTwoSets>(o, first + c, one + c * kTileBytes, two + c * kTileBytes);
  store_sums<kTwoSets>(integers);
}

// Many tokens: the tiles of a panel are unpacked once and serve 32 tokens after the other.
template <Output kOutput>
inline void panel_product(const TernaryMatrix* w, const Activations& x, int32_t begin, int32_t end,
                          const ProductOutput& out) {
  alignas(64) uint8_t tiles[kPanelBlocks][kPanelColumnBlocks * kTileBytes];
  Sums<kPanelTokens> sums;
  const int64_t row_bytes = row_block_bytes(w->layout, w->column_blocks);
  for (int32_t block = begin; block < end; block += kPanelBlocks) {
    const int32_t blocks[kPanelBlocks] = {block, min_of(block + 1, end - 1)};
    sums.clear(x.tokens);
    for (int32_t first = 0; first < w->column_blocks; first += kPanelColumnBlocks) {
      const int32_t count = min_of(kPanelColumnBlocks, w->column_blocks - first);
      for (int32_t b = 0; b < kPanelBlocks; ++b)
        unpack_panel<false>(w, w->codes + blocks[b] * row_bytes, first, count, tiles[b]);
      for (int32_t t = 0; t < x.tokens; t += 2 * kTile) {
        const TokenSets sets(min_of(2 * kTile, x.tokens - t));
        if (sets.second < kTile) configure(TileShapes(sets.first, sets.second));
        const Operands o{x.q + t * x.stride, x.stride};
        int32_t* integers = sums.integers + t * kPanelRows;
        if (sets.second > 0) {
          add_panel<true>(o, first, count, tiles[0], tiles[1], integers);
        } else {
          add_panel<false>(o, first, count, tiles[0], tiles[1], integers);
        }
        if (sets.second < kTile) configure(TileShapes(kTile, kTile));
      }
    }
    sums.template write<kOutput>(w, blocks, x.tokens, x.totals, out);
  }
}

// Up to 32 tokens, one scale a row: each pair of tiles is used soon after it is unpacked, while the next codes are on
// their way. The sums stay in the tile registers to the end of the row.
template <Output kOutput, bool kTwoSets>
inline void stream_product(const TernaryMatrix* w, const Activations& x, int32_t begin, int32_t end,
                           const ProductOutput& out) {
  const TokenSets sets(x.tokens);
  configure(TileShapes(sets.first, sets.second));
  const Operands o{x.q, x.stride};
  Streams streams(begin, end);
  for (const int32_t block : streams.blocks) start_stream(w, block);
  alignas(64) RingTiles tiles;
  Ring ring(tiles, w, streams.blocks, streams.count);
  Sums<(kTwoSets ? 2 : 1) * kTile> sums[2];
  int32_t turn = 0;
  for (int32_t step = 0; step < ring.steps; turn ^= 1) {
    clear_sums<kTwoSets>();
    for (int32_t c = 0; c < w->column_blocks; ++c, ++step) {
      ring.unpack_to<false>(step);
      multiply<kTwoSets>(o, c, ring.tile(0, step), ring.tile(1, step));
    }
    if (step > w->column_blocks) {  // what a tile has stored can be loaded only after a while
      sums[turn ^ 1].template write<kOutput>(w, streams.blocks, x.tokens, x.totals, out);
      streams.next();
    }
    store_sums<kTwoSets>(sums[turn].integers);
  }
  sums[turn ^ 1].template write<kOutput>(w, streams.blocks, x.tokens, x.totals, out);
}

// Group scales, up to kMost of 16 tokens: a group's integers leave the tiles while these multiply the next group, and
// are converted, scaled and added one group later still, since what a tile has stored can be loaded only after a
// while; so too from the last group of a row block to the first of the next. Two sets of tiles and of buffers take
// turns; the float32 sums stay in vector registers (up to 12 tokens).
using GroupDots = int32_t[2][kPanelBlocks][kTile * kRowsPerBlock];

template <int32_t kMost>
struct GroupStream {
  const TernaryMatrix* w;
  const ProductOutput& out;
  Operands o;
  int32_t tokens;
  GroupDots& dots;
  Ring ring;
  int32_t columns, each, groups, ask;  // column blocks of a row and of a group, groups of a row; bytes to ask for ahead
  int32_t step = 0, column = 0;        // next to multiply
  int32_t added = 0;                   // groups of the row block at hand
  int32_t block, other;                // the row blocks at hand
  const uint16_t *one, *two;           // their next scales
  F sums[kPanelBlocks][kMost];

  WF_ALWAYS_INLINE GroupStream(RingTiles& tiles, GroupDots& buffers, const TernaryMatrix* matrix,
                               const Operands& operands, int32_t count, const Streams& streams,
                               const ProductOutput& output)
      : w(matrix),
        out(output),
        o(operands),
        tokens(count),
        dots(buffers),
        ring(tiles, w, streams.blocks, streams.count),
        columns(w->column_blocks),
        each(w->group_blocks),
        groups((columns + each - 1) / each),
        ask(w->prefetch / 4),
        block(streams.blocks[0]),
        other(streams.blocks[1]),
        one(w->group_scales + int64_t{block} * groups * kRowsPerBlock),
        two(w->group_scales + int64_t{other} * groups * kRowsPerBlock) {
    clear();
  }

  WF_ALWAYS_INLINE void clear() {
#pragma GCC unroll 16
    for (int32_t t = 0; t < kMost; ++t) sums[0][t] = sums[1][t] = V::zero();
  }

  // The next group, in the sums of set kSet.
  template <int32_t kSet>
  WF_ALWAYS_INLINE void multiply_group() {
    clear_set<kSet>();
    const int32_t last = min_of(column + each, columns);
    for (; column < last; ++column, ++step) {
      ring.template unpack_to<true>(step);
      const int8_t* q = o.q + column * kColumnsPerBlock;
      _tile_loadd(6, ring.tile(0, step), 64);
      _tile_loadd(7, ring.tile(1, step), 64);
      if constexpr (kSet == 0) {
        _tile_loadd(4, q, o.q_stride);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
      } else {
        _tile_loadd(5, q, o.q_stride);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
    }
    if (column == columns) column = 0;
  }

  template <int32_t kSet>
  WF_ALWAYS_INLINE void store_dots() const {
    settle_memory();
    if constexpr (kSet == 0) {
      _tile_stored(0, dots[0][0], 64);
      _tile_stored(1, dots[0][1], 64);
    } else {
      _tile_stored(2, dots[1][0], 64);
      _tile_stored(3, dots[1][1], 64);
    }
    settle_memory();
  }

  // to += a group's integers times its scales, which are the next of their stream.
  WF_ALWAYS_INLINE void add_block(const int32_t* integers, const uint16_t*& scales, F* to) const {
    _mm_prefetch(reinterpret_cast<const char*>(scales) + ask, _MM_HINT_T0);
    const F scale = V::from_f16(scales);
    scales += kRowsPerBlock;
#pragma GCC unroll 16
    for (int32_t t = 0; t < kMost; ++t)
      to[t] = V::fma(_mm512_cvtepi32_ps(_mm512_load_si512(integers + t * kRowsPerBlock)), scale, to[t]);
  }

  WF_ALWAYS_INLINE void write(int32_t row_block, const F* from) const {
    const int32_t row = row_block * kRowsPerBlock;
    float* y = static_cast<float*>(out.y) + row;
#pragma GCC unroll 16
    for (int32_t t = 0; t < kMost; ++t)
      if (t < tokens) store_some(y + t * out.stride, V::mul(from[t], V::set1(out.token_scales[t])), w->rows - row);
  }

  template <int32_t kSet>
  WF_ALWAYS_INLINE void add_dots() {
    add_block(dots[kSet][0], one, sums[0]);
    add_block(dots[kSet][1], two, sums[1]);
    if (++added < groups) return;
    write(block++, sums[0]);
    write(other++, sums[1]);
    clear();
    added = 0;
  }

  template <int32_t kSet>
  WF_ALWAYS_INLINE void turn(int32_t turns) {
    multiply_group<kSet>();
    if (turns > 1) add_dots<kSet>();  // of the group before the last
    if (turns > 0) store_dots<1 - kSet>();
  }

  WF_ALWAYS_INLINE void run(int32_t count) {
    const int32_t turns = count * groups;
    int32_t done = 0;
    for (; done + 2 <= turns; done += 2) {
      turn<0>(done);
      turn<1>(done + 1);
    }
    if (done < turns) {
      turn<0>(done);
      if (turns > 1) add_dots<1>();
      store_dots<0>();
      add_dots<0>();
    } else {
      add_dots<0>();
      store_dots<1>();
      add_dots<1>();
    }
  }
};

template <int32_t kMost>
inline void group_rows(const TernaryMatrix* w, const Operands& o, int32_t tokens, int32_t begin, int32_t end,
                       const ProductOutput& out) {
  configure(TileShapes(tokens, tokens));
  const Streams streams(begin, end);
  for (const int32_t block : streams.blocks) start_stream(w, block);
  alignas(64) RingTiles tiles;
  alignas(64) GroupDots dots;
  __builtin_memset(dots, 0, sizeof(dots));  // tokens that are not there
  GroupStream<kMost> stream(tiles, dots, w, o, tokens, streams, out);
  stream.run(streams.count);
}

// Any number of tokens in sets of up to 16, for so many rows at once that the second set finds their codes in the
// cache.
inline void group_product(const TernaryMatrix* w, const int8_t* q, int32_t tokens, int32_t begin, int32_t end,
                          const ProductOutput& out) {
  constexpr int64_t kCachedBytes = 512 << 10;
  const int64_t stride = int64_t{w->column_blocks} * kColumnsPerBlock;
  const int32_t sets = (tokens + kTile - 1) / kTile, each = (tokens + sets - 1) / sets;
  const int64_t fitting = kCachedBytes / row_block_bytes(w->layout, w->column_blocks) / kPanelBlocks * kPanelBlocks;
  const int32_t rows = sets == 1 ? end - begin : fitting > 2 ? static_cast<int32_t>(fitting) : 2;
  for (int32_t first = begin; first < end; first += rows)
    for (int32_t t = 0; t < tokens; t += each) {
      const int32_t last = min_of(first + rows, end), count = min_of(each, tokens - t);
      const Operands o{q + t * stride, stride};
      const ProductOutput part = out.from_token<Output::kScaled>(t);
      if (count <= 4) {
        group_rows<4>(w, o, count, first, last, part);
      } else if (count <= 8) {
        group_rows<8>(w, o, count, first, last, part);
      } else if (count <= 12) {
        group_rows<12>(w, o, count, first, last, part);
      } else {
        group_rows<16>(w, o, count, first, last, part);
      }
    }
}

template <Output kOutput>
inline void whole_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, int32_t tokens,
                          int32_t begin, int32_t end, const ProductOutput& out) {
  for (int32_t t = 0; t < tokens; t += kPanelTokens) {
    const int64_t blocks = int64_t{t} * w->column_blocks;
    const Activations x(w, q + blocks * kColumnsPerBlock, block_sums + blocks, min_of(kPanelTokens, tokens - t));
    const ProductOutput part = out.from_token<kOutput>(t);
    if (x.tokens <= kTile) {
      stream_product<kOutput, false>(w, x, begin, end, part);
    } else if (x.tokens <= 2 * kTile) {
      stream_product<kOutput, true>(w, x, begin, end, part);
    } else {
      panel_product<kOutput>(w, x, begin, end, part);
    }
  }
}

template <Output kOutput, class Y>
inline void ternary_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const float* scales,
                            int32_t tokens, int32_t begin, int32_t end, Y* y, int64_t y_stride) {
  const ProductOutput out{y, y_stride, scales};
  if (tokens <= 0 || begin >= end) return;
  if (tokens <= most_few_tokens(w)) return few_product<kOutput>(w, q, block_sums, tokens, begin, end, out);
  const Tiles tiles;
  if (kOutput == Output::kScaled && w->group_blocks) {
    group_product(w, q, tokens, begin, end, out);
  } else {
    whole_product<kOutput>(w, q, block_sums, tokens, begin, end, out);
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
