// Ternary weights times int8 activations by table look-up, beside the kernels of this engine, which multiply. One
// token, one scale a row, exact sums. See README.md here; results are in docs/log.md.
//
// pairs (as TL1 of bitnet.cpp, arXiv 2502.11880): two weights are an index below 9 in 4 bits, two indices a byte, 2
// bits
//   a weight. The sum of two activations, plus 254, is a number below 512: tables of 16 bytes give its low five bits
//   and its high four, so that 8 and 16 results can be added as bytes before they must be widened.
// triples: three weights are an index below 27 in 5 bits, three indices a 16-bit word, 1.78 bits a weight. vpermw picks
//   from a table of 32 int16, one register, and heeds only the low five bits of an index, so nothing is ever masked.
// bytes: three weights are 5 bits again, three indices in two bytes of 128, the third of what the others leave. vpermb
//   (AVX-512 VBMI) picks the low five and the high five bits of the sum plus 381 from 32 bytes, kept twice; it heeds
//   only six bits, so the first two indices are used as they are. Six results can be added before they must be widened.
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace {

#define WF_TARGET_VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")))
#define WF_TARGET_512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

constexpr int kRows = 64;             // of a block of codes
constexpr int kPairChunk = 32;        // columns; a step is 4 columns in 64 bytes, byte r is row r
constexpr int kPairChunksMost = 128;  // 16 results of at most 31 a chunk: 128 * 496 = 63,488 < 65,536
constexpr int kTripleStep = 9;        // columns in 128 bytes, word r is row r
constexpr int kTripleStepsMost = 28;  // 3 results of at most 381 a step: 28 * 1143 = 32,004 < 32,768
constexpr int kByteChunk = 18;        // columns; a step is 9 columns in two times 64 bytes, byte r is row r
constexpr int kByteChunksMost = 256;  // 6 results of at most 31 a chunk: 256 * 186 = 47,616 < 65,536
constexpr int kPrefetch = 2048;

struct Product {
  const uint8_t* codes;  // [blocks of 64 rows][steps]
  int rows, columns;     // columns: as given; the codes are padded with zeros to whole chunks or steps
  const float* row_scales;
  const void* tables;
  float scale;
  float* y;

  void write(int row, const int32_t* sums) const {
    for (int i = 0; i < std::min(kRows, rows - row); ++i)
      y[row + i] = static_cast<float>(sums[i]) * row_scales[row + i] * scale;
  }
};

int up(int n, int step) { return (n + step - 1) / step; }

// ------------------------------------------------------------------------------------------------- tables

int digit(int index, int place) { return index / place % 3 - 1; }

// [pair]{16 bytes: low five bits, 16 bytes: high four}, q of `columns`, zeros behind. With u = q + 128 vpmaddubsw gives
// d0 u0 + d1 u1 = d0 q0 + d1 q1 + 128 (d0 + d1).
void make_pairs(const int8_t* q, int columns, uint8_t* tables) {
  alignas(32) int8_t digits[32] = {};
  alignas(32) int16_t offsets[16] = {};
  for (int i = 0; i < 9; ++i) {
    digits[2 * i] = digit(i, 3), digits[2 * i + 1] = digit(i, 1);
    offsets[i] = 254 - 128 * (digits[2 * i] + digits[2 * i + 1]);
  }
  const __m256i d = *reinterpret_cast<__m256i*>(digits), offset = *reinterpret_cast<__m256i*>(offsets);
  for (int c = 0; c < columns; c += 2) {
    int16_t two;
    memcpy(&two, q + c, 2);
    const __m256i u = _mm256_set1_epi16(static_cast<int16_t>(two ^ 0x8080));
    const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(u, d), offset);
    const __m256i low = _mm256_and_si256(sums, _mm256_set1_epi16(31)), high = _mm256_srli_epi16(sums, 5);
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xD8);
    _mm256_store_si256(reinterpret_cast<__m256i*>(tables + 16 * c), both);
  }
}

// [triple][32] int16. The fourth byte, 128 times minus the digits' sum, takes the offset away.
// With kBytes: [triple]{32 bytes: low five bits, 32 bytes: high five} of the sum plus 381.
template <bool kBytes>
WF_TARGET_512 void make_triples(const int8_t* q, int columns, int16_t* tables) {
  alignas(64) int8_t first[64] = {}, second[64] = {};
  for (int i = 0; i < 27; ++i) {
    first[2 * i] = digit(i, 9), first[2 * i + 1] = digit(i, 3), second[2 * i] = digit(i, 1);
    second[2 * i + 1] = -(digit(i, 9) + digit(i, 3) + digit(i, 1));
  }
  const __m512i d01 = _mm512_load_si512(first), d2 = _mm512_load_si512(second);
  for (int c = 0; c < columns; c += 3, tables += 32) {
    uint32_t four;
    memcpy(&four, q + c, 4);
    four ^= 0x80808080u;
    const __m512i u01 = _mm512_set1_epi16(static_cast<int16_t>(four));
    const __m512i u2 = _mm512_set1_epi16(static_cast<int16_t>((four >> 16 & 0xFF) | 0x8000));
    const __m512i sums = _mm512_add_epi16(_mm512_maddubs_epi16(u01, d01), _mm512_maddubs_epi16(u2, d2));
    if constexpr (!kBytes) {
      _mm512_store_si512(tables, sums);
    } else {
      const __m512i more = _mm512_add_epi16(sums, _mm512_set1_epi16(381));
      __m256i* out = reinterpret_cast<__m256i*>(tables);
      _mm256_store_si256(out, _mm512_cvtepi16_epi8(_mm512_and_si512(more, _mm512_set1_epi16(31))));
      _mm256_store_si256(out + 1, _mm512_cvtepi16_epi8(_mm512_srli_epi16(more, 5)));
    }
  }
}

// ------------------------------------------------------------------------------------------------- products

// Words that hold, of two neighbouring rows, [0] low + 256 * odd row's low, [1] odd row's low, [2, 3] the same of high.
void add_words(const uint16_t (*words)[32], int offset, int32_t* sums) {
  for (int i = 0; i < 32; ++i) {
    const uint16_t low = words[0][i] - 256 * words[1][i], high = words[2][i] - 256 * words[3][i];
    sums[2 * i] += low + 32 * high - offset;
    sums[2 * i + 1] += words[1][i] + 32 * words[3][i] - offset;
  }
}

void pairs_avx2(const Product& p) {
  const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  const int chunks = up(p.columns, kPairChunk);
  const uint8_t* codes = p.codes;
  const auto table = [](const uint8_t* from) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
  };
  for (int row = 0; row < p.rows; row += kRows) {
    const uint8_t* tables = static_cast<const uint8_t*>(p.tables);
    int32_t sums[kRows] = {};
    for (int first = 0; first < chunks; first += kPairChunksMost) {
      const int count = std::min(chunks - first, kPairChunksMost);
      __m256i words[4][2] = {{zero, zero}, {zero, zero}, {zero, zero}, {zero, zero}};
      const auto widen = [&](int which, int half, __m256i bytes) {
        words[which][half] = _mm256_add_epi16(words[which][half], bytes);
        words[which + 1][half] = _mm256_add_epi16(words[which + 1][half], _mm256_srli_epi16(bytes, 8));
      };
      for (int c = 0; c < count; ++c) {
        __m256i high[2] = {zero, zero};
        for (int part = 0; part < 2; ++part) {
          __m256i low[2] = {zero, zero};
#pragma GCC unroll 4
          for (int s = 0; s < 4; ++s, codes += 64, tables += 64) {
            _mm_prefetch(codes + kPrefetch, _MM_HINT_T0);
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
              const __m256i byte = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * h));
              const __m256i a = _mm256_and_si256(byte, nibble);
              const __m256i b = _mm256_and_si256(_mm256_srli_epi16(byte, 4), nibble);
              low[h] = _mm256_add_epi8(low[h], _mm256_shuffle_epi8(table(tables), a));
              high[h] = _mm256_add_epi8(high[h], _mm256_shuffle_epi8(table(tables + 16), a));
              low[h] = _mm256_add_epi8(low[h], _mm256_shuffle_epi8(table(tables + 32), b));
              high[h] = _mm256_add_epi8(high[h], _mm256_shuffle_epi8(table(tables + 48), b));
            }
          }
          widen(0, 0, low[0]), widen(0, 1, low[1]);
        }
        widen(2, 0, high[0]), widen(2, 1, high[1]);
      }
      alignas(64) uint16_t out[4][32];
      memcpy(out, words, sizeof out);
      add_words(out, 254 * 16 * count, sums);
    }
    p.write(row, sums);
  }
}

WF_TARGET_512 void pairs_avx512(const Product& p) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const int chunks = up(p.columns, kPairChunk);
  const uint8_t* codes = p.codes;
  for (int row = 0; row < p.rows; row += kRows) {
    const uint8_t* tables = static_cast<const uint8_t*>(p.tables);
    int32_t sums[kRows] = {};
    for (int first = 0; first < chunks; first += kPairChunksMost) {
      const int count = std::min(chunks - first, kPairChunksMost);
      __m512i low_all = _mm512_setzero_si512(), low_odd = low_all, high_all = low_all, high_odd = low_all;
      for (int c = 0; c < count; ++c) {
        __m512i high = _mm512_setzero_si512();
        for (int part = 0; part < 2; ++part) {
          __m512i low = _mm512_setzero_si512();
#pragma GCC unroll 4
          for (int s = 0; s < 4; ++s, codes += 64, tables += 64) {
            _mm_prefetch(codes + kPrefetch, _MM_HINT_T0);
            const __m128i* t = reinterpret_cast<const __m128i*>(tables);
            const __m512i byte = _mm512_loadu_si512(codes), a = _mm512_and_si512(byte, nibble);
            const __m512i b = _mm512_and_si512(_mm512_srli_epi16(byte, 4), nibble);
            low = _mm512_add_epi8(low, _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t[0]), a));
            high = _mm512_add_epi8(high, _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t[1]), a));
            low = _mm512_add_epi8(low, _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t[2]), b));
            high = _mm512_add_epi8(high, _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t[3]), b));
          }
          low_all = _mm512_add_epi16(low_all, low);
          low_odd = _mm512_add_epi16(low_odd, _mm512_srli_epi16(low, 8));
        }
        high_all = _mm512_add_epi16(high_all, high);
        high_odd = _mm512_add_epi16(high_odd, _mm512_srli_epi16(high, 8));
      }
      alignas(64) uint16_t out[4][32];
      _mm512_store_si512(out[0], low_all), _mm512_store_si512(out[1], low_odd);
      _mm512_store_si512(out[2], high_all), _mm512_store_si512(out[3], high_odd);
      add_words(out, 254 * 16 * count, sums);
    }
    p.write(row, sums);
  }
}

// kBlocks blocks of 64 rows side by side share every table they load.
template <int kBlocks>
WF_TARGET_512 inline void triples_blocks(const Product& p, int row) {
  constexpr int kRegisters = 2 * kBlocks;
  const int steps = up(p.columns, kTripleStep);
  const int64_t block_bytes = int64_t{128} * steps;
  const uint8_t* codes = p.codes + row / kRows * block_bytes;
  const int16_t* tables = static_cast<const int16_t*>(p.tables);
  __m512i even[kRegisters], odd[kRegisters];
  for (int r = 0; r < kRegisters; ++r) even[r] = odd[r] = _mm512_setzero_si512();
  for (int first = 0; first < steps; first += kTripleStepsMost) {
    __m512i sums[kRegisters];
    for (int r = 0; r < kRegisters; ++r) sums[r] = _mm512_setzero_si512();
    for (int s = std::min(steps - first, kTripleStepsMost); s; --s, codes += 128, tables += 96) {
      const __m512i t0 = _mm512_load_si512(tables), t1 = _mm512_load_si512(tables + 32);
      const __m512i t2 = _mm512_load_si512(tables + 64);
#pragma GCC unroll 4
      for (int r = 0; r < kRegisters; ++r) {
        const uint8_t* from = codes + r / 2 * block_bytes + 64 * (r % 2);
        _mm_prefetch(from + kPrefetch, _MM_HINT_T0);
        const __m512i word = _mm512_loadu_si512(from);
        sums[r] = _mm512_add_epi16(sums[r], _mm512_permutexvar_epi16(word, t0));
        sums[r] = _mm512_add_epi16(sums[r], _mm512_permutexvar_epi16(_mm512_srli_epi16(word, 5), t1));
        sums[r] = _mm512_add_epi16(sums[r], _mm512_permutexvar_epi16(_mm512_srli_epi16(word, 10), t2));
      }
    }
    for (int r = 0; r < kRegisters; ++r) {
      even[r] = _mm512_add_epi32(even[r], _mm512_srai_epi32(_mm512_slli_epi32(sums[r], 16), 16));
      odd[r] = _mm512_add_epi32(odd[r], _mm512_srai_epi32(sums[r], 16));
    }
  }
  for (int r = 0; r < kRegisters; ++r) {
    alignas(64) int32_t out[2][16], both[32];
    _mm512_store_si512(out[0], even[r]), _mm512_store_si512(out[1], odd[r]);
    for (int i = 0; i < 32; ++i) both[i] = out[i % 2][i / 2];
    const int begin = row + 32 * r;
    for (int i = 0; i < std::min(32, p.rows - begin); ++i)
      p.y[begin + i] = static_cast<float>(both[i]) * p.row_scales[begin + i] * p.scale;
  }
}

WF_TARGET_512 void triples(const Product& p) {
  int row = 0;
  for (; row + kRows < p.rows; row += 2 * kRows) triples_blocks<2>(p, row);
  if (row < p.rows) triples_blocks<1>(p, row);
}

template <int kBlocks>
WF_TARGET_VBMI inline void bytes_blocks(const Product& p, int row) {
  const int chunks = up(p.columns, kByteChunk);
  const int64_t block_bytes = int64_t{256} * chunks;
  const uint8_t* codes = p.codes + row / kRows * block_bytes;
  const __m256i* tables = static_cast<const __m256i*>(p.tables);
  const __m512i upper = _mm512_set1_epi8(0x18), zero = _mm512_setzero_si512();
  int32_t sums[kBlocks][kRows] = {};
  for (int first = 0; first < chunks; first += kByteChunksMost) {
    const int count = std::min(chunks - first, kByteChunksMost);
    __m512i words[kBlocks][4];
    for (int b = 0; b < kBlocks; ++b)
      for (int i = 0; i < 4; ++i) words[b][i] = zero;
    for (int c = 0; c < count; ++c) {
      __m512i low[kBlocks], high[kBlocks];
      for (int b = 0; b < kBlocks; ++b) low[b] = high[b] = zero;
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s, codes += 128, tables += 6) {
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) {
          const uint8_t* from = codes + b * block_bytes;
          _mm_prefetch(from + kPrefetch, _MM_HINT_T0);
          _mm_prefetch(from + kPrefetch + 64, _MM_HINT_T0);
          const __m512i one = _mm512_loadu_si512(from), two = _mm512_loadu_si512(from + 64);
          const __m512i three = _mm512_ternarylogic_epi32(upper, _mm512_srli_epi16(two, 3), _mm512_srli_epi16(one, 5),
                                                          0xCA);  // upper ? two : one
          const __m512i index[3] = {one, two, three};
#pragma GCC unroll 3
          for (int i = 0; i < 3; ++i) {
            const __m512i low_table = _mm512_broadcast_i64x4(tables[2 * i]);
            const __m512i high_table = _mm512_broadcast_i64x4(tables[2 * i + 1]);
            low[b] = _mm512_add_epi8(low[b], _mm512_permutexvar_epi8(index[i], low_table));
            high[b] = _mm512_add_epi8(high[b], _mm512_permutexvar_epi8(index[i], high_table));
          }
        }
      }
      for (int b = 0; b < kBlocks; ++b) {
        words[b][0] = _mm512_add_epi16(words[b][0], low[b]);
        words[b][1] = _mm512_add_epi16(words[b][1], _mm512_srli_epi16(low[b], 8));
        words[b][2] = _mm512_add_epi16(words[b][2], high[b]);
        words[b][3] = _mm512_add_epi16(words[b][3], _mm512_srli_epi16(high[b], 8));
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      alignas(64) uint16_t out[4][32];
      for (int i = 0; i < 4; ++i) _mm512_store_si512(out[i], words[b][i]);
      add_words(out, 381 * 6 * count, sums[b]);
    }
  }
  for (int b = 0; b < kBlocks; ++b) p.write(row + kRows * b, sums[b]);
}

WF_TARGET_VBMI void bytes(const Product& p) {
  int row = 0;
  for (; row + kRows < p.rows; row += 2 * kRows) bytes_blocks<2>(p, row);
  if (row < p.rows) bytes_blocks<1>(p, row);
}

// ------------------------------------------------------------------------------------------------- check and measure

// Codes of both kinds from ternary values [rows][columns]; what is missing is 0.
void pack(const std::vector<int8_t>& w, int rows, int columns, std::vector<uint8_t>* pairs, std::vector<uint8_t>* words,
          std::vector<uint8_t>* bytes) {
  const auto code = [&](int r, int c) { return r < rows && c < columns ? w[int64_t{r} * columns + c] + 1 : 1; };
  for (int row = 0; row < rows; row += kRows) {
    for (int c = 0; c < up(columns, kPairChunk) * kPairChunk; c += 4)
      for (int r = row; r < row + kRows; ++r)
        pairs->push_back(3 * code(r, c) + code(r, c + 1) + 16 * (3 * code(r, c + 2) + code(r, c + 3)));
    const auto triple = [&](int r, int c) { return 9 * code(r, c) + 3 * code(r, c + 1) + code(r, c + 2); };
    for (int c = 0; c < up(columns, kTripleStep) * kTripleStep; c += kTripleStep)
      for (int r = row; r < row + kRows; ++r) {
        const int word = triple(r, c) + 32 * triple(r, c + 3) + 1024 * triple(r, c + 6);
        words->push_back(word & 255), words->push_back(word >> 8);
      }
    for (int c = 0; c < up(columns, kByteChunk) * kByteChunk; c += 9) {
      for (int r = row; r < row + kRows; ++r) bytes->push_back(triple(r, c) + ((triple(r, c + 6) & 7) << 5));
      for (int r = row; r < row + kRows; ++r) bytes->push_back(triple(r, c + 3) + ((triple(r, c + 6) >> 3) << 6));
    }
  }
}

struct Activations {
  std::vector<int8_t> q;
  std::vector<int32_t> block_sums;
  uint8_t* pairs;
  int16_t *triples, *bytes;
};

void* pages(int64_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) abort();
  madvise(p, bytes, MADV_HUGEPAGE);
  return p;
}

Activations activations(int columns, std::mt19937& random, bool extreme) {
  Activations a{std::vector<int8_t>(columns + 64 + 64), std::vector<int32_t>(up(columns, 64)),
                static_cast<uint8_t*>(pages(16 * (columns + 64))), static_cast<int16_t*>(pages(22 * (columns + 64))),
                static_cast<int16_t*>(pages(22 * (columns + 64)))};
  for (int c = 0; c < columns; ++c) {
    a.q[c] = extreme ? 127 : static_cast<int>(random() % 255) - 127;
    a.block_sums[c / 64] += a.q[c];
  }
  make_pairs(a.q.data(), up(columns, kPairChunk) * kPairChunk, a.pairs);
  make_triples<false>(a.q.data(), up(columns, kTripleStep) * kTripleStep, a.triples);
  make_triples<true>(a.q.data(), up(columns, kByteChunk) * kByteChunk, a.bytes);
  return a;
}

bool check(int rows, int columns, std::mt19937& random, bool extreme) {
  std::vector<int8_t> w(int64_t{rows} * columns);
  for (auto& v : w) v = extreme ? 1 : static_cast<int>(random() % 3) - 1;
  if (extreme)
    for (int c = 0; c < columns; ++c) w[c] = -1;
  const Activations a = activations(columns, random, extreme);
  std::vector<uint8_t> pairs, words, thirds;
  pack(w, rows, columns, &pairs, &words, &thirds);
  const std::vector<float> scales(rows, 0.37f);
  for (int kind = 0; kind < 4; ++kind) {
    std::vector<float> y(rows);
    const uint8_t* codes = kind < 2 ? pairs.data() : kind == 2 ? words.data() : thirds.data();
    const void* tables = kind < 2 ? static_cast<const void*>(a.pairs) : kind == 2 ? a.triples : a.bytes;
    void (*const kernels[])(const Product&) = {pairs_avx2, pairs_avx512, triples, bytes};
    kernels[kind]({codes, rows, columns, scales.data(), tables, 0.01f, y.data()});
    for (int r = 0; r < rows; ++r) {
      int32_t sum = 0;
      for (int c = 0; c < columns; ++c) sum += w[int64_t{r} * columns + c] * a.q[c];
      if (y[r] != static_cast<float>(sum) * scales[r] * 0.01f)
        return printf("kind %d, %d x %d: row %d differs\n", kind, rows, columns, r), false;
    }
  }
  return true;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Kind {
  std::string name;
  int64_t bytes;                                  // of one matrix
  std::function<void(const uint8_t*)> run;        // the product with the codes there
  std::function<void()> prepare = [] {};          // the tables
  std::vector<double> hot{}, memory{}, tables{};  // seconds a product
};

double median(std::vector<double> x) { return std::sort(x.begin(), x.end()), x[x.size() / 2]; }

void measure(int rows, int columns, const uint8_t* arena, int64_t arena_bytes, std::mt19937& random) {
  Activations a = activations(columns, random, false);
  const std::vector<float> scales(up(rows, 64) * 64, 0.37f);
  std::vector<float> y(rows);
  const float scale = 0.01f;
  std::vector<Kind> kinds;
  const int column_blocks = up(columns, 64), row_blocks = up(rows, 16);
  for (const wf::Kernels* table : {&wf::kAvx2Kernels, &wf::kAvx512VnniKernels})
    for (const wf::TernaryLayout layout : {wf::TernaryLayout::kTwoBit, wf::TernaryLayout::kFiveTrits}) {
      const std::string name = std::string(table->name) + (layout == wf::TernaryLayout::kTwoBit ? " t2" : " t1.6");
      kinds.push_back(
          {name, row_blocks * wf::row_block_bytes(layout, column_blocks), [=, &a, &y, &scales](auto* codes) {
             const wf::TernaryMatrix w{codes,         nullptr, scales.data(), rows,     columns, row_blocks,
                                       column_blocks, 0,       layout,        kPrefetch};
             table->ternary_gemm(&w, a.q.data(), a.block_sums.data(), &scale, 1, 0, row_blocks, y.data(), rows);
           }});
    }
  const auto look_up = [&](const char* name, int64_t bytes, void (*run)(const Product&), const void* tables) {
    kinds.push_back({name, bytes, [=, &y, &scales](const uint8_t* codes) {
                       run({codes, rows, columns, scales.data(), tables, scale, y.data()});
                     }});
  };
  const int64_t pair_bytes = int64_t{up(rows, kRows)} * up(columns, kPairChunk) * 512;
  look_up("pairs, avx2", pair_bytes, pairs_avx2, a.pairs);
  look_up("pairs, avx512bw", pair_bytes, pairs_avx512, a.pairs);
  look_up("triples, avx512bw", int64_t{up(rows, kRows)} * up(columns, kTripleStep) * 128, triples, a.triples);
  look_up("bytes, avx512vbmi", int64_t{up(rows, kRows)} * up(columns, kByteChunk) * 256, bytes, a.bytes);
  const auto pairs = [&] { make_pairs(a.q.data(), up(columns, kPairChunk) * kPairChunk, a.pairs); };
  kinds[4].prepare = kinds[5].prepare = pairs;
  kinds[6].prepare = [&] { make_triples<false>(a.q.data(), up(columns, kTripleStep) * kTripleStep, a.triples); };
  kinds[7].prepare = [&] { make_triples<true>(a.q.data(), up(columns, kByteChunk) * kByteChunk, a.bytes); };
  for (int repeat = -1; repeat < 5; ++repeat)
    for (Kind& kind : kinds) {
      const auto timed = [&](std::vector<double>* to, int count, auto&& body) {
        const double start = now();
        for (int i = 0; i < count; ++i) body(i);
        if (repeat >= 0) to->push_back((now() - start) / count);
      };
      const int hot = 400'000'000 / (rows * columns) + 1;
      kind.run(arena);
      timed(&kind.hot, hot, [&](int) { kind.run(arena); });
      timed(&kind.tables, 200, [&](int) { kind.prepare(); });
      timed(&kind.memory, static_cast<int>(arena_bytes / kind.bytes), [&](int i) { kind.run(arena + i * kind.bytes); });
    }
  printf("\n%d x %d: G weights/s (GB/s of codes), tables ready; with making them\n", rows, columns);
  const double weights = static_cast<double>(rows) * columns / 1e9;
  for (const Kind& kind : kinds) {
    const double hot = median(kind.hot), memory = median(kind.memory), tables = median(kind.tables);
    printf("%-20s hot %6.1f (%5.1f), memory %6.1f (%5.1f); hot %6.1f, memory %6.1f; tables %5.2f us\n",
           kind.name.c_str(), weights / hot, kind.bytes / hot / 1e9, weights / memory, kind.bytes / memory / 1e9,
           weights / (hot + tables), weights / (memory + tables), tables * 1e6);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned seed = argc > 1 ? strtoul(argv[1], nullptr, 10) : std::random_device()();
  printf("seed %u\n", seed);
  std::mt19937 random(seed);
  for (const bool extreme : {false, true})
    for (const auto& [rows, columns] : {std::pair{64, 576}, {576, 1536}, {100, 70}, {1, 1}, {130, 2560}, {70, 9000}})
      if (!check(rows, columns, random, extreme)) return 1;
  printf("equal to a plain loop\n");
  // Speed does not depend on values and no byte is an error: all kinds read the same random bytes.
  const int64_t arena_bytes = int64_t{512} << 20, slack = 1 << 21;
  uint8_t* arena = static_cast<uint8_t*>(pages(arena_bytes + slack));
  for (int64_t i = 0; i < slack; ++i) arena[i] = random();
  for (int64_t at = slack; at < arena_bytes + slack; at += slack) memcpy(arena + at, arena, slack);
  for (const auto& [rows, columns] : {std::pair{576, 1536}, {2560, 2560}, {2560, 6912}})
    measure(rows, columns, arena, arena_bytes, random);
  return 0;
}
