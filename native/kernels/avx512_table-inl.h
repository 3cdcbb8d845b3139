// The product with quantised tables for a few tokens, on AVX-512 VNNI. Entries are unsigned bytes here, value plus
// kOffset, and meet the two halves of the activations: x16 = 128 * high + low.
#pragma once
#include "kernels/avx512-inl.h"

namespace wf {
namespace {

// T tokens against one block of 16 rows x 64 columns: 16 steps of 4 columns, `entries(step)` the 64 bytes of one.
template <int32_t T, int32_t kSteps, class Entries>
WF_ALWAYS_INLINE void add_entries(const WideActivations* x, int64_t first, int64_t stride, const Entries& entries,
                                  __m512i (*high)[2], __m512i (*low)[2]) {
#pragma GCC unroll 8
  for (int32_t k = 0; k < kSteps; ++k) {
    const __m512i values = entries(k);
    for (int32_t t = 0; t < T; ++t) {  // two chains a sum, for the latency of vpdpbusd
      const int64_t place = t * stride + first + 4 * k;
      high[t][k % 2] = _mm512_dpbusd_epi32(high[t][k % 2], values, four_columns(x->high + place));
      low[t][k % 2] = _mm512_dpbusd_epi32(low[t][k % 2], values, four_columns(x->low + place));
    }
  }
}

template <int32_t T>
WF_ALWAYS_INLINE void clear(__m512i (*sums)[2]) {
  for (int32_t t = 0; t < T; ++t) sums[t][0] = sums[t][1] = _mm512_setzero_si512();
}

// One scale a row: 128 * high + low + less (-128 * the sum of the activations) may exceed 32 bits. As float64 it is
// exact (below 2^53) and rounded once to float32, like the reference's 64-bit integer.
WF_ALWAYS_INLINE F whole_of(__m512i high, __m512i low, double less) {
  const __m512d offset = _mm512_set1_pd(less), factor = _mm512_set1_pd(128.0);
  const auto half = [&](__m256i h, __m256i l) {
    return _mm512_cvtpd_ps(
        _mm512_add_pd(_mm512_fmadd_pd(_mm512_cvtepi32_pd(h), factor, _mm512_cvtepi32_pd(l)), offset));
  };
  const __m256 first = half(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
  const __m256 second = half(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1));
  return _mm512_insertf32x8(_mm512_castps256_ps512(first), second, 1);
}

// One scale a group of 32 or 64 columns: |128 * high + low| <= 63 * 16256 * 64 < 2^31.
WF_ALWAYS_INLINE F group_of(__m512i high, __m512i low, int32_t offset, F scale, F sums) {
  const __m512i dots = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
  return V::fma(_mm512_cvtepi32_ps(_mm512_sub_epi32(dots, _mm512_set1_epi32(offset))), scale, sums);
}

WF_ALWAYS_INLINE __m512i both(const __m512i* sums) { return _mm512_add_epi32(sums[0], sums[1]); }

// Asks for the block kAhead times as far ahead as the matrix says.
template <int32_t kAhead>
WF_ALWAYS_INLINE void ask_for(const TableMatrix* w, const uint8_t* block) {
  for (int64_t i = 0; i < table_block_bytes(w->format); i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(block + i + kAhead * w->prefetch), _MM_HINT_T0);
}

// Step k of 4 columns of a block of 4-bit entries.
WF_ALWAYS_INLINE __m512i entries_q4(const uint8_t* codes, int32_t k) {
  const __m512i bytes = load_codes(codes + 64 * (k % 8));
  return _mm512_and_si512(k < 8 ? bytes : _mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
}

// The same of 6-bit entries. k is known to the compiler where loops are unrolled.
WF_ALWAYS_INLINE __m512i entries_q6(const uint8_t* codes, int32_t k) {
  const __m512i tops = load_codes(codes + 512 + 64 * (k % 4));
  const int32_t pair = k / 4;  // its bits 2 pair and 2 pair + 1 become bits 4 and 5
  const __m512i top = pair == 0   ? _mm512_slli_epi16(tops, 4)
                      : pair == 1 ? _mm512_slli_epi16(tops, 2)
                      : pair == 2 ? tops
                                  : _mm512_srli_epi16(tops, 2);
  // (top and 0x30) or the low four bits
  return _mm512_ternarylogic_epi32(top, _mm512_set1_epi8(0x30), entries_q4(codes, k), 0xEA);
}

// Some row blocks, each a stream of its own, and T tokens: the sums before the token scales go to out[b][t].
template <int32_t T, int32_t kBlocks>
struct TableFew {
  const TableMatrix* w;
  const WideActivations* x;
  int32_t blocks[kBlocks];

  int64_t stride() const { return int64_t{w->column_blocks} * kColumnsPerBlock; }
  const uint8_t* codes(int32_t b, int32_t c) const {
    return w->codes + (int64_t{blocks[b]} * w->column_blocks + c) * table_block_bytes(w->format);
  }
  WF_ALWAYS_INLINE F scales(int32_t b, int64_t groups, int64_t group) const {
    const uint16_t* here = w->group_scales + (blocks[b] * groups + group) * kRowsPerBlock;
    _mm_prefetch(reinterpret_cast<const char*>(here) + w->prefetch / 8, _MM_HINT_T0);
    return V::from_f16(here);
  }

  WF_ALWAYS_INLINE void q8(F (*out)[T]) const {
    __m512i high[kBlocks][T][2], low[kBlocks][T][2];
    for (int32_t b = 0; b < kBlocks; ++b) {
      clear<T>(high[b]);
      clear<T>(low[b]);
    }
    for (int32_t c = 0; c < w->column_blocks; ++c)
      for (int32_t b = 0; b < kBlocks; ++b) {
        const uint8_t* block = codes(b, c);
        ask_for<1>(w, block);
        add_entries<T, 16>(
            x, c * kColumnsPerBlock, stride(), [&](int32_t k) { return load_codes(block + 64 * k); }, high[b], low[b]);
      }
    for (int32_t t = 0; t < T; ++t) {
      int64_t total = 0;
      for (int32_t i = 0; i < 2 * w->column_blocks; ++i) total += x->half_sums[int64_t{t} * 2 * w->column_blocks + i];
      for (int32_t b = 0; b < kBlocks; ++b)
        out[b][t] = V::mul(whole_of(both(high[b][t]), both(low[b][t]), -128.0 * static_cast<double>(total)),
                           V::load(w->row_scales + blocks[b] * kRowsPerBlock));
    }
  }

  WF_ALWAYS_INLINE void q4(F (*out)[T]) const {
    for (int32_t c = 0; c < w->column_blocks; ++c)
      for (int32_t b = 0; b < kBlocks; ++b) {
        const uint8_t* block = codes(b, c);
        ask_for<1>(w, block);
#pragma GCC unroll 2
        for (int32_t half = 0; half < 2; ++half) {
          __m512i high[T][2], low[T][2];
          clear<T>(high);
          clear<T>(low);
          add_entries<T, 8>(
              x, c * kColumnsPerBlock + 32 * half, stride(), [&](int32_t k) { return entries_q4(block, 8 * half + k); },
              high, low);
          const F scale = scales(b, 2 * w->column_blocks, 2 * c + half);
          for (int32_t t = 0; t < T; ++t)
            out[b][t] = group_of(both(high[t]), both(low[t]),
                                 8 * x->half_sums[(int64_t{t} * w->column_blocks + c) * 2 + half], scale, out[b][t]);
        }
      }
  }

  WF_ALWAYS_INLINE void q6(F (*out)[T]) const {
    for (int32_t c = 0; c < w->column_blocks; ++c)
      for (int32_t b = 0; b < kBlocks; ++b) {
        const uint8_t* block = codes(b, c);
        ask_for<1>(w, block);
        __m512i high[T][2], low[T][2];
        clear<T>(high);
        clear<T>(low);
#pragma GCC unroll 4
        for (int32_t quarter = 0; quarter < 4; ++quarter)
          add_entries<T, 4>(
              x, c * kColumnsPerBlock + 16 * quarter, stride(),
              [&](int32_t k) { return entries_q6(block, 4 * quarter + k); }, high, low);
        const F scale = scales(b, w->column_blocks, c);
        for (int32_t t = 0; t < T; ++t) {
          const int32_t* halves = x->half_sums + (int64_t{t} * w->column_blocks + c) * 2;
          out[b][t] = group_of(both(high[t]), both(low[t]), 32 * (halves[0] + halves[1]), scale, out[b][t]);
        }
      }
  }
};

template <int32_t T, int32_t kBlocks>
inline void table_blocks(const TableFew<T, kBlocks>& few, float* y, int64_t y_stride) {
  F sums[kBlocks][T];
  for (int32_t b = 0; b < kBlocks; ++b)
    for (int32_t t = 0; t < T; ++t) sums[b][t] = V::zero();
  if (few.w->format == TableFormat::kQ8) {
    few.q8(sums);
  } else if (few.w->format == TableFormat::kQ6) {
    few.q6(sums);
  } else {
    few.q4(sums);
  }
  for (int32_t b = 0; b < kBlocks; ++b) {
    const int32_t row = few.blocks[b] * kRowsPerBlock;
    for (int32_t t = 0; t < T; ++t)
      store_some(y + t * y_stride + row, V::mul(sums[b][t], V::set1(few.x->scales[t])), few.w->rows - row);
  }
}

inline WideActivations from_token(const TableMatrix* w, const WideActivations* x, int32_t token) {
  const int64_t blocks = int64_t{token} * w->column_blocks;
  return {x->high + blocks * kColumnsPerBlock, x->low + blocks * kColumnsPerBlock, x->half_sums + blocks * 2,
          x->scales + token};
}

// One row block for all tokens, in sets of T; it stays in the cache from one set to the next.
template <int32_t T>
inline void table_tokens(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t block, float* y,
                         int64_t y_stride) {
  int32_t t = 0;
  for (; t + T <= tokens; t += T) {
    const WideActivations part = from_token(w, x, t);
    table_blocks<T, 1>({w, &part, {block}}, y + t * y_stride, y_stride);
  }
  if constexpr (T > 1) {
    if (t < tokens) {
      const WideActivations part = from_token(w, x, t);
      table_tokens<T - 1>(w, &part, tokens - t, block, y + t * y_stride, y_stride);
    }
  }
}

// Row blocks [begin, end). One token streams two ranges of them side by side.
template <int32_t T>
inline void table_rows(const TableMatrix* w, const WideActivations* x, int32_t tokens, int32_t begin, int32_t end,
                       float* y, int64_t y_stride) {
  const int32_t apart = tokens == 1 ? (end - begin) / 2 : 0;
  for (int32_t block = begin; block < begin + apart; ++block)
    table_blocks<1, 2>({w, x, {block, block + apart}}, y, y_stride);
  for (int32_t block = begin + 2 * apart; block < end; ++block) table_tokens<T>(w, x, tokens, block, y, y_stride);
}

}  // namespace
}  // namespace wf
