// Tile registers: their shapes, and the codes unpacked to them.
//
// A tile of activations is up to 16 tokens x 64 columns as they lie in memory; a tile of weights is
// [column / 4][row][4], which is the order of the blocks: unpacking is shifts and masks only. Sums are [token][row].
#pragma once
#include "kernels/avx512_table-inl.h"

namespace wf {
namespace {

constexpr int32_t kTile = 16;  // rows and tokens of a tile
constexpr int32_t kTileBytes = 1024;
constexpr int32_t kPanelBlocks = 2;  // row blocks multiplied together
constexpr int32_t kPanelRows = kPanelBlocks * kRowsPerBlock;

// The tile intrinsics of GCC do not tell the compiler which memory they touch: stores before a tile is loaded, and
// loads after one is stored, must not pass this.
WF_ALWAYS_INLINE void settle_memory() { __asm__ volatile("" : : : "memory"); }

// Two ranges of row blocks, walked side by side; with an odd number they share the one in the middle.
struct Streams {
  int32_t count, blocks[kPanelBlocks];
  Streams(int32_t begin, int32_t end) : count((end - begin + 1) / 2), blocks{begin, end - count} {}
  void next() {
    for (int32_t& block : blocks) ++block;
  }
};

// The shapes of the eight tile registers, as ldtilecfg reads them: sums 0 to 3, activations 4 and 5, weights 6 and 7.
// The registers 0, 1 and 4 hold `first` tokens, 2, 3 and 5 `second`; a step is `columns` columns.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileShapes(int32_t first, int32_t second, int32_t columns = kColumnsPerBlock) {
    const int32_t tokens[8] = {first, first, second, second, first, second, columns / 4, columns / 4};
    for (int32_t i = 0; i < 8; ++i) {
      row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? columns : 64);
      rows[i] = static_cast<uint8_t>(tokens[i] > 0 ? tokens[i] : 1);
    }
  }
};

inline void configure(const TileShapes& shapes) {
  settle_memory();
  _tile_loadconfig(&shapes);
}

// The tile registers are configured while this lives.
struct Tiles {
  Tiles() { configure(TileShapes(kTile, kTile)); }
  ~Tiles() { _tile_release(); }
};

// Up to 32 tokens in two sets of tile rows.
struct TokenSets {
  int32_t first, second;
  explicit TokenSets(int32_t tokens) : first(min_of(tokens, kTile)), second(tokens - first) {}
};

// The registers of an intrinsic are text to GCC, so sets have to be spelt out.
template <int32_t kSet>
WF_ALWAYS_INLINE void clear_set() {
  if constexpr (kSet == 0) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_zero(2);
    _tile_zero(3);
  }
}

template <bool kTwoSets>
WF_ALWAYS_INLINE void clear_sums() {
  clear_set<0>();
  if constexpr (kTwoSets) clear_set<1>();
}

// sums [tokens][32]
template <bool kTwoSets>
WF_ALWAYS_INLINE void load_sums(const int32_t* sums) {
  settle_memory();
  _tile_loadd(0, sums, kPanelRows * 4);
  _tile_loadd(1, sums + kTile, kPanelRows * 4);
  if constexpr (kTwoSets) {
    _tile_loadd(2, sums + kTile * kPanelRows, kPanelRows * 4);
    _tile_loadd(3, sums + kTile * kPanelRows + kTile, kPanelRows * 4);
  }
}

template <bool kTwoSets>
WF_ALWAYS_INLINE void store_sums(int32_t* sums) {
  _tile_stored(0, sums, kPanelRows * 4);
  _tile_stored(1, sums + kTile, kPanelRows * 4);
  if constexpr (kTwoSets) {
    _tile_stored(2, sums + kTile * kPanelRows, kPanelRows * 4);
    _tile_stored(3, sums + kTile * kPanelRows + kTile, kPanelRows * 4);
  }
  settle_memory();
}

// Weights in tiles: codes, from whose sums the sum of the activations is subtracted once a row, or with group scales,
// where that would be once a group, the ternary values themselves.
template <bool kValues>
WF_ALWAYS_INLINE void store_weights(uint8_t* tile, __m512i codes) {
  _mm512_store_si512(tile, kValues ? _mm512_sub_epi8(codes, _mm512_set1_epi8(1)) : codes);
}

// One block of 64 columns to a tile.
template <bool kValues>
WF_ALWAYS_INLINE void unpack_two_bits(const uint8_t* codes, uint8_t* tile) {
  for (int32_t d = 0; d < 4; ++d) {
    const __m512i bytes = load_codes(codes + 64 * d);
    _mm512_store_si512(tile + d * 64, bit_field<0, kValues>(bytes));
    _mm512_store_si512(tile + (4 + d) * 64, bit_field<1, kValues>(bytes));
    _mm512_store_si512(tile + (8 + d) * 64, bit_field<2, kValues>(bytes));
    _mm512_store_si512(tile + (12 + d) * 64, bit_field<3, kValues>(bytes));
  }
}

// A superblock to the five tiles tile_of(0 ... 4).
template <bool kValues, class TileOf>
WF_ALWAYS_INLINE void unpack_five_trits(const uint8_t* codes, const TileOf& tile_of) {
  for (int32_t d = 0; d < 16; ++d) {
    __m512i fractions = load_codes(codes + 64 * d);
    for (int32_t p = 0; p < kBlocksPerFive; ++p) store_weights<kValues>(tile_of(p) + d * 64, next_codes(&fractions));
  }
}

// Two ranges of row blocks, each one ascending stream of codes, unpacked to a ring of tiles some steps ahead of their
// use, from one row block on to the next. A step is one column block of both.
constexpr int32_t kRingSteps = 8;    // a superblock of five and kUnpackAhead: what is unpacked and not yet used
constexpr int32_t kUnpackAhead = 3;  // steps: the stores of a tile have reached the cache when it is loaded

static_assert((kRingSteps & (kRingSteps - 1)) == 0 && ((kUnpackAhead + 1) & kUnpackAhead) == 0, "places are masked");
using RingTiles = uint8_t[kRingSteps][kPanelBlocks][kTileBytes];

// Its numbers stay in registers: the tiles, whose address the tile instructions take, are the caller's.
struct Ring {
  RingTiles& tiles;
  const uint8_t *one, *two;     // codes to unpack next
  int32_t unpacked = 0, steps;  // so far, in all
  int32_t column = 0;           // of its row block, the next to unpack
  int32_t in_fives, columns, prefetch;
  int32_t mask;  // of the places used: without superblocks half of them, which leaves more of the cache to others

  // `count` row blocks from each of `blocks` on.
  Ring(RingTiles& memory, const TernaryMatrix* w, const int32_t* blocks, int32_t count)
      : tiles(memory),
        one(w->codes + blocks[0] * row_block_bytes(w->layout, w->column_blocks)),
        two(w->codes + blocks[1] * row_block_bytes(w->layout, w->column_blocks)),
        steps(count * w->column_blocks),
        in_fives(w->layout == TernaryLayout::kFiveTrits ? w->column_blocks / kBlocksPerFive * kBlocksPerFive : 0),
        columns(w->column_blocks),
        prefetch(w->prefetch),
        mask(in_fives > 0 ? kRingSteps - 1 : kUnpackAhead) {}

  WF_ALWAYS_INLINE const uint8_t* tile(int32_t b, int32_t step) const { return tiles[step & mask][b]; }

  WF_ALWAYS_INLINE void ask_for(const uint8_t* codes, int32_t bytes) const {
    for (int32_t i = 0; i < bytes; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(codes + i + prefetch), _MM_HINT_T0);
  }

  // Until this step, and kUnpackAhead behind it, are there.
  template <bool kValues>
  WF_ALWAYS_INLINE void unpack_to(int32_t step) {
    const int32_t wanted = min_of(step + 1 + kUnpackAhead, steps);
    while (unpacked < wanted) {
      if (column < in_fives) {
        ask_for(one, kBytesPerFive);
        ask_for(two, kBytesPerFive);
        unpack_five_trits<kValues>(one, [&](int32_t p) { return tiles[(unpacked + p) & mask][0]; });
        unpack_five_trits<kValues>(two, [&](int32_t p) { return tiles[(unpacked + p) & mask][1]; });
        advance(kBlocksPerFive, kBytesPerFive);
      } else {
        ask_for(one, kBytesPerBlock);
        ask_for(two, kBytesPerBlock);
        unpack_two_bits<kValues>(one, tiles[unpacked & mask][0]);
        unpack_two_bits<kValues>(two, tiles[unpacked & mask][1]);
        advance(1, kBytesPerBlock);
      }
    }
    settle_memory();
  }

  WF_ALWAYS_INLINE void advance(int32_t blocks, int32_t bytes) {
    one += bytes;
    two += bytes;
    unpacked += blocks;
    column += blocks;
    if (column == columns) column = 0;
  }
};

// The column blocks [first, first + count) of one row block to as many tiles. With 1.6 bits `first` is a multiple of
// five, and `count` as well unless it goes to the end.
template <bool kValues>
inline void unpack_panel(const TernaryMatrix* w, const uint8_t* codes, int32_t first, int32_t count, uint8_t* tiles) {
  int32_t c = first;
  int64_t offset = int64_t{first} * kBytesPerBlock;
  if (w->layout == TernaryLayout::kFiveTrits) {
    const int32_t in_fives = w->column_blocks / kBlocksPerFive * kBlocksPerFive;
    for (; c < min_of(in_fives, first + count); c += kBlocksPerFive)
      unpack_five_trits<kValues>(codes + c / kBlocksPerFive * kBytesPerFive,
                                 [&](int32_t p) { return tiles + (c - first + p) * kTileBytes; });
    offset = int64_t{in_fives / kBlocksPerFive} * kBytesPerFive + int64_t{c - in_fives} * kBytesPerBlock;
  }
  for (; c < first + count; ++c, offset += kBytesPerBlock)
    unpack_two_bits<kValues>(codes + offset, tiles + (c - first) * kTileBytes);
  settle_memory();
}

}  // namespace
}  // namespace wf
