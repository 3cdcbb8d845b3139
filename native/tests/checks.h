// What the checks of the kernels share: random numbers of one seed, buffers that end at a red zone, the count of
// failures.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <random>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace wf::checks {

constexpr double kEpsilon = 1.0 / (1 << 24);  // half a unit in the last place of float32, relative

extern std::mt19937 random_bits;
extern int failures;

void fail(const Kernels& kernels, const std::string& what);
void check_close(const Kernels& kernels, const char* what, const float* got, const float* expected, int n,
                 double relative, double absolute);

inline int uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }
inline float normal() { return std::normal_distribution<float>()(random_bits); }

// Memory that starts `offset` elements behind an aligned address and ends where the sanitizer's red zone begins.
template <class T>
struct Buffer {
  Buffer(size_t count, size_t offset) : memory(count + offset), start(memory.data() + offset) {}
  std::vector<T> memory;
  T* start;
};

// Each checks one table; `repeats` cases of random sizes.
void check_ternary(const Kernels& kernels, int repeats);
void check_tables(const Kernels& kernels, int repeats);
void check_elementwise(const Kernels& kernels);
void check_attention(const Kernels& kernels);

}  // namespace wf::checks
