// float16 bits <-> float32 for the few places outside the kernels.
#pragma once
#include <bit>
#include <cstdint>

namespace wf {

// IEEE 754 binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits.
inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and makes subnormals right without a branch.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

inline bool half_is_finite(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

}  // namespace wf
