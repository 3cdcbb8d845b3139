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

template <bool kTwoSets>
WF_ALWAYS_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTwoSets) {
    _tile_zero(2);
    _tile_zero(3);
  }
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
    const Planes rows = planes_of(load_codes(codes + 64 * d));
    for (int32_t p = 0; p < 4; ++p) store_weights<kValues>(tile + (4 * p + d) * 64, rows.plane[p]);
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

// Two row blocks of codes, unpacked to a ring of tiles one step after the other, each an ascending stream.
constexpr int32_t kRingTiles = 16;
constexpr int32_t kUnpackAhead = 3;  // steps: the stores of a tile have reached the cache when it is loaded

struct Ring {
  alignas(64) uint8_t tiles[kPanelBlocks][kRingTiles * kTileBytes];
  const uint8_t* codes[kPanelBlocks];
  int32_t unpacked;  // column blocks so far
  int32_t in_fives, columns, prefetch;

  Ring(const TernaryMatrix* w, const int32_t* blocks)
      : unpacked(0),
        in_fives(w->layout == TernaryLayout::kFiveTrits ? w->column_blocks / kBlocksPerFive * kBlocksPerFive : 0),
        columns(w->column_blocks),
        prefetch(w->prefetch) {
    for (int32_t b = 0; b < kPanelBlocks; ++b)
      codes[b] = w->codes + blocks[b] * row_block_bytes(w->layout, w->column_blocks);
  }

  uint8_t* tile(int32_t b, int32_t c) { return tiles[b] + c % kRingTiles * kTileBytes; }

  WF_ALWAYS_INLINE void ask_for(int32_t b, int32_t bytes) const {
    for (int32_t i = 0; i < bytes; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(codes[b] + i + prefetch), _MM_HINT_T0);
  }

  // Until column block c, and kUnpackAhead behind it, are there.
  template <bool kValues>
  WF_ALWAYS_INLINE void unpack_to(int32_t c) {
    const int32_t wanted = min_of(c + 1 + kUnpackAhead, columns);
    while (unpacked < wanted) {
      const bool fives = unpacked < in_fives;
      for (int32_t b = 0; b < kPanelBlocks; ++b) {
        ask_for(b, fives ? kBytesPerFive : kBytesPerBlock);
        if (fives) {
          unpack_five_trits<kValues>(codes[b], [&](int32_t p) { return tile(b, unpacked + p); });
        } else {
          unpack_two_bits<kValues>(codes[b], tile(b, unpacked));
        }
        codes[b] += fives ? kBytesPerFive : kBytesPerBlock;
      }
      unpacked += fives ? kBlocksPerFive : 1;
    }
    settle_memory();
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
