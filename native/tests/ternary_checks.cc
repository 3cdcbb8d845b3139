// The ternary products of a kernel table against plain loops over the weights before packing.
#include <math.h>
#include <stdlib.h>

#include <algorithm>

#include "tests/checks.h"

namespace wf::checks {
namespace {

enum class Values : uint8_t { kRandom, kLargest, kSigns };  // all +1 and one |q| = 127 a token; only signs random

struct Case {
  int rows, columns, tokens, group_size, offset;
  TernaryLayout layout;
  Values values;
  std::string text() const {
    return std::to_string(rows) + " x " + std::to_string(columns) + ", " + std::to_string(tokens) + " tokens, group " +
           std::to_string(group_size) + ", offset " + std::to_string(offset) +
           (layout == TernaryLayout::kTwoBit ? ", t2" : ", t1.6") +
           (values == Values::kRandom    ? ""
            : values == Values::kLargest ? ", largest"
                                         : ", signs");
  }
};

float float_of_half(uint16_t bits) {  // normal and positive only
  return ldexpf(1024.0f + (bits & 1023), (bits >> 10) - 25);
}

struct Product {
  explicit Product(const Case& c)
      : row_blocks((c.rows + kRowsPerBlock - 1) / kRowsPerBlock),
        column_blocks((c.columns + kColumnsPerBlock - 1) / kColumnsPerBlock),
        width(column_blocks * kColumnsPerBlock),
        groups(c.group_size ? (c.columns + c.group_size - 1) / c.group_size : 0),
        weights(static_cast<size_t>(row_blocks) * kRowsPerBlock * width),
        codes(static_cast<size_t>(row_blocks * row_block_bytes(c.layout, column_blocks)), c.offset),
        group_scales(static_cast<size_t>(row_blocks) * groups * kRowsPerBlock, c.offset),
        row_scales(row_blocks * kRowsPerBlock, c.offset),
        q(static_cast<size_t>(c.tokens) * width, c.offset),
        block_sums(static_cast<size_t>(c.tokens) * column_blocks, c.offset),
        token_scales(c.tokens, c.offset) {
    // Missing rows and columns too: what stands there must not matter.
    for (int8_t& weight : weights) {
      weight = static_cast<int8_t>(c.values == Values::kRandom    ? uniform(-1, 1)
                                   : c.values == Values::kLargest ? 1
                                                                  : 2 * uniform(0, 1) - 1);
    }
    for (int row = 0; row < row_blocks * kRowsPerBlock; ++row) pack_row(c.layout, row);
    for (int i = 0; i < row_blocks * groups * kRowsPerBlock; ++i)
      group_scales.start[i] = static_cast<uint16_t>(uniform(0x1000, 0x3C00));
    for (int i = 0; i < row_blocks * kRowsPerBlock; ++i) row_scales.start[i] = 0.01f + fabsf(normal());
    for (int t = 0; t < c.tokens; ++t) fill_token(c, t);
    matrix = {codes.start,
              groups ? group_scales.start : nullptr,
              groups ? nullptr : row_scales.start,
              c.rows,
              c.columns,
              row_blocks,
              column_blocks,
              c.group_size / kColumnsPerBlock,
              c.layout,
              uniform(0, 1) * 512};
  }

  // As artifact/packing.py states it.
  void pack_row(TernaryLayout layout, int row) {
    const int fives = layout == TernaryLayout::kFiveTrits ? column_blocks / kBlocksPerFive : 0;
    uint8_t* out = codes.start + row / kRowsPerBlock * row_block_bytes(layout, column_blocks);
    const int8_t* values = weights.data() + static_cast<size_t>(row) * width;
    const int place = 4 * (row % kRowsPerBlock);
    for (int five = 0; five < fives; ++five, out += kBytesPerFive, values += kBlocksPerFive * kColumnsPerBlock)
      for (int column = 0; column < kColumnsPerBlock; ++column) {
        int number = 0;
        for (int p = 0; p < kBlocksPerFive; ++p) number = 3 * number + values[p * kColumnsPerBlock + column] + 1;
        out[64 * (column / 4) + place + column % 4] = static_cast<uint8_t>((256 * number + 242) / 243);
      }
    for (int block = fives * kBlocksPerFive; block < column_blocks; ++block) {
      for (int column = 0; column < kColumnsPerBlock; ++column)
        out[64 * (column % 16 / 4) + place + column % 4] |=
            static_cast<uint8_t>((values[column] + 1) << (2 * (column / 16)));
      out += kBytesPerBlock, values += kColumnsPerBlock;
    }
  }

  void fill_token(const Case& c, int t) {
    token_scales.start[t] = 0.001f + fabsf(normal());
    const int sign = uniform(0, 1) ? 127 : -127;
    for (int i = 0; i < width; ++i) {
      int8_t& value = q.start[static_cast<size_t>(t) * width + i];
      value = static_cast<int8_t>(i >= c.columns                 ? 0
                                  : c.values == Values::kRandom  ? uniform(-127, 127)
                                  : c.values == Values::kLargest ? sign
                                                                 : 127 - 254 * uniform(0, 1));
      block_sums.start[static_cast<size_t>(t) * column_blocks + i / kColumnsPerBlock] += value;
    }
  }

  // Sum over the columns [first, last) of one row.
  int32_t dot(int row, int t, int first, int last) const {
    const int8_t* w = weights.data() + static_cast<size_t>(row) * width;
    const int8_t* x = q.start + static_cast<size_t>(t) * width;
    int32_t sum = 0;
    for (int i = first; i < last; ++i) sum += w[i] * x[i];
    return sum;
  }

  int row_blocks, column_blocks, width, groups;
  std::vector<int8_t> weights;  // [row_blocks * 16, width]
  Buffer<uint8_t> codes;
  Buffer<uint16_t> group_scales;
  Buffer<float> row_scales;
  Buffer<int8_t> q;
  Buffer<int32_t> block_sums;
  Buffer<float> token_scales;
  TernaryMatrix matrix;
};

// Whether `found` is the scaled product of one row and token. With group scales a kernel may end its integers at any
// column block: a sum of C scaled integers has a rounding for each integer (above 2^24), product and addition and one
// for the token's scale, of at most the sum of magnitudes each.
bool right_product(const Product& p, const Case& c, int row, int t, float found) {
  const double token_scale = p.token_scales.start[t];
  if (p.groups == 0) {
    const double exact = p.dot(row, t, 0, p.width) * double(p.row_scales.start[row]) * token_scale;
    return fabs(found - exact) <= 4 * kEpsilon * fabs(exact);
  }
  double exact = 0, magnitude = 0;
  for (int block = 0; block < p.column_blocks; ++block) {
    const int group = block * kColumnsPerBlock / c.group_size;
    const size_t place = (static_cast<size_t>(row / kRowsPerBlock) * p.groups + group) * kRowsPerBlock;
    const double scale = float_of_half(p.group_scales.start[place + row % kRowsPerBlock]);
    const double part = scale * p.dot(row, t, block * kColumnsPerBlock, (block + 1) * kColumnsPerBlock);
    exact += part, magnitude += fabs(part);
  }
  return fabs(found - exact * token_scale) <= (p.column_blocks + 4) * kEpsilon * magnitude * token_scale;
}

void check_product(const Kernels& kernels, const Case& c) {
  const Product p(c);
  const int first = uniform(0, p.row_blocks - 1), last = uniform(first + 1, p.row_blocks);
  const int64_t stride = c.rows + uniform(0, 3);
  const size_t size = static_cast<size_t>(c.tokens) * stride;
  Buffer<int32_t> dots(size, c.offset);
  Buffer<float> y(size, c.offset);
  std::fill(dots.start, dots.start + size, 77);
  std::fill(y.start, y.start + size, 77.0f);
  kernels.ternary_dots(&p.matrix, p.q.start, p.block_sums.start, c.tokens, first, last, dots.start, stride);
  kernels.ternary_gemm(&p.matrix, p.q.start, p.block_sums.start, p.token_scales.start, c.tokens, first, last, y.start,
                       stride);
  for (int t = 0; t < c.tokens; ++t)
    for (int row = 0; row < stride; ++row) {
      const size_t at = static_cast<size_t>(t) * stride + row;
      const bool inside = row >= first * kRowsPerBlock && row < std::min(last * kRowsPerBlock, c.rows);
      if (dots.start[at] != (inside ? p.dot(row, t, 0, p.width) : 77)) return fail(kernels, "ternary_dots " + c.text());
      if (inside ? !right_product(p, c, row, t, y.start[at]) : y.start[at] != 77.0f)
        return fail(kernels, "ternary_gemm " + c.text());
    }
}

void test_products(const Kernels& kernels, int repeats) {
  const int groups[] = {0, 64, 128, 256};
  for (TernaryLayout layout : {TernaryLayout::kTwoBit, TernaryLayout::kFiveTrits}) {
    const auto check = [&](int rows, int columns, int tokens, int group, Values values) {
      check_product(kernels, {rows, columns, tokens, group, uniform(0, 3), layout, values});
    };
    for (int rows : {1, 2, 7, 15, 16, 17, 31, 32, 33, 49})
      for (int columns : {1, 15, 16, 63, 64, 65, 129, 255, 256, 257, 319, 320, 321, 384, 640, 700})
        check(rows, columns, uniform(1, 40), groups[uniform(0, 3)], Values::kRandom);
    for (int group : groups) {
      for (int tokens = 1; tokens <= 40; ++tokens)
        check(uniform(1, 80), uniform(1, 700), tokens, group, Values::kRandom);
      for (int tokens : {100, 300}) check(uniform(1, 80), uniform(300, 700), tokens, group, Values::kRandom);
      // long rows: several panels, int16 sums at their limit
      for (int tokens : {1, 2, 4, 5, 9, 33, 97})
        for (Values values : {Values::kLargest, Values::kSigns}) check(33, 2624, tokens, group, values);
    }
    for (int i = 0; i < repeats; ++i)
      check(uniform(1, 100), uniform(1, 1400), uniform(1, 20), groups[i % 4], Values::kRandom);
  }
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
      kReferenceKernels.quantize(x.start, n, expected_q.data(), expected_sums.data(), &expected_scale);
      if (q != expected_q || sums != expected_sums || scale != expected_scale)
        fail(kernels, "quantize " + std::to_string(n) + " kind " + std::to_string(kind));
    }
}

}  // namespace

void check_ternary(const Kernels& kernels, int repeats) {
  test_products(kernels, repeats);
  test_quantize(kernels);
}

}  // namespace wf::checks
