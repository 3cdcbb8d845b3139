// The ternary product for a few tokens on NEON, and the unpacking of codes. Codes 0, 1, 2 are small enough to be the
// signed bytes that sdot wants. 16 bytes are 4 columns of 4 rows, so a sum holds 4 rows ("a quad") and
// sdot by element gives all of them the same 4 activations.
#include "kernels/neon-inl.h"

namespace wf {
namespace {

constexpr int32_t kQuads = kRowsPerBlock / 4;
constexpr int32_t kFewTokens = 4;
constexpr int32_t kFewGroupedTokens = 4;
constexpr int32_t kFewDenseTokens = 2;  // unpacking is dear enough for a panel from three tokens on
constexpr int32_t kFewDenseGroupedTokens = 2;
constexpr int32_t kFewBlocks = 1;
constexpr int32_t kFewBlocksTokens = 1;

// 4 columns of 4 rows in each register: what the four bit pairs of 16 bytes stand for.
struct TwoBits {
  int8x16_t plane[4];
};

WF_ALWAYS_INLINE TwoBits two_bits_of(uint8x16_t codes) {
  const uint8x16_t two_bits = vdupq_n_u8(3);
  return {{vreinterpretq_s8_u8(vandq_u8(codes, two_bits)),
           vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 2), two_bits)),
           vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(codes, 4), two_bits)), vreinterpretq_s8_u8(vshrq_n_u8(codes, 6))}};
}

// The five codes of 16 bytes of t1.6. The code of a byte v is floor(3 v / 256), and what is left is 3 v mod 256.
// Without a product of 9 bits: (v + floor(v / 2)) / 2 rounded down is floor(3 v / 4), and that / 64 rounded down is the
// code. Source: the halving addition is that of the ternary types of llama.cpp (ggml-org/llama.cpp pull request 8151).
struct FiveTrits {
  int8x16_t plane[5];
};

WF_ALWAYS_INLINE FiveTrits five_trits_of(uint8x16_t codes) {
  FiveTrits trits;
  uint8x16_t three = vdupq_n_u8(3);
  __asm__("" : "+w"(three));  // else GCC makes two instructions, a shift and an addition, of the product
#pragma GCC unroll 5
  for (int32_t p = 0; p < 5; ++p) {
    trits.plane[p] = vreinterpretq_s8_u8(vshrq_n_u8(vhaddq_u8(codes, vshrq_n_u8(codes, 1)), 6));
    if (p < 4) codes = vmulq_u8(codes, three);
  }
  return trits;
}

WF_ALWAYS_INLINE void ask_for(const uint8_t* codes, int64_t bytes, int32_t ahead) {
  if (ahead == 0) return;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(codes + ahead + i, 0, 3);
}

// Dword kDword of 16 activations against 4 columns of 4 rows, for T tokens.
template <int32_t T, int32_t kDword>
WF_ALWAYS_INLINE void four_columns(int8x16_t codes, const int8x16_t* values, int32_t values_stride, int32x4_t* sums,
                                   int32_t sums_stride) {
  for (int32_t t = 0; t < T; ++t)
    sums[t * sums_stride] = vdotq_laneq_s32(sums[t * sums_stride], codes, values[t * values_stride], kDword);
}

// The columns 16 p + 4 d ... 16 p + 4 d + 3 (p = 0 .. 3) of 16 rows in two bits each.
template <int32_t T, int32_t d>
WF_ALWAYS_INLINE void two_bit_step(const uint8_t* codes, const int8x16_t (*values)[4], int32x4_t (*sums)[kQuads]) {
#pragma GCC unroll 4
  for (int32_t quad = 0; quad < kQuads; ++quad) {
    const TwoBits bits = two_bits_of(vld1q_u8(codes + 64 * d + 16 * quad));
#pragma GCC unroll 4
    for (int32_t p = 0; p < 4; ++p) four_columns<T, d>(bits.plane[p], values[0] + p, 4, sums[0] + quad, kQuads);
  }
}

// Adds the products of `blocks` column blocks in two bits, `codes` the first of them, to dots [T][quad]. One token
// alone has two chains of sums a quad, so that the latency of sdot does not count.
template <int32_t T>
WF_ALWAYS_INLINE void two_bit_dots(const uint8_t* codes, const int8_t* q, int64_t q_stride, int32_t blocks,
                                   int32_t prefetch, int32x4_t (*dots)[kQuads]) {
  int32x4_t odd[T][kQuads];
  if constexpr (T == 1)
    for (int32x4_t& sum : odd[0]) sum = vdupq_n_s32(0);
  for (int32_t c = 0; c < blocks; ++c, codes += kBytesPerBlock, q += kColumnsPerBlock) {
    ask_for(codes, kBytesPerBlock, prefetch);
    int8x16_t values[T][4];
    for (int32_t t = 0; t < T; ++t)
      for (int32_t p = 0; p < 4; ++p) values[t][p] = vld1q_s8(q + t * q_stride + 16 * p);
    two_bit_step<T, 0>(codes, values, dots);
    two_bit_step<T, 1>(codes, values, T == 1 ? odd : dots);
    two_bit_step<T, 2>(codes, values, dots);
    two_bit_step<T, 3>(codes, values, T == 1 ? odd : dots);
  }
  if constexpr (T == 1)
    for (int32_t quad = 0; quad < kQuads; ++quad) dots[0][quad] = vaddq_s32(dots[0][quad], odd[0][quad]);
}

#if defined(__ARM_FEATURE_MATMUL_INT8)

// smmla multiplies 2 rows x 8 columns with 2 tokens x 8 columns and adds to [row][token]. Its operands are put together
// from two registers whose dwords are neighbouring columns of the same 4 rows, before the codes in them are unpacked:
// then one instruction a register serves four or five planes.
struct RowPairs {
  uint8x16_t pair[2];  // rows 0 and 1, rows 2 and 3
};

WF_ALWAYS_INLINE RowPairs row_pairs_of(const uint8_t* four_columns, const uint8_t* next_four) {
  const uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(four_columns)), b = vreinterpretq_u32_u8(vld1q_u8(next_four));
  return {{vreinterpretq_u8_u32(vzip1q_u32(a, b)), vreinterpretq_u8_u32(vzip2q_u32(a, b))}};
}

// Eight columns, the low or the high half of 16, of two tokens.
template <int32_t kHalf>
WF_ALWAYS_INLINE int8x16_t token_pair(int8x16_t first, int8x16_t second) {
  const int64x2_t a = vreinterpretq_s64_s8(first), b = vreinterpretq_s64_s8(second);
  return vreinterpretq_s8_s64(kHalf == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b));
}

// The sums of 4 rows for the first or the second token of a pair, from those of rows 0, 1 and of rows 2, 3.
template <int32_t kToken>
WF_ALWAYS_INLINE int32x4_t rows_of(const int32x4_t* pairs) {
  return kToken == 0 ? vuzp1q_s32(pairs[0], pairs[1]) : vuzp2q_s32(pairs[0], pairs[1]);
}

// The columns 16 p + 8 e ... 16 p + 8 e + 7 (p = 0 .. 3) of 16 rows in two bits each, for kPairs pairs of tokens.
template <int32_t kPairs, int32_t e>
WF_ALWAYS_INLINE void two_bit_pair_step(const uint8_t* codes, const int8x16_t (*values)[4],
                                        int32x4_t (*sums)[2 * kQuads]) {
#pragma GCC unroll 4
  for (int32_t quad = 0; quad < kQuads; ++quad) {
    const uint8_t* from = codes + 128 * e + 16 * quad;
    const RowPairs rows = row_pairs_of(from, from + 64);
#pragma GCC unroll 2
    for (int32_t i = 0; i < 2; ++i) {
      const TwoBits bits = two_bits_of(rows.pair[i]);
#pragma GCC unroll 4
      for (int32_t p = 0; p < 4; ++p)
        for (int32_t pair = 0; pair < kPairs; ++pair)
          sums[pair][2 * quad + i] = vmmlaq_s32(sums[pair][2 * quad + i], bits.plane[p],
                                                token_pair<e>(values[2 * pair][p], values[2 * pair + 1][p]));
    }
  }
}

// two_bit_dots for more than one token; the last of an odd number is its own partner.
template <int32_t T>
WF_ALWAYS_INLINE void two_bit_pair_dots(const uint8_t* codes, const int8_t* q, int64_t q_stride, int32_t blocks,
                                        int32_t prefetch, int32x4_t (*dots)[kQuads]) {
  constexpr int32_t kPairs = (T + 1) / 2;
  int32x4_t sums[kPairs][2 * kQuads];
  for (int32_t pair = 0; pair < kPairs; ++pair)
    for (int32_t i = 0; i < 2 * kQuads; ++i) sums[pair][i] = vdupq_n_s32(0);
  for (int32_t c = 0; c < blocks; ++c, codes += kBytesPerBlock, q += kColumnsPerBlock) {
    ask_for(codes, kBytesPerBlock, prefetch);
    int8x16_t values[2 * kPairs][4];
    for (int32_t t = 0; t < 2 * kPairs; ++t)
      for (int32_t p = 0; p < 4; ++p) values[t][p] = vld1q_s8(q + min_of(t, T - 1) * q_stride + 16 * p);
    two_bit_pair_step<kPairs, 0>(codes, values, sums);
    two_bit_pair_step<kPairs, 1>(codes, values, sums);
  }
  for (int32_t t = 0; t < T; ++t)
    for (int32_t quad = 0; quad < kQuads; ++quad) {
      const int32x4_t* pairs = sums[t / 2] + 2 * quad;
      dots[t][quad] = vaddq_s32(dots[t][quad], t % 2 ? rows_of<1>(pairs) : rows_of<0>(pairs));
    }
}

#endif

// two_bit_dots by the best instruction there is: for one token alone sdot needs no rearranging.
template <int32_t T>
WF_ALWAYS_INLINE void best_two_bit_dots(const uint8_t* codes, const int8_t* q, int64_t q_stride, int32_t blocks,
                                        int32_t prefetch, int32x4_t (*dots)[kQuads]) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if constexpr (T > 1) return two_bit_pair_dots<T>(codes, q, q_stride, blocks, prefetch, dots);
#endif
  two_bit_dots<T>(codes, q, q_stride, blocks, prefetch, dots);
}

// The columns 4 d ... 4 d + 3 (of 16) of each of the five blocks, for kSome quads of rows.
template <int32_t T, int32_t kSome, int32_t d>
WF_ALWAYS_INLINE void five_trit_step(const uint8_t* codes, const int8x16_t (*values)[5], int32x4_t (*sums)[kSome][5]) {
#pragma GCC unroll 4
  for (int32_t quad = 0; quad < kSome; ++quad) {
    const FiveTrits trits = five_trits_of(vld1q_u8(codes + 64 * d + 16 * quad));
#pragma GCC unroll 5
    for (int32_t p = 0; p < 5; ++p) four_columns<T, d>(trits.plane[p], values[0] + p, 5, sums[0][quad] + p, 5 * kSome);
  }
}

// The products of one superblock, each of its five blocks apart: sums [T][kSome quads][block].
template <int32_t T, int32_t kSome>
WF_ALWAYS_INLINE void five_trit_dots(const uint8_t* codes, const int8_t* q, int64_t q_stride,
                                     int32x4_t (*sums)[kSome][5]) {
  for (int32_t t = 0; t < T; ++t)
    for (int32_t quad = 0; quad < kSome; ++quad)
      for (int32_t p = 0; p < 5; ++p) sums[t][quad][p] = vdupq_n_s32(0);
  for (int32_t k = 0; k < 4; ++k) {
    int8x16_t values[T][5];
    for (int32_t t = 0; t < T; ++t)
      for (int32_t p = 0; p < 5; ++p) values[t][p] = vld1q_s8(q + t * q_stride + kColumnsPerBlock * p + 16 * k);
    five_trit_step<T, kSome, 0>(codes + 256 * k, values, sums);
    five_trit_step<T, kSome, 1>(codes + 256 * k, values, sums);
    five_trit_step<T, kSome, 2>(codes + 256 * k, values, sums);
    five_trit_step<T, kSome, 3>(codes + 256 * k, values, sums);
  }
}

// What a row block is made of, and its scales, for one call of few_blocks.
struct FewRows {
  const TernaryMatrix* w;
  const uint8_t* codes;
  const uint16_t* scales;  // of the first group
  const int8_t* q;
  int64_t q_stride;
  const int32_t* block_sums;
};

// The sum of a token's activations over column blocks.
WF_ALWAYS_INLINE int32x4_t total_of(const FewRows& rows, int32_t token, int32_t first, int32_t last) {
  int32_t total = 0;
  for (int32_t c = first; c < last; ++c) total += rows.block_sums[token * rows.w->column_blocks + c];
  return vdupq_n_s32(total);
}

// Adds (dots - total) * scale to the float32 sums of one quad: codes are the ternary values plus one.
template <bool kScaled>
WF_ALWAYS_INLINE F add_group(const FewRows& rows, int32_t group, int32_t quad, int32x4_t dots, int32x4_t total, F sum) {
  const F whole = vcvtq_f32_s32(vsubq_s32(dots, total));
  return kScaled ? V::fma(whole, V::from_f16(rows.scales + group * kRowsPerBlock + 4 * quad), sum) : V::add(whole, sum);
}

// Column blocks [first, last) in two bits, whose codes begin at `codes`; none of a group's blocks is in a superblock
// unless `alone`, when every block is scaled by itself.
template <int32_t T, bool kScaled>
WF_ALWAYS_INLINE void grouped_two_bits(const FewRows& rows, const uint8_t* codes, int32_t first, int32_t last,
                                       bool alone, F (*sums)[kQuads]) {
  const int32_t group_blocks = rows.w->group_blocks, step = alone ? 1 : group_blocks;
  for (int32_t c = first; c < last; c += step) {
    const int32_t blocks = min_of(step, last - c);
    int32x4_t dots[T][kQuads];
    for (int32_t t = 0; t < T; ++t)
      for (int32_t quad = 0; quad < kQuads; ++quad) dots[t][quad] = vdupq_n_s32(0);
    best_two_bit_dots<T>(codes + int64_t{c - first} * kBytesPerBlock, rows.q + int64_t{c} * kColumnsPerBlock,
                         rows.q_stride, blocks, rows.w->prefetch, dots);
    for (int32_t t = 0; t < T; ++t) {
      const int32x4_t total = total_of(rows, t, c, c + blocks);
      for (int32_t quad = 0; quad < kQuads; ++quad)
        sums[t][quad] = add_group<kScaled>(rows, c / group_blocks, quad, dots[t][quad], total, sums[t][quad]);
    }
  }
}

// All superblocks of a row block. The five blocks of a superblock have a sum each, 20 registers for one token and 16
// rows; two tokens take half the rows at a time. With group scales each block is scaled by itself into `sums`, else the
// dot products with the codes go to `dots`.
template <int32_t T, bool kGrouped, bool kScaled>
inline void superblocks(const FewRows& rows, F (*sums)[kQuads], int32x4_t (*dots)[kQuads]) {
  constexpr int32_t kSome = kQuads / T;
  const int32_t fives = rows.w->column_blocks / kBlocksPerFive;
  for (int32_t s = 0; s < fives; ++s) {
    const uint8_t* codes = rows.codes + int64_t{s} * kBytesPerFive;
    ask_for(codes, kBytesPerFive, rows.w->prefetch);
    for (int32_t quad = 0; quad < kQuads; quad += kSome) {
      int32x4_t part[T][kSome][5];
      five_trit_dots<T, kSome>(codes + 16 * quad, rows.q + int64_t{s} * kBlocksPerFive * kColumnsPerBlock,
                               rows.q_stride, part);
      for (int32_t t = 0; t < T; ++t)
        for (int32_t i = 0; i < kSome; ++i)
          for (int32_t p = 0; p < 5; ++p) {
            const int32_t c = s * kBlocksPerFive + p;
            if constexpr (kGrouped) {
              sums[t][quad + i] = add_group<kScaled>(rows, c / rows.w->group_blocks, quad + i, part[t][i][p],
                                                     total_of(rows, t, c, c + 1), sums[t][quad + i]);
            } else {
              dots[t][quad + i] = vaddq_s32(dots[t][quad + i], part[t][i][p]);
            }
          }
    }
  }
}

template <int32_t T, int32_t kBlocks, bool kGrouped, bool kScaled>
inline void few_blocks(const TernaryMatrix* w, int32_t block, int32_t, const int8_t* q, const int32_t* block_sums,
                       const int32_t* totals, float* out) {
  static_assert(kBlocks == 1);
  const int64_t q_stride = int64_t{w->column_blocks} * kColumnsPerBlock;
  const int32_t groups = kGrouped ? (w->column_blocks + w->group_blocks - 1) / w->group_blocks : 0;
  const bool fives = w->layout == TernaryLayout::kFiveTrits;
  const int32_t first = fives ? w->column_blocks / kBlocksPerFive * kBlocksPerFive : 0;  // of the blocks in two bits
  const FewRows rows = {w,
                        w->codes + block * row_block_bytes(w->layout, w->column_blocks),
                        kGrouped ? w->group_scales + int64_t{block} * groups * kRowsPerBlock : nullptr,
                        q,
                        q_stride,
                        block_sums};
  const uint8_t* two_bits = rows.codes + int64_t{first / kBlocksPerFive} * kBytesPerFive;
  F sums[T][kQuads];
  int32x4_t dots[T][kQuads];
  for (int32_t t = 0; t < T; ++t)
    for (int32_t quad = 0; quad < kQuads; ++quad) sums[t][quad] = V::zero(), dots[t][quad] = vdupq_n_s32(0);
  if constexpr (T <= kFewDenseTokens)
    if (fives) superblocks<T, kGrouped, kScaled>(rows, sums, dots);
  if constexpr (kGrouped) {
    grouped_two_bits<T, kScaled>(rows, two_bits, first, w->column_blocks, fives, sums);
  } else {
    best_two_bit_dots<T>(two_bits, q + int64_t{first} * kColumnsPerBlock, q_stride, w->column_blocks - first,
                         w->prefetch, dots);
    for (int32_t t = 0; t < T; ++t)
      for (int32_t quad = 0; quad < kQuads; ++quad)
        sums[t][quad] = vcvtq_f32_s32(vsubq_s32(dots[t][quad], vdupq_n_s32(totals[t])));
  }
  for (int32_t t = 0; t < T; ++t)
    for (int32_t quad = 0; quad < kQuads; ++quad) V::store(out + t * kRowsPerBlock + 4 * quad, sums[t][quad]);
}

}  // namespace
}  // namespace wf
