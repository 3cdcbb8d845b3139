// Every kernel table this machine can run against the reference.
//
// Integer products are exact, so equality is demanded of them on odd sizes, unaligned pointers and extreme values.
// Float results differ by the order of additions only; every tolerance is the textbook bound of that (a sum of n
// terms in float32 is off by at most n * 2^-24 * sum |term| to first order), doubled since both sides have it.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu_features.h"
#include "kernels/kernels.h"

namespace {

using wf::Kernels;
using wf::TernaryMatrix;

constexpr double kEpsilon = 1.0 / (1 << 24);  // half a unit in the last place of float32, relative
std::mt19937 random_bits(20250705);
int failures = 0;

void fail(const Kernels& kernels, const std::string& what) {
  if (++failures <= 20) printf("FAIL %s: %s\n", kernels.name, what.c_str());
}

int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }
float normal() { return std::normal_distribution<float>()(random_bits); }

// Memory that starts `offset` elements behind an aligned address and ends where the sanitizer's red zone begins.
template <class T>
struct Buffer {
  Buffer(size_t count, size_t offset) : memory(count + offset), start(memory.data() + offset) {}
  std::vector<T> memory;
  T* start;
};

struct Case {
  int rows, columns, tokens, group_size, offset;
  bool extreme;
  std::string text() const {
    return std::to_string(rows) + " x " + std::to_string(columns) + ", " + std::to_string(tokens) + " tokens, group " +
           std::to_string(group_size) + (extreme ? ", extreme" : "");
  }
};

struct Product {
  explicit Product(const Case& c)
      : row_blocks((c.rows + 3) / 4),
        column_blocks((c.columns + 63) / 64),
        groups(c.group_size ? (c.columns + c.group_size - 1) / c.group_size : 0),
        codes(static_cast<size_t>(row_blocks) * column_blocks * 64, c.offset),
        group_scales(static_cast<size_t>(row_blocks) * groups * 4, c.offset),
        row_scales(row_blocks * 4, c.offset),
        q(static_cast<size_t>(c.tokens) * column_blocks * 64, c.offset),
        block_sums(static_cast<size_t>(c.tokens) * column_blocks, c.offset),
        token_scales(c.tokens, c.offset) {
    for (size_t i = 0; i < static_cast<size_t>(row_blocks) * column_blocks * 64; ++i) {
      codes.start[i] = 0;
      for (int p = 0; p < 4; ++p) codes.start[i] |= static_cast<uint8_t>((c.extreme ? 2 : uniform(0, 2)) << (2 * p));
    }
    for (int i = 0; i < row_blocks * groups * 4; ++i)
      group_scales.start[i] = static_cast<uint16_t>(uniform(0x1000, 0x3C00));
    for (int i = 0; i < row_blocks * 4; ++i) row_scales.start[i] = 0.01f + fabsf(normal());
    for (int t = 0; t < c.tokens; ++t) fill_token(c, t);
    matrix = {codes.start,
              groups ? group_scales.start : nullptr,
              groups ? nullptr : row_scales.start,
              c.rows,
              c.columns,
              row_blocks,
              column_blocks,
              c.group_size / 64};
  }

  void fill_token(const Case& c, int t) {
    token_scales.start[t] = 0.001f + fabsf(normal());
    const int sign = uniform(0, 1) ? 127 : -127;
    for (int i = 0; i < column_blocks * 64; ++i) {
      int8_t& value = q.start[static_cast<size_t>(t) * column_blocks * 64 + i];
      value = i < c.columns ? static_cast<int8_t>(c.extreme ? sign : uniform(-127, 127)) : int8_t{0};
      block_sums.start[static_cast<size_t>(t) * column_blocks + i / 64] += value;
    }
  }

  int row_blocks, column_blocks, groups;
  Buffer<uint8_t> codes;
  Buffer<uint16_t> group_scales;
  Buffer<float> row_scales;
  Buffer<int8_t> q;
  Buffer<int32_t> block_sums;
  Buffer<float> token_scales;
  TernaryMatrix matrix;
};

// The largest error float32 sums of scaled group products may have: the sum of absolute group results, by the
// reference with each group alone, times the number of roundings.
double product_bound(const Product& p, const Case& c, int row, int token) {
  double sum = 0;
  for (int column = 0; column < c.columns; ++column)
    sum += abs(p.q.start[static_cast<size_t>(token) * p.column_blocks * 64 + column]);
  const double scale = c.group_size ? 1.0 : p.row_scales.start[row];  // the largest group scale above is 1
  return 2 * (p.groups + 4) * kEpsilon * sum * scale * p.token_scales.start[token];
}

void check_product(const Kernels& kernels, const Case& c) {
  const Product p(c);
  const int first = uniform(0, p.row_blocks - 1), last = uniform(first + 1, p.row_blocks);
  const int64_t stride = c.rows + uniform(0, 3);
  const size_t size = static_cast<size_t>(c.tokens) * stride;
  std::vector<int32_t> dots(size, 77), expected_dots(size, 77);
  kernels.ternary_dots(&p.matrix, p.q.start, p.block_sums.start, c.tokens, first, last, dots.data(), stride);
  wf::kReferenceKernels.ternary_dots(&p.matrix, p.q.start, p.block_sums.start, c.tokens, first, last,
                                     expected_dots.data(), stride);
  if (dots != expected_dots) fail(kernels, "ternary_dots " + c.text());

  Buffer<float> y(size, c.offset), expected(size, c.offset);
  kernels.ternary_gemm(&p.matrix, p.q.start, p.block_sums.start, p.token_scales.start, c.tokens, first, last, y.start,
                       stride);
  wf::kReferenceKernels.ternary_gemm(&p.matrix, p.q.start, p.block_sums.start, p.token_scales.start, c.tokens, first,
                                     last, expected.start, stride);
  for (int t = 0; t < c.tokens; ++t)
    for (int row = 0; row < stride; ++row) {
      const size_t at = static_cast<size_t>(t) * stride + row;
      const bool inside = row >= first * 4 && row < std::min(last * 4, c.rows);
      const double bound = inside ? product_bound(p, c, row, t) : 0;
      if (!(fabs(double(y.start[at]) - expected.start[at]) <= bound)) return fail(kernels, "ternary_gemm " + c.text());
    }
}

void test_products(const Kernels& kernels, int repeats) {
  const int groups[] = {0, 64, 128, 256};
  for (int rows = 1; rows <= 9; ++rows)
    for (int columns : {1, 15, 16, 63, 64, 65, 127, 129, 192, 255, 256, 257, 300})
      for (int group : groups) check_product(kernels, {rows, columns, uniform(1, 70), group, uniform(0, 3), false});
  for (int tokens = 1; tokens <= 70; ++tokens)
    for (int group : groups)
      check_product(kernels, {uniform(1, 40), uniform(1, 300), tokens, group, uniform(0, 3), false});
  for (int i = 0; i < repeats; ++i)
    check_product(kernels,
                  {uniform(1, 70), uniform(1, 1200), uniform(1, 20), groups[i % 4], uniform(0, 3), i % 5 == 0});
  for (int tokens : {1, 2, 4, 5, 9, 97, 100})  // long rows: several panels, int16 flushes, all codes 2 and |q| = 127
    for (int group : groups) check_product(kernels, {33, 2624, tokens, group, 1, true});
}

void test_quantize(const Kernels& kernels) {
  for (int n : {1, 2, 15, 16, 17, 63, 64, 65, 100, 128, 300, 576, 1536})
    for (int kind = 0; kind < 4; ++kind) {
      const int blocks = (n + 63) / 64;
      Buffer<float> x(n, kind);
      for (int i = 0; i < n; ++i)  // 1: all zero; 2: halves, to meet ties; 3: below the 1e-5 floor
        x.start[i] = kind == 1 ? 0.0f : kind == 2 ? 0.5f * uniform(-254, 254) : kind == 3 ? 1e-6f * normal() : normal();
      if (kind == 2) x.start[0] = 127.0f;
      std::vector<int8_t> q(blocks * 64, 5), expected_q(blocks * 64, 5);
      std::vector<int32_t> sums(blocks), expected_sums(blocks);
      float scale = 0, expected_scale = 0;
      kernels.quantize(x.start, n, q.data(), sums.data(), &scale);
      wf::kReferenceKernels.quantize(x.start, n, expected_q.data(), expected_sums.data(), &expected_scale);
      if (q != expected_q || sums != expected_sums || scale != expected_scale)
        fail(kernels, "quantize " + std::to_string(n) + " kind " + std::to_string(kind));
    }
}

void check_close(const Kernels& kernels, const char* what, const float* got, const float* expected, int n,
                 double relative, double absolute) {
  for (int i = 0; i < n; ++i)
    if (!(fabs(double(got[i]) - expected[i]) <= relative * fabs(expected[i]) + absolute))
      return fail(kernels, std::string(what) + " of " + std::to_string(n) + " at " + std::to_string(i) + ": " +
                               std::to_string(got[i]) + " for " + std::to_string(expected[i]));
}

void test_elementwise(const Kernels& kernels) {
  const Kernels& reference = wf::kReferenceKernels;
  for (int n : {1, 7, 8, 9, 31, 64, 100, 576, 1536}) {
    Buffer<float> a(n, 1), b(n, 2), y(n, 3), expected(n, 3);
    for (int i = 0; i < n; ++i) a.start[i] = 4 * normal(), b.start[i] = normal();
    if (n > 8) a.start[3] = 100.0f, a.start[4] = -100.0f, a.start[5] = 0.0f;
    kernels.rms_norm(a.start, b.start, 1e-5f, n, y.start);
    reference.rms_norm(a.start, b.start, 1e-5f, n, expected.start);
    check_close(kernels, "rms_norm", y.start, expected.start, n, (n + 8) * kEpsilon, 0);
    // 1e-6: the sigmoid has the exponential's relative error, 2e-7, and four roundings on each side. Below -88 the
    // clamped exponential gives up to 1e-36 where the exact value is smaller.
    kernels.silu_mul(a.start, b.start, n, y.start);
    reference.silu_mul(a.start, b.start, n, expected.start);
    check_close(kernels, "silu_mul", y.start, expected.start, n, 1e-6, 1e-35);
    kernels.relu2_mul(a.start, b.start, n, y.start);
    reference.relu2_mul(a.start, b.start, n, expected.start);
    check_close(kernels, "relu2_mul", y.start, expected.start, n, 4 * kEpsilon, 0);
    memcpy(y.start, b.start, n * sizeof(float));
    memcpy(expected.start, b.start, n * sizeof(float));
    kernels.add(y.start, a.start, n);
    reference.add(expected.start, a.start, n);
    check_close(kernels, "add", y.start, expected.start, n, 0, 0);
  }
}

// Every half, and the float32 values just beside and between neighbouring halves, where rounding decides.
void test_halves(const Kernels& kernels) {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {
    const uint32_t exponent = bits >> 10, fraction = bits & 1023;
    const float value = exponent ? ldexpf(1024.0f + fraction, static_cast<int>(exponent) - 25) : ldexpf(fraction, -24);
    const float middle = value + ldexpf(1.0f, static_cast<int>(exponent ? exponent : 1) - 26);
    for (float sign : {1.0f, -1.0f})
      for (float v : {value, middle, nextafterf(middle, 0.0f), nextafterf(middle, 1e9f)}) values.push_back(sign * v);
  }
  for (float v : {65504.0f, 65519.9f, 65520.0f, 65536.0f, 1e9f, INFINITY, -INFINITY}) values.push_back(v);
  std::vector<uint16_t> got(values.size()), expected(values.size());
  kernels.store_f16(values.data(), static_cast<int>(values.size()), got.data());
  wf::kReferenceKernels.store_f16(values.data(), static_cast<int>(values.size()), expected.data());
  if (got != expected) fail(kernels, "store_f16");
}

void test_dense(const Kernels& kernels) {
  const Kernels& reference = wf::kReferenceKernels;
  for (int columns : {1, 8, 17, 64, 100, 256, 300, 576})
    for (int tokens : {1, 2, 3, 5, 8, 13}) {
      const int rows = uniform(1, 40), first = uniform(0, rows - 1), last = uniform(first + 1, rows);
      const int64_t stride = rows + 1;
      Buffer<int8_t> w(static_cast<size_t>(rows) * columns, 1);
      Buffer<uint16_t> halves(static_cast<size_t>(rows) * columns, 1);
      Buffer<float> x(static_cast<size_t>(tokens) * columns, 1), scales(rows, 1), y(tokens * stride, 1),
          expected(tokens * stride, 1);
      for (int i = 0; i < rows * columns; ++i) {
        w.start[i] = static_cast<int8_t>(uniform(-127, 127));
        const float value = normal();
        reference.store_f16(&value, 1, halves.start + i);
      }
      for (int i = 0; i < tokens * columns; ++i) x.start[i] = normal();
      for (int i = 0; i < rows; ++i) scales.start[i] = 0.01f;
      // |w| <= 127 with scale 0.01, and |half|, |x| < 6 for these normal numbers
      kernels.q8_gemm(w.start, scales.start, columns, x.start, tokens, first, last, y.start, stride);
      reference.q8_gemm(w.start, scales.start, columns, x.start, tokens, first, last, expected.start, stride);
      check_close(kernels, "q8_gemm", y.start, expected.start, tokens * stride, 0,
                  2 * columns * kEpsilon * columns * 1.27 * 6);
      kernels.f16_gemm(halves.start, columns, x.start, tokens, first, last, y.start, stride);
      reference.f16_gemm(halves.start, columns, x.start, tokens, first, last, expected.start, stride);
      check_close(kernels, "f16_gemm", y.start, expected.start, tokens * stride, 0,
                  2 * columns * kEpsilon * columns * 36);
    }
}

void test_attend(const Kernels& kernels) {
  const Kernels& reference = wf::kReferenceKernels;
  for (int head_dim : {1, 8, 20, 64, 80, 128})
    for (int length : {1, 2, 3, 4, 5, 15, 16, 33, 100}) {
      const int64_t stride = head_dim + uniform(0, 5);
      Buffer<float> q(head_dim, 1), k(length * stride, 1), v(length * stride, 1), scores(length, 1), out(head_dim, 1),
          expected(head_dim, 1);
      Buffer<uint16_t> k16(length * stride, 1), v16(length * stride, 1);
      for (int i = 0; i < head_dim; ++i) q.start[i] = normal();
      for (int i = 0; i < length * stride; ++i) k.start[i] = normal(), v.start[i] = normal();
      reference.store_f16(k.start, length * stride, k16.start);
      reference.store_f16(v.start, length * stride, v16.start);
      const float scale = 1.0f / sqrtf(head_dim);
      // Scores are off by 2 head_dim eps sum |q k| scale <= 2 head_dim eps 36 sqrt(head_dim), weights by that and the
      // exponential's 2e-7 relative, the mixture of |v| < 6 by `length` roundings more.
      const double bound = 6 * (2 * head_dim * kEpsilon * 36 * sqrt(head_dim) + 1e-6 + 2 * length * kEpsilon);
      kernels.attend(q.start, k16.start, v16.start, stride, head_dim, length, scale, scores.start, out.start);
      reference.attend(q.start, k16.start, v16.start, stride, head_dim, length, scale, scores.start, expected.start);
      check_close(kernels, "attend", out.start, expected.start, head_dim, 0, bound);
      kernels.attend_f32(q.start, k.start, v.start, stride, head_dim, length, scale, scores.start, out.start);
      reference.attend_f32(q.start, k.start, v.start, stride, head_dim, length, scale, scores.start, expected.start);
      check_close(kernels, "attend_f32", out.start, expected.start, head_dim, 0, bound);
    }
}

void test_attend_block(const Kernels& kernels) {
  const Kernels& reference = wf::kReferenceKernels;
  for (int head_dim : {16, 48, 64, 80, 128})
    for (int queries : {1, 2, 3, 9, 20})
      for (int length : {1, 5, 63, 64, 65, 200}) {
        const int group = uniform(1, 4), last = length + queries - 1;
        const int64_t stride = head_dim + uniform(0, 3), row = group * head_dim + uniform(0, 3);
        Buffer<float> q(queries * row, 1), k(last * stride, 1), v(last * stride, 1);
        Buffer<float> out(queries * row, 1), expected(queries * row, 1);
        Buffer<uint16_t> k16(last * stride, 1), v16(last * stride, 1);
        for (int i = 0; i < queries * row; ++i) q.start[i] = 2 * normal();
        for (int i = 0; i < last * stride; ++i) k.start[i] = normal(), v.start[i] = normal();
        reference.store_f16(k.start, last * stride, k16.start);
        reference.store_f16(v.start, last * stride, v16.start);
        const float scale = 1.0f / sqrtf(head_dim);
        // As for one query, with |q| < 12, and a rounding more for every tile of keys that raises the peak.
        const double bound = 6 * (2 * head_dim * kEpsilon * 72 * sqrt(head_dim) + 2e-6 + 3 * last * kEpsilon);
        kernels.attend_block(q.start, row, queries, group, k16.start, v16.start, stride, head_dim, length, scale,
                             out.start, row);
        reference.attend_block(q.start, row, queries, group, k16.start, v16.start, stride, head_dim, length, scale,
                               expected.start, row);
        check_close(kernels, "attend_block", out.start, expected.start, queries * row, 0, bound);
        kernels.attend_block_f32(q.start, row, queries, group, k.start, v.start, stride, head_dim, length, scale,
                                 out.start, row);
        reference.attend_block_f32(q.start, row, queries, group, k.start, v.start, stride, head_dim, length, scale,
                                   expected.start, row);
        check_close(kernels, "attend_block_f32", out.start, expected.start, queries * row, 0, bound);
        std::vector<float> scores(last);  // the reference against itself: one query at a time
        const int i = queries - 1;
        reference.attend_f32(q.start + i * row, k.start, v.start, stride, head_dim, last, scale, scores.data(),
                             out.start);
        check_close(reference, "attend_block of one", out.start, expected.start + i * row, head_dim, 0, bound);
      }
}

void test_select() {
  const Kernels* tables[8];
  const char* reason = nullptr;
  const int count = wf::runnable_kernels(tables, 8);
  if (count < 1 || tables[count - 1] != &wf::kReferenceKernels)
    fail(wf::kReferenceKernels, "the reference must be last");
  if (wf::select_kernels("auto", &reason) != tables[0] || !reason) fail(*tables[0], "auto must be the first table");
  for (int i = 0; i < count; ++i)
    if (wf::select_kernels(tables[i]->name, &reason) != tables[i]) fail(*tables[i], "must be found by name");
  if (wf::select_kernels("mmx", &reason) || !strstr(reason, "no kernels of that name"))
    fail(wf::kReferenceKernels, "an unknown name must be refused");
}

}  // namespace

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? atoi(argv[1]) : 200;
  test_select();
  const Kernels* tables[8];
  const int count = wf::runnable_kernels(tables, 8);
  for (int i = 0; i < count; ++i) {
    test_products(*tables[i], repeats);
    test_quantize(*tables[i]);
    test_elementwise(*tables[i]);
    test_halves(*tables[i]);
    test_dense(*tables[i]);
    test_attend(*tables[i]);
    test_attend_block(*tables[i]);
    printf("%s: run on %s\n", tables[i]->name, wf::cpu_name());
  }
  if (failures) printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
