// Ternary rows as other formats hold them, turned into the blocks of t2-r16c64 (artifact/packing.py).
#pragma once
#include <cstdint>
#include <string>

namespace wf {

// How the codes of a row lie in memory; scales inside the blocks of a type are the caller's matter.
enum class RowType : uint8_t {
  kI8,   // one int8 of -1, 0, 1 for each column
  kTq1,  // GGUF's TQ1_0: blocks of 256 columns in 54 bytes
  kTq2,  // GGUF's TQ2_0: blocks of 256 columns in 66 bytes
  kQ4,   // GGUF's Q4_0: blocks of 32 columns in 18 bytes; of its 16 values only -1, 0, 1 are allowed
  kI2s,  // bitnet.cpp's I2_S as its x86 builds lay it out: blocks of 128 columns in 32 bytes
};

// By the names I8, TQ1_0, TQ2_0, Q4_0, I2_S. Throws InputError for another.
RowType row_type_of(const std::string& name);

// Bytes of a row of `columns` columns. Throws InputError when the type cannot hold such a row.
uint64_t row_bytes_of(RowType type, int64_t columns);

struct StoredRows {
  RowType type;
  const uint8_t* data;  // [rows, row_bytes_of(type, columns)]
  int32_t rows, columns;
  const int32_t* order = nullptr;  // [rows]: which stored row becomes row i; null: row i itself
};

// Writes the codes [ceil(rows / 16), ceil(columns / 64), 256], missing rows and columns as the value 0.
// Throws FormatError, which begins with `place`, for what stands for no ternary value, and InputError for an `order`
// that names no row.
void repack_rows(const StoredRows& stored, uint8_t* out, const std::string& place, int threads);

// A table [rows, columns] in q8 (artifact/tables.py): codes [ceil(rows / 16), ceil(columns / 64), 1024], scales [rows].
// Throws FormatError, which begins with `place`, for an infinity or NaN.
void pack_q8(const float* values, int64_t rows, int64_t columns, uint8_t* codes, float* scales,
             const std::string& place, int threads);

}  // namespace wf
