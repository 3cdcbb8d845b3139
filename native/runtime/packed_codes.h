// The bytes of ternary codes outside the kernels: what is allowed, and one layout made from the other.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace wf {

// The codes of a ternary matrix, as PackedShape.codes of artifact/packing.py.
struct CodesShape {
  int32_t row_blocks, column_blocks;
  TernaryLayout layout;

  uint64_t row_bytes() const { return static_cast<uint64_t>(row_block_bytes(layout, column_blocks)); }
  uint64_t bytes() const { return static_cast<uint64_t>(row_blocks) * row_bytes(); }
  std::vector<uint64_t> dimensions() const;
};

// What is wrong with the codes of `rows` row blocks, or null. As fast as memory: it is done to every model loaded.
const char* codes_fault(const uint8_t* codes, const CodesShape& shape, int32_t rows);

// Words of random bits made codes that are allowed; `rows` row blocks.
void make_codes_valid(uint8_t* codes, const CodesShape& shape, int32_t rows);

// `rows` row blocks of the layout `shape` says, written to `out` in the other layout. Codes must be allowed ones.
void convert_codes(const uint8_t* codes, const CodesShape& shape, int32_t rows, uint8_t* out);

inline TernaryLayout other_layout(TernaryLayout layout) {
  return layout == TernaryLayout::kTwoBit ? TernaryLayout::kFiveTrits : TernaryLayout::kTwoBit;
}

}  // namespace wf
