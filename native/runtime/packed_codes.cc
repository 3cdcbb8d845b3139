#include "packed_codes.h"

#include <array>
#include <cstring>

namespace wf {

namespace {

constexpr int kLine = 64;  // bytes: four columns of sixteen rows
constexpr uint64_t kPairs = 0x5555555555555555u;
constexpr uint64_t kEvenBytes = 0x00ff00ff00ff00ffu;

uint64_t load_word(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, 8);
  return word;
}

// The lower bit of each pair that is 3.
uint64_t threes(uint64_t word) { return word & (word >> 1) & kPairs; }

// 1 in each even byte that stands for no five codes: a byte v stands for some exactly when (243 v) mod 256 < 243
// (packing.py), and 243 v fits 16 bits, so that one multiplication serves four bytes.
uint64_t no_fives(uint64_t even_bytes) {
  const uint64_t left = even_bytes * 243 & kEvenBytes;
  return (left + 13 * 0x0001000100010001u) >> 8 & 0x0001000100010001u;
}

uint64_t fives_bytes(const CodesShape& shape) {
  if (shape.layout == TernaryLayout::kTwoBit) return 0;
  return static_cast<uint64_t>(shape.column_blocks / kBlocksPerFive) * kBytesPerFive;
}

// t1.6-r16c64 -> t2-r16c64: five blocks of 256 bytes from 1024.
void split_five(const uint8_t* five, uint8_t* blocks) {
  for (int quad = 0; quad < 16; ++quad) {  // four columns
    std::array<uint8_t, kLine> left;
    std::memcpy(left.data(), five + quad * kLine, kLine);
    const int shift = quad / 4 * 2;
    const uint8_t keep = shift == 0 ? 0 : 255;  // the first plane of a byte overwrites what was there
    for (int p = 0; p < kBlocksPerFive; ++p) {
      uint8_t* out = blocks + p * kBytesPerBlock + quad % 4 * kLine;
      for (int i = 0; i < kLine; ++i) {  // in bytes: the compiler's vectors hold twice as many of them as of 16 bits
        const auto code = static_cast<uint8_t>((left[i] > 85) + (left[i] > 170));  // 3 v >> 8
        left[i] = static_cast<uint8_t>(3 * left[i]);
        out[i] = static_cast<uint8_t>((out[i] & keep) | code << shift);
      }
    }
  }
}

// ... and back.
void join_five(const uint8_t* blocks, uint8_t* five) {
  static const std::array<uint8_t, 243> bytes = [] {
    std::array<uint8_t, 243> table{};
    for (uint32_t n = 0; n < 243; ++n) table[n] = static_cast<uint8_t>((256 * n + 242) / 243);
    return table;
  }();
  for (int quad = 0; quad < 16; ++quad) {
    const uint8_t* first = blocks + quad % 4 * kLine;
    const int shift = quad / 4 * 2;
    std::array<uint8_t, kLine> numbers{};
    for (int p = 0; p < kBlocksPerFive; ++p) {
      for (int i = 0; i < kLine; ++i) {
        numbers[i] = static_cast<uint8_t>(3 * numbers[i] + (first[p * kBytesPerBlock + i] >> shift & 3));
      }
    }
    for (int i = 0; i < kLine; ++i) five[quad * kLine + i] = bytes[numbers[i]];
  }
}

}  // namespace

std::vector<uint64_t> CodesShape::dimensions() const {
  const auto rows = static_cast<uint64_t>(row_blocks);
  if (layout == TernaryLayout::kTwoBit) return {rows, static_cast<uint64_t>(column_blocks), kBytesPerBlock};
  return {rows, row_bytes()};
}

const char* codes_fault(const uint8_t* codes, const CodesShape& shape, int32_t rows) {
  const uint64_t fives = fives_bytes(shape), row_bytes = shape.row_bytes();
  uint64_t wrong_fives = 0, wrong_pairs = 0;
  for (int32_t row = 0; row < rows; ++row, codes += row_bytes) {
    for (uint64_t i = 0; i < fives; i += 8) {
      const uint64_t word = load_word(codes + i);
      wrong_fives |= no_fives(word & kEvenBytes) | no_fives(word >> 8 & kEvenBytes);
    }
    for (uint64_t i = fives; i < row_bytes; i += 8) wrong_pairs |= threes(load_word(codes + i));
  }
  if (wrong_fives != 0) return "found a byte that stands for no five codes; the file is damaged";
  return wrong_pairs != 0 ? "found the unused bit pattern 3; the file is damaged" : nullptr;
}

void make_codes_valid(uint8_t* codes, const CodesShape& shape, int32_t rows) {
  const uint64_t fives = fives_bytes(shape), row_bytes = shape.row_bytes();
  for (int32_t row = 0; row < rows; ++row, codes += row_bytes) {
    for (uint64_t i = 0; i < row_bytes; i += 8) {
      uint64_t word = load_word(codes + i);
      if (i < fives) {  // the byte below one that stands for nothing stands for something
        word -= no_fives(word & kEvenBytes) + (no_fives(word >> 8 & kEvenBytes) << 8);
      } else {
        word ^= threes(word) << 1;  // 3 becomes 1, the value 0
      }
      std::memcpy(codes + i, &word, 8);
    }
  }
}

void convert_codes(const uint8_t* codes, const CodesShape& shape, int32_t rows, uint8_t* out) {
  constexpr uint64_t kFiveBlocks = uint64_t{kBlocksPerFive} * kBytesPerBlock;
  const int32_t supers = shape.column_blocks / kBlocksPerFive;
  const uint64_t tail = static_cast<uint64_t>(shape.column_blocks % kBlocksPerFive) * kBytesPerBlock;
  const bool split = shape.layout == TernaryLayout::kFiveTrits;
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t i = 0; i < supers; ++i) {
      if (split) {
        split_five(codes, out);
      } else {
        join_five(codes, out);
      }
      codes += split ? kBytesPerFive : kFiveBlocks;
      out += split ? kFiveBlocks : kBytesPerFive;
    }
    std::memcpy(out, codes, tail);
    codes += tail;
    out += tail;
  }
}

}  // namespace wf
