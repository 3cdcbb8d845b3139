// AVX2: vpmaddubsw multiplies 32 unsigned by 32 signed bytes and adds pairs to int16.
//
// No overflow: a code is at most 2 and |activation| at most 127, so one result is at most 2 * 2 * 127 = 508 in
// magnitude, and 64 results added to one int16 give at most 32,512 < 32,768. A sum gets a result for every 4 columns,
// so 64 results are 256 columns, 4 column blocks. Of codes times 4 a sum gets 8 results a column block, each at most
// 2,032: 16 of them, 2 column blocks, are again 32,512.
#include "kernels/avx2-inl.h"

namespace wf {
namespace {

struct Dot {
  static constexpr int32_t kMostBlocks[3] = {4, 2, 0};
  static constexpr int32_t few_sums(int32_t tokens, int32_t, int32_t group_blocks) {
    return tokens <= (group_blocks == 1 ? 2 : 3) ? 2 : 1;
  }

  WF_ALWAYS_INLINE static void add(__m256i& sum, __m256i codes, __m256i values) {
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, values));
    in_order(sum);
  }
  template <int32_t kShift>
  WF_ALWAYS_INLINE static __m256i whole(__m256i sum) {
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1 << kShift));
  }
};

// The sums of a superblock of 1.6 bits, one for each of its five column blocks: 16 results each.
template <int32_t T>
struct Fives {
  __m256i sums[T][5];

  Fives() {
    for (int32_t t = 0; t < T; ++t)
      for (int32_t p = 0; p < 5; ++p) sums[t][p] = _mm256_setzero_si256();
  }
  WF_ALWAYS_INLINE void add(__m256i fractions, const int8_t* q, int64_t q_stride);
  WF_ALWAYS_INLINE __m256i block(int32_t t, int32_t p) const { return Dot::whole<0>(sums[t][p]); }
  WF_ALWAYS_INLINE __m256i total(int32_t t) const {  // four times 16 results, and 16
    const __m256i a = _mm256_add_epi16(sums[t][0], sums[t][1]), b = _mm256_add_epi16(sums[t][2], sums[t][3]);
    return _mm256_add_epi32(Dot::whole<0>(_mm256_add_epi16(a, b)), Dot::whole<0>(sums[t][4]));
  }
};

constexpr int32_t kPanelRows = 16;       // two registers of 8 rows
constexpr int32_t kTileTokens = 4;       // 2 x 4 sums, 2 codes, 1 broadcast and products in flight of 16 registers
constexpr int32_t kSegmentBlocks = 4;    // 256 columns: 64 results, the most an int16 can hold
constexpr int32_t kFewBlocks = 2;        // two streams of codes ...
constexpr int32_t kFewBlocksTokens = 1;  // ... for one token; the sums of more would not stay in registers
constexpr int32_t kFewTokens = 5;
constexpr int32_t kFewGroupedTokens = 5;
constexpr int32_t kFewDenseTokens = 2;
constexpr int32_t kFewDenseGroupedTokens = 2;

}  // namespace
}  // namespace wf

#include "kernels/avx2_ternary-inl.h"

namespace wf {
namespace {

template <int32_t T>
WF_ALWAYS_INLINE void Fives<T>::add(__m256i fractions, const int8_t* q, int64_t q_stride) {
  __m256i left = lowered(fractions);
  times<5>([&](int32_t p) WF_INLINE_BODY {
    const __m256i codes = code_of(left);
    times<T>([&](int32_t t) WF_INLINE_BODY {
      Dot::add(sums[t][p], codes, four_columns(q + t * q_stride + p * kColumnsPerBlock));
    });
    left = times_three(left);
  });
}

// 12 independent chains of vpmaddubsw alone, which takes 5 cycles. Named one by one: an array would live in memory.
int64_t burn_int8(int64_t rounds) {
  const __m256i values = _mm256_set1_epi8(3);
  __m256i a = _mm256_set1_epi8(1), b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;
  const auto step = [&](__m256i& words) {
    words = _mm256_maddubs_epi16(words, values);
    in_order(words);
  };
  for (int64_t n = 0; n < rounds; ++n) {
    step(a), step(b), step(c), step(d), step(e), step(f), step(g), step(h), step(i), step(j), step(k), step(l);
  }
  __asm__ volatile("" : : "x"(a), "x"(b), "x"(c), "x"(d), "x"(e), "x"(f));
  __asm__ volatile("" : : "x"(g), "x"(h), "x"(i), "x"(j), "x"(k), "x"(l));
  return rounds * 12 * 32;
}

// A product with 15-bit activations: the bytes of even and of odd columns as int16, each with a pair of int16
// activations, by vpmaddwd.
struct Wide {
  __m256i sum;

  Wide() = default;
  WF_ALWAYS_INLINE explicit Wide(__m256i start) : sum(start) {}
  struct Codes {
    __m256i even, odd;
    WF_ALWAYS_INLINE explicit Codes(const uint8_t* p) {
      const __m256i bytes = load_codes(p);
      even = _mm256_and_si256(bytes, _mm256_set1_epi16(255));
      odd = _mm256_srli_epi16(bytes, 8);
    }
  };
  WF_ALWAYS_INLINE void add(const Codes& codes, __m256i first, __m256i second) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes.even, first));
    in_order(sum);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes.odd, second));
    in_order(sum);
  }
  WF_ALWAYS_INLINE __m256i whole() const { return sum; }

  // x16 = 128 high + low of the even columns, and of the odd ones, for 32 columns.
  static constexpr bool kPrepares = true;
  static void prepare(const int8_t* high, const int8_t* low, int8_t* even, int8_t* odd) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high));
    const __m256i l = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low));
    const __m256i even_high = _mm256_srai_epi16(_mm256_slli_epi16(h, 8), 1);
    const __m256i odd_high = _mm256_srai_epi16(_mm256_and_si256(h, _mm256_set1_epi16(-256)), 1);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(even),
                        _mm256_add_epi16(even_high, _mm256_srai_epi16(_mm256_slli_epi16(l, 8), 8)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(odd), _mm256_add_epi16(odd_high, _mm256_srai_epi16(l, 8)));
  }
};
constexpr int32_t kTableTokens = 4;  // 2 x 4 sums, 4 codes, 2 broadcasts and products in flight of 16 registers

}  // namespace
}  // namespace wf

#include "kernels/ternary_panel-inl.h"
#include "kernels/avx2_table-inl.h"

#include "kernels/table-inl.h"

namespace wf {

const Kernels kAvx2Kernels = table_named("avx2");

}  // namespace wf
