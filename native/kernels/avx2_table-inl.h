// The product with a quantised table on 256-bit registers. A piece of 16 rows x up to 512 columns is brought to the
// byte order of kQ8, [column / 4][row][column % 4], which for kQ8 means that it is used where it lies, and then meets
// all tokens. The value is the byte less an offset, and sum (byte - offset) x = sum byte x - offset * sum x.
//
// No overflow in int32: a byte times a 15-bit activation is at most 255 * 16,256, and a piece has 512 columns:
// 2,122,383,360 < 2^31. Sums of kQ8 pass from piece to piece as float64, exact to 2^53.
//
// The file that includes this one defines:
//   struct Wide: one sum of 8 rows, with Codes (32 bytes made ready for several tokens), add(codes, first, second),
//     whole() as int32, kPrepares and prepare: how the activations of 32 columns are turned to `first` and `second`,
//     4 bytes each for 4 columns, if they are not just the high and the low bytes;
//   kTableTokens: tokens of the register tile.
#include "kernels/avx2-inl.h"

namespace wf {
namespace {

constexpr int32_t kTableBlocks = 8;                                     // column blocks of a piece
constexpr int32_t kTableBlockBytes = kRowsPerBlock * kColumnsPerBlock;  // of unpacked bytes
constexpr int32_t kTableScratch = 24 * 1024;                            // prepared activations, twice that on the stack

// A piece of the table, and the place of its first column.
struct TablePiece {
  const uint8_t* bytes;
  const float* scales;  // [groups][16], null for kQ8
  int32_t blocks, first;
  int32_t prefetch;  // bytes to ask for ahead of those being used, where they lie in memory
};

// Activations of consecutive tokens as Wide wants them; element 0 is column 0.
struct TableActivations {
  const int8_t *first, *second;
  int64_t stride;
  const int32_t* half_sums;
  int32_t half_stride;
  bool prepared;
};

inline int32_t offset_of(TableFormat format) {
  return format == TableFormat::kQ8 ? 128 : format == TableFormat::kQ6 ? 32 : 8;
}

// One block of kQ4: 32 columns in the low four bits, 32 in the high ones.
inline void unpack_q4(const uint8_t* codes, int32_t prefetch, uint8_t* bytes) {
  const __m256i low_bits = _mm256_set1_epi8(15);
  for (int32_t i = 0; i < 512; i += 32) {
    if (i % 64 == 0) __builtin_prefetch(codes + i + prefetch);
    const __m256i pair = load_codes(codes + i);
    store_codes(bytes + i, _mm256_and_si256(pair, low_bits));
    store_codes(bytes + 512 + i, _mm256_and_si256(_mm256_srli_epi16(pair, 4), low_bits));
  }
}

// One block of kQ6: the low bits as kQ4, and two more of four columns 16 apart in each byte behind.
inline void unpack_q6(const uint8_t* codes, int32_t prefetch, uint8_t* bytes) {
  const __m256i low_bits = _mm256_set1_epi8(15), high_bits = _mm256_set1_epi8(0x30);
  for (int32_t i = 0; i < 256; i += 32) {
    if (i % 64 == 0)
      for (int32_t j = 0; j < 768; j += 256) __builtin_prefetch(codes + i + j + prefetch);
    const __m256i top = load_codes(codes + 512 + i), first = load_codes(codes + i),
                  second = load_codes(codes + 256 + i);
    const auto put = [&](int32_t plane, __m256i low, __m256i high) {
      store_codes(bytes + 256 * plane + i,
                  _mm256_or_si256(_mm256_and_si256(low, low_bits), _mm256_and_si256(high, high_bits)));
    };
    put(0, first, _mm256_slli_epi16(top, 4));
    put(1, second, _mm256_slli_epi16(top, 2));
    put(2, _mm256_srli_epi16(first, 4), top);
    put(3, _mm256_srli_epi16(second, 4), _mm256_srli_epi16(top, 2));
  }
}

// Adds whole sums of 16 rows, times the scales of a group, or as they are.
WF_ALWAYS_INLINE void add_sums(__m256i low, __m256i high, const float* scales, float* sums) {
  V::store(sums, V::fma(_mm256_cvtepi32_ps(low), V::load(scales), V::load(sums)));
  V::store(sums + 8, V::fma(_mm256_cvtepi32_ps(high), V::load(scales + 8), V::load(sums + 8)));
}
WF_ALWAYS_INLINE void add_sums(__m256i low, __m256i high, const float*, double* sums) {
  const __m128i four[4] = {_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1), _mm256_castsi256_si128(high),
                           _mm256_extracti128_si256(high, 1)};
  for (int32_t i = 0; i < 16; i += 4)
    _mm256_storeu_pd(sums + i, _mm256_add_pd(_mm256_loadu_pd(sums + i), _mm256_cvtepi32_pd(four[i / 4])));
}

// 16 rows x T tokens. kHalves: half column blocks that share a scale, 0 for kQ8; results are added to sums
// [T][16], float for groups and double for kQ8.
template <int32_t T, int32_t kHalves, class Sum>
WF_ALWAYS_INLINE void table_tile(const TablePiece& piece, const TableActivations& x, int32_t offset, Sum* sums) {
  const int32_t halves = 2 * piece.blocks, together = kHalves ? kHalves : halves;
  const float* scales = piece.scales;
  const uint8_t* bytes = piece.bytes;
  const int8_t *first = x.first + piece.first * kColumnsPerBlock, *second = x.second + piece.first * kColumnsPerBlock;
  for (int32_t half = 0; half < halves; half += together) {
    Wide low[T], high[T];
    times<T>([&](int32_t t) WF_INLINE_BODY {
      int32_t total = 0;
      for (int32_t i = half; i < half + together; ++i) total += x.half_sums[t * x.half_stride + 2 * piece.first + i];
      low[t] = high[t] = Wide(_mm256_set1_epi32(-offset * total));
    });
    for (int32_t i = half; i < half + together; ++i) {
      if constexpr (kHalves == 0)
        for (int32_t j = 0; j < kTableBlockBytes / 2; j += 64) __builtin_prefetch(bytes + j + piece.prefetch);
      times<8>([&](int32_t k) WF_INLINE_BODY {
        const Wide::Codes low_codes(bytes + 64 * k), high_codes(bytes + 64 * k + 32);
        times<T>([&](int32_t t) WF_INLINE_BODY {
          const __m256i a = four_columns(first + t * x.stride + 4 * k), b = four_columns(second + t * x.stride + 4 * k);
          low[t].add(low_codes, a, b);
          high[t].add(high_codes, a, b);
        });
      });
      bytes += kTableBlockBytes / 2, first += 32, second += 32;
    }
    times<T>([&](int32_t t)
                 WF_INLINE_BODY { add_sums(low[t].whole(), high[t].whole(), scales, sums + t * kRowsPerBlock); });
    scales += kRowsPerBlock;
  }
}

template <int32_t T, int32_t kHalves, class Sum>
inline void table_tokens(const TablePiece& piece, TableActivations x, int32_t offset, int32_t tokens, Sum* sums) {
  if constexpr (T > 1) {  // as few tiles, but of equal size
    if ((tokens + T - 2) / (T - 1) == (tokens + T - 1) / T)
      return table_tokens<T - 1, kHalves>(piece, x, offset, tokens, sums);
  }
  for (; tokens >= T; tokens -= T) {
    table_tile<T, kHalves>(piece, x, offset, sums);
    x.first += T * x.stride, x.second += T * x.stride, x.half_sums += T * x.half_stride;
    sums += T * kRowsPerBlock;
  }
  if constexpr (T > 1) {
    if (tokens > 0) table_tokens<T - 1, kHalves>(piece, x, offset, tokens, sums);
  }
}

constexpr int32_t kTableMostTokens = 64;

inline void prepare(const int8_t* high, const int8_t* low, int32_t columns, int8_t* first, int8_t* second) {
  for (int32_t i = 0; i < columns; i += 32) Wide::prepare(high + i, low + i, first + i, second + i);
}

// Adds the products of one row of blocks with up to kTableMostTokens tokens to sums [tokens][16].
template <TableFormat kFormat, class Sum>
inline void table_row(const TableMatrix* w, const TableActivations& x, int32_t tokens, int32_t block, Sum* sums) {
  constexpr int32_t kHalves = kFormat == TableFormat::kQ8 ? 0 : kFormat == TableFormat::kQ6 ? 2 : 1;
  constexpr int32_t kGroups = kHalves ? 2 / kHalves : 0;  // of a column block
  constexpr int64_t kBytes = table_block_bytes(kFormat);
  alignas(64) uint8_t bytes[kHalves ? kTableBlocks * kTableBlockBytes : 1];
  alignas(64) float scales[kHalves ? 2 * kTableBlocks * kRowsPerBlock : 1];
  alignas(64) int8_t ready[2][Wide::kPrepares ? kTableBlocks * kColumnsPerBlock : 1];
  const uint8_t* codes = w->codes + static_cast<int64_t>(block) * w->column_blocks * kBytes;
  for (int32_t first = 0; first < w->column_blocks; first += kTableBlocks) {
    const int32_t blocks = min_of(kTableBlocks, w->column_blocks - first);
    TablePiece piece{codes + first * kBytes, nullptr, blocks, first, w->prefetch};
    if constexpr (kHalves != 0) {
      for (int32_t c = 0; c < blocks; ++c)
        if constexpr (kFormat == TableFormat::kQ4) {
          unpack_q4(piece.bytes + c * kBytes, w->prefetch, bytes + c * kTableBlockBytes);
        } else {
          unpack_q6(piece.bytes + c * kBytes, w->prefetch, bytes + c * kTableBlockBytes);
        }
      const uint16_t* from =
          w->group_scales + (static_cast<int64_t>(block) * w->column_blocks + first) * kGroups * kRowsPerBlock;
      for (int32_t i = 0; i < blocks * kGroups * kRowsPerBlock; i += kLanes) {
        __builtin_prefetch(from + i + w->prefetch / 2);
        V::store(scales + i, V::from_f16(from + i));
      }
      piece.bytes = bytes;
      piece.scales = scales;
    }
    if (x.prepared) {
      table_tokens<kTableTokens, kHalves>(piece, x, offset_of(kFormat), tokens, sums);
    } else {  // one token, too wide to be prepared as a whole
      const int32_t column = first * kColumnsPerBlock;
      prepare(x.first + column, x.second + column, blocks * kColumnsPerBlock, ready[0], ready[1]);
      piece.first = 0;
      const TableActivations part{ready[0], ready[1], 0, x.half_sums + 2 * first, 0, true};
      table_tokens<1, kHalves>(piece, part, offset_of(kFormat), 1, sums);
    }
  }
}

template <TableFormat kFormat, class Sum>
inline void table_rows(const TableMatrix* w, const TableActivations& x, const float* token_scales, int32_t tokens,
                       int32_t begin, int32_t end, float* y, int64_t y_stride) {
  alignas(64) Sum sums[kTableMostTokens * kRowsPerBlock];
  for (int32_t block = begin; block < end; ++block) {
    for (int32_t i = 0; i < tokens * kRowsPerBlock; ++i) sums[i] = 0;
    table_row<kFormat>(w, x, tokens, block, sums);
    const int32_t row = block * kRowsPerBlock, rows = min_of(kRowsPerBlock, w->rows - row);
    for (int32_t t = 0; t < tokens; ++t)
      for (int32_t r = 0; r < rows; ++r) {
        const float sum = static_cast<float>(sums[t * kRowsPerBlock + r]);
        const float scaled = kFormat == TableFormat::kQ8 ? sum * w->row_scales[row + r] : sum;
        y[t * y_stride + row + r] = scaled * token_scales[t];
      }
  }
}

// Tokens in as large parts as can be prepared at once: every part reads the table anew.
void table_gemm(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t begin, int32_t end, float* y,
                int64_t y_stride) {
  alignas(64) int8_t ready[2][Wide::kPrepares ? kTableScratch : 1];
  const int32_t columns = w->column_blocks * kColumnsPerBlock;
  const bool fits = !Wide::kPrepares || columns <= kTableScratch;
  const int32_t most = !fits ? 1 : min_of(kTableMostTokens, Wide::kPrepares ? kTableScratch / columns : tokens);
  for (int32_t t = 0; t < tokens; t += most) {
    const int32_t count = min_of(most, tokens - t), half_stride = 2 * w->column_blocks;
    const int64_t start = static_cast<int64_t>(t) * columns;
    TableActivations part{x->high + start, x->low + start,
                          columns,         x->half_sums + static_cast<int64_t>(t) * half_stride,
                          half_stride,     fits};
    if (Wide::kPrepares && fits) {
      prepare(part.first, part.second, count * columns, ready[0], ready[1]);
      part.first = ready[0];
      part.second = ready[1];
    }
    float* to = y + t * y_stride;
    const float* scales = x->scales + t;
    if (w->format == TableFormat::kQ8)
      table_rows<TableFormat::kQ8, double>(w, part, scales, count, begin, end, to, y_stride);
    else if (w->format == TableFormat::kQ6)
      table_rows<TableFormat::kQ6, float>(w, part, scales, count, begin, end, to, y_stride);
    else
      table_rows<TableFormat::kQ4, float>(w, part, scales, count, begin, end, to, y_stride);
  }
}

}  // namespace
}  // namespace wf
