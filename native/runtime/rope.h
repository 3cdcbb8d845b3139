// Rotary position embedding in the half-rotation form: dimension i turns with dimension i + head_dim / 2.
// Source: arXiv 2104.09864, section 3.4.2, with the pairing used by the Hugging Face Llama models.
#pragma once
#include <cstdint>
#include <vector>

#include "model_config.h"

namespace wf {

class Rope {
 public:
  Rope(const RopeConfig& config, int32_t head_dim);

  // cosines and sines [head_dim / 2] of one position.
  void angles(int32_t position, float* cosines, float* sines) const;

  // Turns one head [head_dim] in place.
  static void rotate(float* head, int32_t head_dim, const float* cosines, const float* sines) {
    const int32_t half = head_dim / 2;
    for (int32_t i = 0; i < half; ++i) {
      const float low = head[i];
      const float high = head[i + half];
      head[i] = low * cosines[i] - high * sines[i];
      head[i + half] = high * cosines[i] + low * sines[i];
    }
  }

 private:
  std::vector<float> frequencies_;  // radians a position
};

}  // namespace wf
