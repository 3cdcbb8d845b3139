#include "repack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "errors.h"
#include "kernels/kernels.h"
#include "load_tasks.h"

namespace wf {

namespace {

constexpr int64_t kPieceCodes = 1 << 20;  // of one task

struct BlockSize {
  int64_t columns, bytes;
};

BlockSize block_of(RowType type) {
  switch (type) {
    case RowType::kI8:
      return {1, 1};
    case RowType::kTq1:
      return {256, 54};
    case RowType::kTq2:
      return {256, 66};
    case RowType::kQ4:
      return {32, 18};
    case RowType::kI2s:
      return {128, 32};
  }
  return {1, 1};
}

// The decoders write codes 0, 1, 2 of `count` blocks and return nothing but 0 when all of them are such.

uint8_t decode_i8(const uint8_t* in, int64_t count, uint8_t* out) {
  uint8_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<uint8_t>(in[i] + 1);
    wrong |= static_cast<uint8_t>(out[i] > 2);
  }
  return wrong;
}

// Bits 2 l of byte m of each half are column 32 l + m of it.
uint8_t decode_tq2(const uint8_t* in, int64_t count, uint8_t* out) {
  uint8_t wrong = 0;
  for (int64_t block = 0; block < count; ++block, in += 66) {
    for (const uint8_t* half : {in, in + 32}) {
      for (int shift = 0; shift < 8; shift += 2, out += 32) {
        for (int m = 0; m < 32; ++m) {
          out[m] = half[m] >> shift & 3;
          wrong |= out[m] & static_cast<uint8_t>(out[m] >> 1);
        }
      }
    }
  }
  return wrong;
}

// `digits` codes of each of kBytes bytes, the first codes of all bytes before the second ones: v is a fraction of 256,
// and what carries when it is multiplied by three is the next code.
template <int kBytes>
uint8_t* decode_fractions(const uint8_t* in, int digits, uint8_t* out) {
  uint8_t left[kBytes];
  std::memcpy(left, in, kBytes);
  for (int digit = 0; digit < digits; ++digit, out += kBytes) {
    for (int m = 0; m < kBytes; ++m) {
      out[m] = static_cast<uint8_t>((left[m] > 85) + (left[m] > 170));  // 3 v >> 8
      left[m] = static_cast<uint8_t>(3 * left[m]);
    }
  }
  return out;
}

uint8_t decode_tq1(const uint8_t* in, int64_t count, uint8_t* out) {
  for (int64_t block = 0; block < count; ++block, in += 54) {
    out = decode_fractions<32>(in, 5, out);
    out = decode_fractions<16>(in + 32, 5, out);
    out = decode_fractions<4>(in + 48, 4, out);
  }
  return 0;
}

// Behind two bytes of scale, byte m is column m in its low four bits and 16 + m in its high ones, plus 8.
uint8_t decode_q4(const uint8_t* in, int64_t count, uint8_t* out) {
  uint8_t wrong = 0;
  for (int64_t block = 0; block < count; ++block, in += 18) {
    for (int shift = 0; shift < 8; shift += 4, out += 16) {
      for (int m = 0; m < 16; ++m) {
        out[m] = static_cast<uint8_t>((in[2 + m] >> shift & 15) - 7);
        wrong |= static_cast<uint8_t>(out[m] > 2);
      }
    }
  }
  return wrong;
}

// Bits 6 - 2 l of byte m are column 32 l + m.
uint8_t decode_i2s(const uint8_t* in, int64_t count, uint8_t* out) {
  uint8_t wrong = 0;
  for (int64_t block = 0; block < count; ++block, in += 32) {
    for (int shift = 6; shift >= 0; shift -= 2, out += 32) {
      for (int m = 0; m < 32; ++m) {
        out[m] = in[m] >> shift & 3;
        wrong |= out[m] & static_cast<uint8_t>(out[m] >> 1);
      }
    }
  }
  return wrong;
}

uint8_t decode(RowType type, const uint8_t* in, int64_t blocks, uint8_t* out) {
  switch (type) {
    case RowType::kI8:
      return decode_i8(in, blocks, out);
    case RowType::kTq1:
      return decode_tq1(in, blocks, out);
    case RowType::kTq2:
      return decode_tq2(in, blocks, out);
    case RowType::kQ4:
      return decode_q4(in, blocks, out);
    case RowType::kI2s:
      return decode_i2s(in, blocks, out);
  }
  return 1;
}

// Codes [16, stride] -> blocks of 64 columns.
void pack_row_block(const uint8_t* codes, int64_t stride, uint8_t* out) {
  for (int64_t first = 0; first < stride; first += kColumnsPerBlock, out += kBytesPerBlock) {
    for (int row = 0; row < kRowsPerBlock; ++row) {
      const uint8_t* in = codes + row * stride + first;
      uint8_t bytes[16];
      for (int i = 0; i < 16; ++i) {
        bytes[i] = static_cast<uint8_t>(in[i] | in[16 + i] << 2 | in[32 + i] << 4 | in[48 + i] << 6);
      }
      for (int quad = 0; quad < 4; ++quad) std::memcpy(out + 64 * quad + 4 * row, bytes + 4 * quad, 4);
    }
  }
}

// Half to even for |x| below 2^22, by the addition's own rounding.
float round_half_even(float x) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

// bytes[0..columns) = value / scale + 128 of one row; returns the scale, or NaN for a value that is not finite.
float quantize_q8(const float* values, int64_t columns, uint8_t* bytes) {
  float peak = 0, doubt = 0;
  for (int64_t i = 0; i < columns; ++i) {
    peak = std::max(peak, std::fabs(values[i]));
    doubt += values[i] * 0.0f;  // 0, but NaN for an infinity or NaN
  }
  if (doubt != 0.0f) return doubt;
  // A subnormal scale is too coarse: numbers would go beyond 127, or to infinity.
  const float scale = peak > 0 ? std::max(peak / 127.0f, std::numeric_limits<float>::min()) : 1.0f;
  for (int64_t i = 0; i < columns; ++i) {
    // Within the range but for a scale that is no normal number.
    const float number = std::min(std::max(round_half_even(values[i] / scale), -127.0f), 127.0f);
    bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(number) + 128);
  }
  return scale;
}

}  // namespace

void pack_q8(const float* values, int64_t rows, int64_t columns, uint8_t* codes, float* scales,
             const std::string& place, int threads) {
  constexpr int64_t kBlockBytes = 1024, kZero = 128;
  const int64_t column_blocks = (columns + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const int64_t stride = column_blocks * kColumnsPerBlock;
  const int64_t row_blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  LoadTasks tasks;
  const int64_t step = std::max<int64_t>(1, kPieceCodes / (stride * kRowsPerBlock));
  for (int64_t start = 0; start < row_blocks; start += step) {
    tasks.add([=, &place, end = std::min(start + step, row_blocks)] {
      std::vector<uint8_t> bytes(static_cast<size_t>(stride * kRowsPerBlock));
      for (int64_t row_block = start; row_block < end; ++row_block) {
        std::fill(bytes.begin(), bytes.end(), static_cast<uint8_t>(kZero));
        const int64_t first = row_block * kRowsPerBlock;
        for (int64_t row = 0; row < std::min<int64_t>(kRowsPerBlock, rows - first); ++row) {
          scales[first + row] = quantize_q8(values + (first + row) * columns, columns, bytes.data() + row * stride);
          if (std::isnan(scales[first + row])) {
            throw FormatError(message(place, ": row ", first + row, ": found an infinity or NaN"));
          }
        }
        uint8_t* out = codes + row_block * column_blocks * kBlockBytes;
        for (int64_t quad = 0; quad < stride / 4; ++quad) {  // four columns of sixteen rows
          for (int row = 0; row < kRowsPerBlock; ++row, out += 4) {
            std::memcpy(out, bytes.data() + row * stride + 4 * quad, 4);
          }
        }
      }
    });
  }
  tasks.run(threads);
}

RowType row_type_of(const std::string& name) {
  if (name == "I8") return RowType::kI8;
  if (name == "TQ1_0") return RowType::kTq1;
  if (name == "TQ2_0") return RowType::kTq2;
  if (name == "Q4_0") return RowType::kQ4;
  if (name == "I2_S") return RowType::kI2s;
  throw InputError(message("row type: found ", quoted(name), ", allowed are I8, TQ1_0, TQ2_0, Q4_0 and I2_S"));
}

uint64_t row_bytes_of(RowType type, int64_t columns) {
  const BlockSize block = block_of(type);
  if (columns < 1 || columns > (1 << 24) || columns % block.columns != 0) {
    throw InputError(message("columns: found ", columns, ", this row type has blocks of ", block.columns));
  }
  return static_cast<uint64_t>(columns / block.columns * block.bytes);
}

void repack_rows(const StoredRows& stored, uint8_t* out, const std::string& place, int threads) {
  const auto row_bytes = row_bytes_of(stored.type, stored.columns);
  const int64_t blocks = stored.columns / block_of(stored.type).columns;
  const int64_t column_blocks = (int64_t{stored.columns} + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const int64_t stride = column_blocks * kColumnsPerBlock;
  const int32_t row_blocks = (stored.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  for (int32_t i = 0; stored.order != nullptr && i < stored.rows; ++i) {
    if (stored.order[i] < 0 || stored.order[i] >= stored.rows) {
      throw InputError(
          message("order: found ", stored.order[i], " at index ", i, ", there are ", stored.rows, " rows"));
    }
  }
  LoadTasks tasks;
  const auto step = static_cast<int32_t>(std::max<int64_t>(1, kPieceCodes / (stride * kRowsPerBlock)));
  for (int32_t start = 0; start < row_blocks; start += step) {
    tasks.add([=, &stored, &place, end = std::min(start + step, row_blocks)] {
      for (int32_t row_block = start; row_block < end; ++row_block) {
        std::vector<uint8_t> codes(static_cast<size_t>(stride * kRowsPerBlock), 1);
        const int32_t first = row_block * kRowsPerBlock;
        const int32_t rows = std::min(kRowsPerBlock, stored.rows - first);
        for (int32_t row = 0; row < rows; ++row) {
          const int32_t from = stored.order == nullptr ? first + row : stored.order[first + row];
          const uint8_t* in = stored.data + static_cast<uint64_t>(from) * row_bytes;
          if (decode(stored.type, in, blocks, codes.data() + row * stride) != 0) {
            throw FormatError(message(place, ": row ", from, ": found a code that is none of -1, 0 and 1"));
          }
        }
        pack_row_block(codes.data(), stride, out + row_block * column_blocks * kBytesPerBlock);
      }
    });
  }
  tasks.run(threads);
}

}  // namespace wf
