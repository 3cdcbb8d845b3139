// The ternary product on 256-bit registers: 32 bytes are 4 columns of 8 rows, the activations of 4 columns are
// broadcast to all rows by the load, and every element of a sum belongs to one row.
//
// The file that includes this one defines how bytes are multiplied and summed:
//   struct Dot {
//     add(sum, codes, q)      adds the products of 4 columns of 8 rows,
//     whole<kShift>(sum)      the sum as 8 int32, times 2^kShift,
//     few_sums(tokens, row blocks, blocks of a group): how many sums the planes of t2 are added to, see plane_of,
//     kMostBlocks[3]          the most column blocks that sums of few_sums 1, 2, 4 hold,
//   };
//   struct Fives<T>           a superblock of 1.6 bits, see add_fives,
//   kPanelRows, kTileTokens, kSegmentBlocks and the constants of ternary_few-inl.h.
#include "kernels/avx2-inl.h"

namespace wf {
namespace {

// The next code of each byte of t1.6-r16c64, and what is left. `left` is kept 128 lower, as a signed number, where
// AVX2 can compare: (3 v) >> 8 is 1 from v = 86 on and 2 from 171 on, and three times the lower number is again
// 128 lower than what is left, modulo 256.
WF_ALWAYS_INLINE __m256i lowered(__m256i fractions) { return _mm256_xor_si256(fractions, _mm256_set1_epi8(-128)); }
WF_ALWAYS_INLINE __m256i code_of(__m256i left) {
  const __m256i first = _mm256_cmpgt_epi8(left, _mm256_set1_epi8(85 - 128));  // -1 where true
  const __m256i second = _mm256_cmpgt_epi8(left, _mm256_set1_epi8(170 - 128));
  return _mm256_sub_epi8(_mm256_sub_epi8(_mm256_setzero_si256(), first), second);
}
WF_ALWAYS_INLINE __m256i times_three(__m256i bytes) { return _mm256_add_epi8(_mm256_add_epi8(bytes, bytes), bytes); }

// Plane p of t2 as codes times 4^(p % kSums): what need not be shifted is not, and the sums of equal factors are kept
// apart from the others.
template <int32_t kSums>
WF_ALWAYS_INLINE __m256i plane_of(__m256i codes, int32_t p) {
  const int32_t shift = 2 * (p / kSums * kSums);
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(3 << (2 * (p % kSums))));
  return _mm256_and_si256(shift ? _mm256_srli_epi16(codes, shift) : codes, mask);
}

// Row blocks side by side and the tokens they meet; kGroupBlocks column blocks share a scale, 0 for a whole row.
template <int32_t T, int32_t kBlocks, int32_t kGroupBlocks>
struct Few {
  static constexpr int32_t kRegisters = 2 * kBlocks;
  // One token reads all rows side by side, as they come from memory. Several tokens have many sums: they go through
  // the same codes once for each register of rows, or the sums would not stay in registers; not where a scale ends
  // the sums after every column block anyway.
  static constexpr int32_t kAtOnce = T == 1 || kGroupBlocks == 1 ? kRegisters : 1;
  static constexpr int32_t kSums = Dot::few_sums(T, kBlocks, kGroupBlocks);
  static constexpr int32_t kShift = 2 * (kSums - 1);  // sums are combined as this many bits too high
  static constexpr int32_t kMost = Dot::kMostBlocks[kSums / 2];

  const TernaryMatrix* w;
  const uint8_t* codes[kBlocks];
  const int8_t* q;
  const int32_t* block_sums;

  Few(const TernaryMatrix* matrix, int32_t block, int32_t apart, const int8_t* activations, const int32_t* sums)
      : w(matrix), q(activations), block_sums(sums) {
    for (int32_t b = 0; b < kBlocks; ++b)
      codes[b] = w->codes + (block + b * apart) * row_block_bytes(w->layout, w->column_blocks);
  }

  WF_ALWAYS_INLINE const int8_t* activations(int32_t t, int32_t c) const {
    return q + (static_cast<int64_t>(t) * w->column_blocks + c) * kColumnsPerBlock;
  }

  // Column block c, 256 bytes at `offset`, for kAtOnce registers of rows from `first` on.
  WF_ALWAYS_INLINE void add_two_bits(int32_t first, int32_t c, int64_t offset, __m256i (*sums)[kAtOnce][kSums]) const {
    times<4>([&](int32_t d) WF_INLINE_BODY {
      times<kAtOnce>([&](int32_t i) WF_INLINE_BODY {
        const int32_t r = first + i;
        const uint8_t* from = codes[r / 2] + offset + 64 * d + 32 * (r % 2);
        if (r % 2 == 0) __builtin_prefetch(from + w->prefetch);
        const __m256i bytes = load_codes(from);
        times<4>([&](int32_t p) WF_INLINE_BODY {
          const __m256i plane = plane_of<kSums>(bytes, p);
          times<T>([&](int32_t t) WF_INLINE_BODY {
            Dot::add(sums[t][i][p % kSums], plane, four_columns(activations(t, c) + 16 * p + 4 * d));
          });
        });
      });
    });
  }

  // Adds the column blocks [first, last), the first of them at `offset`, to dots, times 2^kShift.
  WF_ALWAYS_INLINE void add_range(int32_t first, int32_t last, int64_t offset, __m256i (*dots)[kRegisters]) const {
    while (first < last) {
      const int32_t blocks = min_of(last - first, kMost);
      times<kRegisters / kAtOnce>([&](int32_t part) WF_INLINE_BODY {
        __m256i sums[T][kAtOnce][kSums];
        times<T * kAtOnce * kSums>([&](int32_t i) WF_INLINE_BODY {
          sums[i / kSums / kAtOnce][i / kSums % kAtOnce][i % kSums] = _mm256_setzero_si256();
        });
        for (int32_t c = 0; c < blocks; ++c) add_two_bits(part * kAtOnce, first + c, offset + c * kBytesPerBlock, sums);
        times<T * kAtOnce>([&](int32_t i) WF_INLINE_BODY {
          __m256i& dot = dots[i / kAtOnce][part * kAtOnce + i % kAtOnce];
          dot = _mm256_add_epi32(dot, together(sums[i / kAtOnce][i % kAtOnce]));
        });
      });
      first += blocks;
      offset += blocks * kBytesPerBlock;
    }
  }

  // The sums of the planes as int32, times 2^kShift.
  WF_ALWAYS_INLINE static __m256i together(const __m256i* sums) {
    if constexpr (kSums == 1) return Dot::whole<0>(sums[0]);
    if constexpr (kSums == 2) return _mm256_add_epi32(Dot::whole<2>(sums[0]), Dot::whole<0>(sums[1]));
    if constexpr (kSums == 4) {
      const __m256i high = _mm256_add_epi32(Dot::whole<2>(sums[0]), Dot::whole<0>(sums[1]));
      const __m256i low = _mm256_add_epi32(Dot::whole<2>(sums[2]), Dot::whole<0>(sums[3]));
      return _mm256_add_epi32(_mm256_slli_epi32(high, 4), low);
    }
  }
};

// The scales of 8 rows for a group, or ones.
template <bool kScaled>
WF_ALWAYS_INLINE F group_scale(const uint16_t* scales, int32_t half) {
  return kScaled ? V::from_f16(scales + 8 * half) : V::set1(1.0f);
}

// Adds dot products of codes, less the sum of the activations, times 2^kShift and the scale.
template <int32_t kShift>
WF_ALWAYS_INLINE F add_scaled(__m256i dots, int32_t activations, F scale, F sums) {
  const __m256i exact = _mm256_sub_epi32(dots, _mm256_set1_epi32(activations));
  return V::fma(_mm256_cvtepi32_ps(kShift ? _mm256_slli_epi32(exact, kShift) : exact), scale, sums);
}

// The five column blocks of a superblock, from c on, for 8 rows and T tokens.
template <int32_t T>
WF_ALWAYS_INLINE Fives<T> five_blocks(const uint8_t* codes, int32_t prefetch, const int8_t* q, int64_t q_stride) {
  Fives<T> sums;
  for (int32_t d = 0; d < 16; ++d) {
    __builtin_prefetch(codes + 64 * d + prefetch);
    sums.add(load_codes(codes + 64 * d), q + 4 * d, q_stride);
  }
  return sums;
}

// One scale for a row: integers to the end. Float32 holds them exactly (see ternary_panel-inl.h).
template <int32_t T, int32_t kBlocks>
inline void few_whole(const Few<T, kBlocks, 0>& few, const int32_t* totals, float* out) {
  using Shape = Few<T, kBlocks, 0>;
  const int32_t columns = few.w->column_blocks;
  __m256i dots[T][Shape::kRegisters];
  times<T * Shape::kRegisters>([&](int32_t i) WF_INLINE_BODY {
    dots[i / Shape::kRegisters][i % Shape::kRegisters] =
        _mm256_set1_epi32(-(totals[i / Shape::kRegisters] << Shape::kShift));
  });
  int32_t c = 0;
  int64_t offset = 0;
  if constexpr (T <= kFewDenseTokens)
    if (few.w->layout == TernaryLayout::kFiveTrits)
      for (; c + kBlocksPerFive <= columns; c += kBlocksPerFive, offset += kBytesPerFive)
        for (int32_t r = 0; r < Shape::kRegisters; ++r) {
          const Fives<T> sums = five_blocks<T>(few.codes[r / 2] + offset + 32 * (r % 2), few.w->prefetch,
                                               few.activations(0, c), columns * kColumnsPerBlock);
          for (int32_t t = 0; t < T; ++t)
            dots[t][r] = _mm256_add_epi32(dots[t][r], _mm256_slli_epi32(sums.total(t), Shape::kShift));
        }
  few.add_range(c, columns, offset, dots);
  const F factor = V::set1(1.0f / static_cast<float>(1 << Shape::kShift));
  for (int32_t t = 0; t < T; ++t)
    for (int32_t r = 0; r < Shape::kRegisters; ++r)
      V::store(out + t * kBlocks * kRowsPerBlock + 8 * r, V::mul(_mm256_cvtepi32_ps(dots[t][r]), factor));
}

template <int32_t T, int32_t kBlocks, int32_t kGroupBlocks, bool kScaled>
inline void few_grouped(const Few<T, kBlocks, kGroupBlocks>& few, int32_t block, int32_t apart, float* out) {
  using Shape = Few<T, kBlocks, kGroupBlocks>;
  const int32_t columns = few.w->column_blocks;
  const int64_t groups = (columns + kGroupBlocks - 1) / kGroupBlocks;
  const auto scales_at = [&](int32_t r, int32_t group) {
    return few.w->group_scales + ((block + r / 2 * apart) * groups + group) * kRowsPerBlock;
  };
  F sums[T][Shape::kRegisters];
  for (int32_t t = 0; t < T; ++t)
    for (int32_t r = 0; r < Shape::kRegisters; ++r) sums[t][r] = V::zero();
  int32_t c = 0;
  int64_t offset = 0;
  if constexpr (T <= kFewDenseGroupedTokens)
    if (few.w->layout == TernaryLayout::kFiveTrits)
      for (; c + kBlocksPerFive <= columns; c += kBlocksPerFive, offset += kBytesPerFive)
        for (int32_t r = 0; r < Shape::kRegisters; ++r) {
          const Fives<T> fives = five_blocks<T>(few.codes[r / 2] + offset + 32 * (r % 2), few.w->prefetch,
                                                few.activations(0, c), columns * kColumnsPerBlock);
          for (int32_t p = 0; p < kBlocksPerFive; ++p) {
            const F scale = group_scale<kScaled>(scales_at(r, (c + p) / kGroupBlocks), r % 2);
            for (int32_t t = 0; t < T; ++t)
              sums[t][r] =
                  add_scaled<Shape::kShift>(fives.block(t, p), few.block_sums[t * columns + c + p], scale, sums[t][r]);
          }
        }
  while (c < columns) {  // with 1.6 bits the blocks left over may begin inside a group
    const int32_t group = c / kGroupBlocks;
    const int32_t last = kGroupBlocks == 1 ? c + 1 : min_of((group + 1) * kGroupBlocks, columns);
    __m256i dots[T][Shape::kRegisters];
    for (int32_t t = 0; t < T; ++t)
      for (int32_t r = 0; r < Shape::kRegisters; ++r) dots[t][r] = _mm256_setzero_si256();
    for (int32_t b = 0; b < kBlocks; ++b) __builtin_prefetch(scales_at(2 * b, group) + few.w->prefetch / 4);
    few.add_range(c, last, offset, dots);
    for (int32_t t = 0; t < T; ++t) {
      int32_t activations = 0;
      for (int32_t i = c; i < last; ++i) activations += few.block_sums[t * columns + i];
      activations <<= Shape::kShift;
      for (int32_t r = 0; r < Shape::kRegisters; ++r)
        sums[t][r] =
            add_scaled<0>(dots[t][r], activations, group_scale<kScaled>(scales_at(r, group), r % 2), sums[t][r]);
    }
    offset += (last - c) * kBytesPerBlock;
    c = last;
  }
  const F factor = V::set1(1.0f / static_cast<float>(1 << Shape::kShift));
  for (int32_t t = 0; t < T; ++t)
    for (int32_t r = 0; r < Shape::kRegisters; ++r)
      V::store(out + t * kBlocks * kRowsPerBlock + 8 * r, V::mul(sums[t][r], factor));
}

template <int32_t T, int32_t kBlocks, bool kGrouped, bool kScaled>
inline void few_blocks(const TernaryMatrix* w, int32_t block, int32_t apart, const int8_t* q, const int32_t* block_sums,
                       const int32_t* totals, float* out) {
  const auto grouped = [&]<int32_t kGroupBlocks>() {
    const Few<T, kBlocks, kGroupBlocks> few(w, block, apart, q, block_sums);
    few_grouped<T, kBlocks, kGroupBlocks, kScaled>(few, block, apart, out);
  };
  if constexpr (!kGrouped) {
    few_whole<T, kBlocks>({w, block, apart, q, block_sums}, totals, out);
  } else {
    if (w->group_blocks == 1) return grouped.template operator()<1>();
    if (w->group_blocks == 2) return grouped.template operator()<2>();
    grouped.template operator()<4>();
  }
}

// ------------------------------------------------------------------------------------------------- many tokens

constexpr int32_t kStepBytes = kPanelRows * 4;

inline void unpack_two_bits(const uint8_t* codes, uint8_t* panel) {
  for (int32_t i = 0; i < 8; ++i) {
    const __m256i bytes = load_codes(codes + 32 * i);
    for (int32_t p = 0; p < 4; ++p)
      store_codes(panel + (4 * p + i / 2) * kStepBytes + i % 2 * 32, plane_of<1>(bytes, p));
  }
}

inline void unpack_five_trits(const uint8_t* codes, uint8_t* panel) {
  for (int32_t i = 0; i < 32; ++i) {
    __m256i left = lowered(load_codes(codes + 32 * i));
    for (int32_t p = 0; p < kBlocksPerFive; ++p, left = times_three(left))
      store_codes(panel + (16 * p + i / 2) * kStepBytes + i % 2 * 32, code_of(left));
  }
}

WF_ALWAYS_INLINE void flush(__m256i sum, __m256i total, const float* scales, float* sums) {
  const __m256i exact = _mm256_sub_epi32(Dot::whole<0>(sum), total);
  V::store(sums, V::fma(_mm256_cvtepi32_ps(exact), V::load(scales), V::load(sums)));
}

// 16 rows x T tokens: for 4 columns 2 loads of codes and T broadcasts feed 2 T multiplications. The 16 steps of a
// column block are written out: with group scales a loop of 16 turns would end, and be mispredicted, all the time.
template <int32_t T>
inline void tile(const uint8_t* panel, const float* scales, const int8_t* q, int64_t q_stride,
                 const int32_t* block_sums, int32_t sums_stride, int32_t blocks, int32_t segment_blocks, float* sums) {
  for (int32_t first = 0; first < blocks; first += segment_blocks, scales += kPanelRows) {
    const int32_t last = min_of(first + segment_blocks, blocks);
    __m256i low[T], high[T];
    for (int32_t t = 0; t < T; ++t) low[t] = high[t] = _mm256_setzero_si256();
    for (int32_t c = first; c < last; ++c) {
      const uint8_t* codes = panel + c * kColumnsPerBlock * kPanelRows;
      const int8_t* values = q + c * kColumnsPerBlock;
#pragma GCC unroll 16
      for (int32_t k = 0; k < kColumnsPerBlock; k += 4) {
        const __m256i low_codes = load_codes(codes + k * kPanelRows);
        const __m256i high_codes = load_codes(codes + k * kPanelRows + 32);
        for (int32_t t = 0; t < T; ++t) {
          const __m256i four = four_columns(values + t * q_stride + k);
          Dot::add(low[t], low_codes, four);
          Dot::add(high[t], high_codes, four);
        }
      }
    }
    for (int32_t t = 0; t < T; ++t) {
      const int32_t* line = block_sums + static_cast<int64_t>(t) * sums_stride;
      __m256i total = _mm256_set1_epi32(line[first]);  // a load that broadcasts
      for (int32_t c = first + 1; c < last; ++c) total = _mm256_add_epi32(total, _mm256_set1_epi32(line[c]));
      flush(low[t], total, scales, sums + t * kPanelRows);
      flush(high[t], total, scales + 8, sums + t * kPanelRows + 8);
    }
  }
}

}  // namespace
}  // namespace wf
