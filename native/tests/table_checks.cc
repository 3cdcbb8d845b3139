// The products with embedding and head tables of a kernel table against plain loops over the entries before packing.
#include <math.h>

#include <algorithm>

#include "tests/checks.h"

namespace wf::checks {
namespace {

enum class Values : uint8_t { kRandom, kLargest, kSmallest };  // the ends of the entries' range, x16 = +-16256

struct Case {
  int rows, columns, tokens, offset;
  TableFormat format;
  Values values;
  std::string text() const {
    const char* names[] = {"q8", "q6", "q4"};
    return std::string(names[static_cast<int>(format)]) + " " + std::to_string(rows) + " x " + std::to_string(columns) +
           ", " + std::to_string(tokens) + " tokens, offset " + std::to_string(offset) +
           (values == Values::kRandom    ? ""
            : values == Values::kLargest ? ", largest"
                                         : ", smallest");
  }
};

int columns_per_scale(TableFormat format) { return format == TableFormat::kQ6 ? 64 : 32; }

float float_of_half(uint16_t bits) {  // normal numbers only
  const float value = ldexpf(1024.0f + (bits & 1023), (bits >> 10 & 31) - 25);
  return bits & 0x8000 ? -value : value;
}

struct Product {
  explicit Product(const Case& c)
      : row_blocks((c.rows + kRowsPerBlock - 1) / kRowsPerBlock),
        column_blocks((c.columns + kColumnsPerBlock - 1) / kColumnsPerBlock),
        width(column_blocks * kColumnsPerBlock),
        groups(c.format == TableFormat::kQ8 ? 0 : width / columns_per_scale(c.format)),
        entries(static_cast<size_t>(row_blocks) * kRowsPerBlock * width),
        codes(static_cast<size_t>(row_blocks * column_blocks * table_block_bytes(c.format)), c.offset),
        row_scales(row_blocks * kRowsPerBlock, c.offset),
        group_scales(static_cast<size_t>(row_blocks) * groups * kRowsPerBlock, c.offset),
        high(static_cast<size_t>(c.tokens) * width, c.offset),
        low(static_cast<size_t>(c.tokens) * width, c.offset),
        half_sums(static_cast<size_t>(c.tokens) * column_blocks * 2, c.offset),
        scales(c.tokens, c.offset) {
    const int limit = c.format == TableFormat::kQ8 ? 128 : c.format == TableFormat::kQ6 ? 32 : 8;
    for (int16_t& entry : entries)
      entry = static_cast<int16_t>(c.values == Values::kRandom    ? uniform(-limit, limit - 1)
                                   : c.values == Values::kLargest ? limit - 1
                                                                  : -limit);
    for (int row = 0; row < row_blocks * kRowsPerBlock; ++row)
      for (int column = 0; column < width; ++column) pack(c.format, row, column, limit);
    for (int i = 0; i < row_blocks * kRowsPerBlock; ++i) row_scales.start[i] = 0.01f + fabsf(normal());
    for (int i = 0; i < row_blocks * groups * kRowsPerBlock; ++i)
      group_scales.start[i] = static_cast<uint16_t>(uniform(0x1000, 0x3C00) | uniform(0, 1) << 15);
    for (int t = 0; t < c.tokens; ++t) fill_token(c, t);
    table = {codes.start,
             groups ? nullptr : row_scales.start,
             groups ? group_scales.start : nullptr,
             c.rows,
             c.columns,
             row_blocks,
             column_blocks,
             c.format,
             uniform(0, 1) * 512};
    wide = {high.start, low.start, half_sums.start, scales.start};
  }

  // As artifact/tables.py states it.
  void pack(TableFormat format, int row, int column, int limit) {
    uint8_t* block =
        codes.start + (static_cast<int64_t>(row / kRowsPerBlock) * column_blocks + column / kColumnsPerBlock) *
                          table_block_bytes(format);
    const int number = entries[static_cast<size_t>(row) * width + column] + limit;
    const int inside = column % kColumnsPerBlock, place = 4 * (row % kRowsPerBlock) + column % 4;
    if (format == TableFormat::kQ8) {
      block[64 * (inside / 4) + place] = static_cast<uint8_t>(number);
      return;
    }
    block[64 * (inside % 32 / 4) + place] |= static_cast<uint8_t>((number & 15) << (inside / 32 * 4));
    if (format == TableFormat::kQ6)
      block[512 + 64 * (inside % 16 / 4) + place] |= static_cast<uint8_t>((number >> 4) << (inside / 16 * 2));
  }

  void fill_token(const Case& c, int t) {
    scales.start[t] = 1e-5f + 1e-4f * fabsf(normal());
    const int sign = uniform(0, 1) ? 16256 : -16256;
    for (int i = 0; i < c.columns; ++i) {
      const int value = c.values != Values::kRandom ? sign : uniform(-16256, 16256);
      const size_t at = static_cast<size_t>(t) * width + i;
      high.start[at] = static_cast<int8_t>((value + 64) >> 7);
      low.start[at] = static_cast<int8_t>(value - 128 * high.start[at]);
      half_sums.start[static_cast<size_t>(t) * column_blocks * 2 + i / 32] += value;
    }
  }

  int64_t dot(int row, int t, int first, int last) const {
    const int16_t* w = entries.data() + static_cast<size_t>(row) * width;
    const int8_t* h = high.start + static_cast<size_t>(t) * width;
    const int8_t* l = low.start + static_cast<size_t>(t) * width;
    int64_t sum = 0;
    for (int i = first; i < last; ++i) sum += w[i] * (128 * h[i] + l[i]);
    return sum;
  }

  int row_blocks, column_blocks, width, groups;
  std::vector<int16_t> entries;  // [row_blocks * 16, width]
  Buffer<uint8_t> codes;
  Buffer<float> row_scales;
  Buffer<uint16_t> group_scales;
  Buffer<int8_t> high, low;
  Buffer<int32_t> half_sums;
  Buffer<float> scales;
  TableMatrix table;
  WideActivations wide;
};

// q8 bit for bit. The others: a rounding for each integer, product and addition and one for the token's scale, each of
// at most the sum of magnitudes.
bool right_product(const Product& p, const Case& c, int row, int t, float found) {
  if (p.groups == 0)
    return found == static_cast<float>(p.dot(row, t, 0, p.width)) * p.row_scales.start[row] * p.scales.start[t];
  const int group = columns_per_scale(c.format);
  double exact = 0, magnitude = 0;
  for (int g = 0; g < p.groups; ++g) {
    const size_t place = (static_cast<size_t>(row / kRowsPerBlock) * p.groups + g) * kRowsPerBlock;
    const double scale = float_of_half(p.group_scales.start[place + row % kRowsPerBlock]);
    const double part = scale * static_cast<double>(p.dot(row, t, g * group, (g + 1) * group));
    exact += part, magnitude += fabs(part);
  }
  const double scale = p.scales.start[t];
  return fabs(found - exact * scale) <= (p.groups + 4) * kEpsilon * magnitude * scale;
}

void check_product(const Kernels& kernels, const Case& c) {
  const Product p(c);
  const int first = uniform(0, p.row_blocks - 1), last = uniform(first + 1, p.row_blocks);
  const int64_t stride = c.rows + uniform(0, 3);
  const size_t size = static_cast<size_t>(c.tokens) * stride;
  Buffer<float> y(size, c.offset);
  std::fill(y.start, y.start + size, 77.0f);
  kernels.table_gemm(&p.table, &p.wide, c.tokens, first, last, y.start, stride);
  for (int t = 0; t < c.tokens; ++t)
    for (int row = 0; row < stride; ++row) {
      const float found = y.start[static_cast<size_t>(t) * stride + row];
      const bool inside = row >= first * kRowsPerBlock && row < std::min(last * kRowsPerBlock, c.rows);
      if (inside ? !right_product(p, c, row, t, found) : found != 77.0f)
        return fail(kernels, "table_gemm " + c.text() + ", row " + std::to_string(row));
    }
}

void test_tables(const Kernels& kernels, int repeats) {
  for (TableFormat format : {TableFormat::kQ8, TableFormat::kQ6, TableFormat::kQ4}) {
    const auto check = [&](int rows, int columns, int tokens, Values values) {
      check_product(kernels, {rows, columns, tokens, uniform(0, 3), format, values});
    };
    for (int rows : {1, 7, 15, 16, 17, 32, 33, 50})
      for (int columns : {1, 31, 32, 33, 63, 64, 65, 100, 128, 257, 576})
        check(rows, columns, uniform(1, 20), Values::kRandom);
    for (int tokens = 1; tokens <= 40; ++tokens) check(uniform(1, 80), uniform(1, 400), tokens, Values::kRandom);
    for (int tokens : {100, 300}) check(uniform(1, 60), uniform(1, 400), tokens, Values::kRandom);
    for (int tokens : {1, 2, 3, 9})  // an int32 sum of entry x x16 would overflow
      for (Values values : {Values::kLargest, Values::kSmallest}) check(20, 8200, tokens, values);
    for (int i = 0; i < repeats; ++i) check(uniform(1, 100), uniform(1, 1000), uniform(1, 12), Values::kRandom);
  }
}

void test_quantize_wide(const Kernels& kernels) {
  for (int n : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 300, 576, 1537})
    for (int kind = 0; kind < 5; ++kind) {
      const size_t blocks = (n + 63) / 64;
      Buffer<float> x(n, kind);
      // 1: all zero; 2: halves, to meet ties; 3: below the 1e-5 floor; 4: an infinity or NaN, where any result will do
      for (int i = 0; i < n; ++i)
        x.start[i] = kind == 1   ? 0.0f
                     : kind == 2 ? 0.5f * uniform(-32512, 32512)
                     : kind == 3 ? 1e-6f * normal()
                                 : normal();
      if (kind == 2) x.start[0] = 16256.0f;
      if (kind == 4) x.start[n / 2] = uniform(0, 1) ? NAN : INFINITY;
      Buffer<int8_t> high(blocks * 64, kind), low(blocks * 64, kind);
      Buffer<int32_t> sums(blocks * 2, kind);
      std::vector<int8_t> expected_high(blocks * 64, 5), expected_low(blocks * 64, 5);
      std::vector<int32_t> expected_sums(blocks * 2);
      float scale = 0, expected_scale = 0;
      kernels.quantize_wide(x.start, n, high.start, low.start, sums.start, &scale);
      kReferenceKernels.quantize_wide(x.start, n, expected_high.data(), expected_low.data(), expected_sums.data(),
                                      &expected_scale);
      if (kind == 4) continue;  // sanitizers look at it
      if (!std::equal(expected_high.begin(), expected_high.end(), high.start) ||
          !std::equal(expected_low.begin(), expected_low.end(), low.start) ||
          !std::equal(expected_sums.begin(), expected_sums.end(), sums.start) || scale != expected_scale)
        fail(kernels, "quantize_wide " + std::to_string(n) + " kind " + std::to_string(kind));
    }
}

void test_f16(const Kernels& kernels) {
  for (int columns : {1, 8, 17, 64, 100, 256, 300, 576})
    for (int tokens : {1, 2, 3, 5, 8, 13}) {
      const int rows = uniform(1, 40), first = uniform(0, rows - 1), last = uniform(first + 1, rows);
      const int64_t stride = rows + 1;
      Buffer<uint16_t> halves(static_cast<size_t>(rows) * columns, 1);
      Buffer<float> x(static_cast<size_t>(tokens) * columns, 1), y(tokens * stride, 1), expected(tokens * stride, 1);
      for (int i = 0; i < rows * columns; ++i) {
        const float value = normal();
        kReferenceKernels.store_f16(&value, 1, halves.start + i);
      }
      for (int i = 0; i < tokens * columns; ++i) x.start[i] = normal();
      kernels.f16_gemm(halves.start, columns, x.start, tokens, first, last, y.start, stride);
      kReferenceKernels.f16_gemm(halves.start, columns, x.start, tokens, first, last, expected.start, stride);
      // |half|, |x| < 6 for these normal numbers
      check_close(kernels, "f16_gemm", y.start, expected.start, tokens * stride, 0,
                  2 * columns * kEpsilon * columns * 36);
    }
}

}  // namespace

void check_tables(const Kernels& kernels, int repeats) {
  test_quantize_wide(kernels);
  test_tables(kernels, repeats);
  test_f16(kernels);
}

}  // namespace wf::checks
