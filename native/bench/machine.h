// What this machine can deliver at most, and what one kernel makes of it.
#pragma once
#include <cstdint>

#include "kernels/kernels.h"

namespace wf {

// Gigabytes a second that `threads` threads read together from `bytes` of memory, each its own part, the best of the
// passes that fit in `seconds`.
double read_gb_per_second(int threads, int64_t bytes, double seconds);

// Giga multiply-adds a second of the table's int8 instruction on registers alone, all threads together.
double int8_gmac_per_second(const Kernels& kernels, int threads, double seconds);

struct ProductSpeed {
  double seconds;        // of one product
  double gb_per_second;  // packed codes and scales read
  double gmac_per_second;
};

struct ProductShape {
  int32_t rows, columns;
  int32_t group_size;  // 0: row scales
  TernaryLayout layout = TernaryLayout::kTwoBit;
};

// The ternary product of `tokens` tokens with a random matrix. `copies` matrices are visited in turn: enough of them
// keep the weights out of the caches, as the layers of a model do.
ProductSpeed ternary_speed(const Kernels& kernels, const ProductShape& shape, int32_t tokens, int32_t copies,
                           int threads, double seconds);

// The same for a quantised head.
ProductSpeed head_speed(const Kernels& kernels, TableFormat format, int32_t rows, int32_t columns, int32_t tokens,
                        int threads, double seconds);

}  // namespace wf
