// The ternary product for a few tokens, as far as it is the same on every instruction set: the codes are unpacked in
// registers and used at once, because there the memory that delivers them is the limit.
//
// Each kernel file defines before it includes this one:
//   kFewTokens and kFewGroupedTokens (the most tokens that take this way without and with group scales),
//   kFewDenseTokens and kFewDenseGroupedTokens (the same for codes of 1.6 bits),
//   kFewBlocks (row blocks that few_blocks takes at once) for up to kFewBlocksTokens tokens, one for more,
//   few_blocks<T, kBlocks, kGrouped, kScaled>(w, block, apart, q, block_sums, totals, out): the sums of the row blocks
//   block, block + apart, ... (kBlocks of them) for T tokens, out [T][kBlocks * 16]: with kGrouped the float32 sums of
//   the groups, each times its scale when kScaled, else the exact dot products as float32. totals [T] holds the sum of
//   each token's activations.
#pragma once
#include "kernels/kernels.h"

namespace wf {
namespace {

enum class Output { kScaled, kDots };

// What a product writes to, and the scales it applies last.
struct ProductOutput {
  void* y;
  int64_t stride;
  const float* token_scales;

  template <Output kOutput>
  ProductOutput from_token(int32_t token) const {
    void* later = kOutput == Output::kDots ? static_cast<void*>(static_cast<int32_t*>(y) + token * stride)
                                           : static_cast<void*>(static_cast<float*>(y) + token * stride);
    return {later, stride, token_scales ? token_scales + token : nullptr};
  }
};

// Rows [row, row + rows) of one token from sums in row order. The order of the two multiplications is the reference's.
template <Output kOutput>
inline void write_rows(const TernaryMatrix* w, const ProductOutput& out, int32_t token, int32_t row, int32_t rows,
                       const float* sums) {
  if constexpr (kOutput == Output::kDots) {
    int32_t* dots = static_cast<int32_t*>(out.y) + token * out.stride + row;
    for (int32_t i = 0; i < rows; ++i) dots[i] = static_cast<int32_t>(sums[i]);
  } else {
    float* y = static_cast<float*>(out.y) + token * out.stride + row;
    const F scale = V::set1(out.token_scales[token]);
    for (int32_t i = 0; i < rows; i += kLanes) {
      F value = V::load(sums + i);
      if (w->row_scales) value = V::mul(value, V::load(w->row_scales + row + i));
      store_some(y + i, V::mul(value, scale), rows - i);
    }
  }
}

// Asks for the first codes of a stream; the kernel asks for those behind.
inline void start_stream(const TernaryMatrix* w, int32_t block) {
  const uint8_t* codes = w->codes + block * row_block_bytes(w->layout, w->column_blocks);
  for (int32_t i = 0; i < w->prefetch; i += 64) __builtin_prefetch(codes + i, 0, 3);
}

// With kBlocks > 1 the rows are as many ranges, each one ascending stream of codes.
template <Output kOutput, int32_t T, int32_t kBlocks, bool kGrouped>
inline void few_rows(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, const int32_t* totals,
                     int32_t begin, int32_t end, const ProductOutput& out) {
  const int32_t apart = (end - begin) / kBlocks;
  for (int32_t b = 0; b < kBlocks; ++b) start_stream(w, begin + b * apart);
  for (int32_t block = begin; block < begin + apart; ++block) {
    alignas(64) float sums[T * kBlocks * kRowsPerBlock];
    few_blocks<T, kBlocks, kGrouped, kOutput == Output::kScaled>(w, block, apart, q, block_sums, totals, sums);
    for (int32_t b = 0; b < kBlocks; ++b) {
      const int32_t row = (block + b * apart) * kRowsPerBlock, rows = min_of(kRowsPerBlock, w->rows - row);
      for (int32_t t = 0; t < T; ++t)
        write_rows<kOutput>(w, out, t, row, rows, sums + (t * kBlocks + b) * kRowsPerBlock);
    }
  }
  if constexpr (kBlocks > 1) {
    const int32_t done = begin + apart * kBlocks;
    if (done < end) few_rows<kOutput, T, 1, kGrouped>(w, q, block_sums, totals, done, end, out);
  }
}

// All tokens at once for T = 1 .. kMost.
template <Output kOutput, bool kGrouped, int32_t T>
inline void few_tokens(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, int32_t tokens,
                       int32_t begin, int32_t end, const ProductOutput& out) {
  if constexpr (T > 1) {
    if (tokens < T) return few_tokens<kOutput, kGrouped, T - 1>(w, q, block_sums, tokens, begin, end, out);
  }
  int32_t totals[T] = {};
  if constexpr (!kGrouped)
    for (int32_t t = 0; t < T; ++t)
      for (int32_t c = 0; c < w->column_blocks; ++c) totals[t] += block_sums[t * w->column_blocks + c];
  few_rows<kOutput, T, T <= kFewBlocksTokens ? kFewBlocks : 1, kGrouped>(w, q, block_sums, totals, begin, end, out);
}

inline int32_t most_few_tokens(const TernaryMatrix* w) {
  if (w->layout == TernaryLayout::kFiveTrits) return w->group_blocks ? kFewDenseGroupedTokens : kFewDenseTokens;
  return w->group_blocks ? kFewGroupedTokens : kFewTokens;
}

template <Output kOutput>
inline void few_product(const TernaryMatrix* w, const int8_t* q, const int32_t* block_sums, int32_t tokens,
                        int32_t begin, int32_t end, const ProductOutput& out) {
  if (w->group_blocks) {
    few_tokens<kOutput, true, kFewGroupedTokens>(w, q, block_sums, tokens, begin, end, out);
  } else {
    few_tokens<kOutput, false, kFewTokens>(w, q, block_sums, tokens, begin, end, out);
  }
}

}  // namespace
}  // namespace wf
