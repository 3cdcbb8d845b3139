// AVX-VNNI: vpdpbusd with 256-bit registers multiplies 32 unsigned by 32 signed bytes and adds groups of four to 8
// int32 sums, so nothing overflows (|sum| <= 4 * 2 * 127 * columns < 2^31 for up to 2 million columns) and nothing
// needs flushing but for scales.
#include "kernels/avx2-inl.h"

namespace wf {
namespace {

struct Dot {
  static constexpr int32_t kMostBlocks[3] = {8, 8, 8};
  // vpdpbusd takes 4 or 5 cycles, so one token needs several chains to keep the units busy.
  static constexpr int32_t few_sums(int32_t tokens, int32_t row_blocks, int32_t group_blocks) {
    if (row_blocks == 2) return 2;
    if (group_blocks == 1) return tokens == 1 ? 4 : tokens <= 3 ? 2 : 1;
    return tokens <= 3 ? 4 : 2;
  }

  WF_ALWAYS_INLINE static void add(__m256i& sum, __m256i codes, __m256i values) {
    sum = _mm256_dpbusd_avx_epi32(sum, codes, values);
  }
  template <int32_t kShift>
  WF_ALWAYS_INLINE static __m256i whole(__m256i sum) {
    return kShift ? _mm256_slli_epi32(sum, kShift) : sum;
  }
};

// The sums of a superblock of 1.6 bits without extracting a code: with the fractions v_0, v_1 = 3 v_0 mod 256, ... the
// codes are c_p = (3 v_p - v_(p+1)) / 256, so 256 sum c_p q_p = 3 sum v_p q_p - sum v_(p+1) q_p, the sums `here` and
// `next`. A superblock keeps all of them below 256 * 127 * 320 < 2^31.
template <int32_t T>
struct Fives {
  __m256i here[T][5], next[T][5];

  Fives() {
    for (int32_t t = 0; t < T; ++t)
      for (int32_t p = 0; p < 5; ++p) here[t][p] = next[t][p] = _mm256_setzero_si256();
  }
  WF_ALWAYS_INLINE void add(__m256i fractions, const int8_t* q, int64_t q_stride);
  WF_ALWAYS_INLINE static __m256i codes_dot(__m256i a, __m256i b) {
    return _mm256_srai_epi32(_mm256_sub_epi32(_mm256_add_epi32(_mm256_add_epi32(a, a), a), b), 8);
  }
  WF_ALWAYS_INLINE __m256i block(int32_t t, int32_t p) const { return codes_dot(here[t][p], next[t][p]); }
  WF_ALWAYS_INLINE __m256i total(int32_t t) const {
    __m256i a = here[t][0], b = next[t][0];
    for (int32_t p = 1; p < 5; ++p) a = _mm256_add_epi32(a, here[t][p]), b = _mm256_add_epi32(b, next[t][p]);
    return codes_dot(a, b);
  }
};

constexpr int32_t kPanelRows = 16;       // two registers of 8 rows
constexpr int32_t kTileTokens = 6;       // 2 x 6 sums, 2 codes and a broadcast of 16 registers
constexpr int32_t kSegmentBlocks = 8;    // a whole panel
constexpr int32_t kFewBlocks = 2;        // two streams of codes ...
constexpr int32_t kFewBlocksTokens = 1;  // ... for one token; the sums of more would not stay in registers
constexpr int32_t kFewTokens = 5;
constexpr int32_t kFewGroupedTokens = 6;
constexpr int32_t kFewDenseTokens = 1;
constexpr int32_t kFewDenseGroupedTokens = 1;

}  // namespace
}  // namespace wf

#include "kernels/avx2_ternary-inl.h"

namespace wf {
namespace {

template <int32_t T>
WF_ALWAYS_INLINE void Fives<T>::add(__m256i fractions, const int8_t* q, int64_t q_stride) {
  times<5>([&](int32_t p) WF_INLINE_BODY {
    const __m256i later = times_three(fractions);
    times<T>([&](int32_t t) WF_INLINE_BODY {
      const __m256i four = four_columns(q + t * q_stride + p * kColumnsPerBlock);
      Dot::add(here[t][p], fractions, four);
      Dot::add(next[t][p], later, four);
    });
    fractions = later;
  });
}

// 12 independent chains hide the latency. Named one by one: an array of them would live in memory.
int64_t burn_int8(int64_t rounds) {
  __m256i codes = _mm256_set1_epi8(2), values = _mm256_set1_epi8(3);
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;
  const auto step = [&](__m256i& sum) { Dot::add(sum, codes, values), in_order(sum); };
  for (int64_t n = 0; n < rounds; ++n) {
    step(a), step(b), step(c), step(d), step(e), step(f), step(g), step(h), step(i), step(j), step(k), step(l);
  }
  __asm__ volatile("" : : "x"(a), "x"(b), "x"(c), "x"(d), "x"(e), "x"(f));
  __asm__ volatile("" : : "x"(g), "x"(h), "x"(i), "x"(j), "x"(k), "x"(l));
  return rounds * 12 * 32;
}

// A product with 15-bit activations: their high and low bytes apart.
struct Wide {
  __m256i high, low;

  Wide() = default;
  WF_ALWAYS_INLINE explicit Wide(__m256i start) : high(_mm256_setzero_si256()), low(start) {}
  struct Codes {
    __m256i bytes;
    WF_ALWAYS_INLINE explicit Codes(const uint8_t* p) : bytes(load_codes(p)) {}
  };
  WF_ALWAYS_INLINE void add(const Codes& codes, __m256i first, __m256i second) {
    Dot::add(high, codes.bytes, first);
    Dot::add(low, codes.bytes, second);
  }
  WF_ALWAYS_INLINE __m256i whole() const { return _mm256_add_epi32(_mm256_slli_epi32(high, 7), low); }

  static constexpr bool kPrepares = false;  // the activations are used as they are
  static void prepare(const int8_t*, const int8_t*, int8_t*, int8_t*) {}
};
constexpr int32_t kTableTokens = 3;  // 2 x 2 x 3 sums, 2 codes, 2 broadcasts of 16 registers

}  // namespace
}  // namespace wf

#include "kernels/ternary_panel-inl.h"
#include "kernels/avx2_table-inl.h"

#include "kernels/table-inl.h"

namespace wf {

const Kernels kAvxVnniKernels = table_named("avxvnni");

}  // namespace wf
