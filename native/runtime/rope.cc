#include "rope.h"

#include <cmath>
#include <numbers>

namespace wf {

namespace {

// Llama 3.1's scaling: long waves are stretched by `factor`, short ones kept, those between interpolated.
// Source: arXiv 2407.21783, section 3.4.2 (long context), constants from the model's own config.
float llama3_frequency(const RopeConfig& config, float frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double longest_kept = config.original_context / config.high_frequency_factor;
  const double shortest_stretched = config.original_context / config.low_frequency_factor;
  if (wavelength < longest_kept) return frequency;
  const double stretched = frequency / config.factor;
  if (wavelength > shortest_stretched) return static_cast<float>(stretched);
  const double smooth = (config.original_context / wavelength - config.low_frequency_factor) /
                        (config.high_frequency_factor - config.low_frequency_factor);
  return static_cast<float>((1 - smooth) * stretched + smooth * frequency);
}

}  // namespace

Rope::Rope(const RopeConfig& config, int32_t head_dim) {
  for (int32_t i = 0; i < head_dim; i += 2) {
    // float32 at the same places as transformers, so that angles of far positions agree
    const float exponent = static_cast<float>(i) / static_cast<float>(head_dim);
    float frequency = 1.0f / static_cast<float>(std::pow(config.theta, static_cast<double>(exponent)));
    if (config.kind == RopeKind::kLinear) frequency /= static_cast<float>(config.factor);
    if (config.kind == RopeKind::kLlama3) frequency = llama3_frequency(config, frequency);
    frequencies_.push_back(frequency);
  }
}

void Rope::angles(int32_t position, float* cosines, float* sines) const {
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const float angle = static_cast<float>(position) * frequencies_[i];
    cosines[i] = std::cos(angle);
    sines[i] = std::sin(angle);
  }
}

}  // namespace wf
