// Passes over one value for each token of a vocabulary: vector code, nothing sorted as a whole.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace wf {

// The largest logit and the first token that has it. Throws FormatError when the logits hold NaN or have no finite
// maximum.
std::pair<float, int32_t> find_peak(const float* logits, int32_t count);

// values[i] = exp(values[i]) for values <= 0, to two units of the last place; 0 below -87.7.
void exp_below_zero(float* values, size_t count);

// The sum in float64.
double sum_of(const float* values, size_t count);

// The best `count` tokens, best first; of equal ones the smaller first.
std::vector<int32_t> best_tokens(const float* logits, int32_t vocabulary, int32_t count);

}  // namespace wf
