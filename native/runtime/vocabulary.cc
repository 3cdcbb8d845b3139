#include "vocabulary.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "errors.h"

namespace wf {

namespace {

constexpr int32_t kLanes = 16;  // independent accumulators, so that the compiler may use vectors

}  // namespace

std::pair<float, int32_t> find_peak(const float* logits, int32_t count) {
  float peaks[kLanes];
  int32_t nans[kLanes] = {};
  std::fill(peaks, peaks + kLanes, -std::numeric_limits<float>::infinity());
  const int32_t whole = count / kLanes * kLanes;
  for (int32_t i = 0; i < whole; i += kLanes) {
    for (int32_t j = 0; j < kLanes; ++j) {
      const float logit = logits[i + j];
      peaks[j] = logit > peaks[j] ? logit : peaks[j];
      nans[j] |= logit != logit;
    }
  }
  for (int32_t i = whole; i < count; ++i) {
    peaks[0] = logits[i] > peaks[0] ? logits[i] : peaks[0];
    nans[0] |= logits[i] != logits[i];
  }
  const float peak = *std::max_element(peaks, peaks + kLanes);
  if (std::any_of(nans, nans + kLanes, [](int32_t nan) { return nan != 0; }) || !std::isfinite(peak)) {
    throw FormatError("logits: found NaN or infinity; the model's weights overflow float32, train or export it again");
  }
  return {peak, static_cast<int32_t>(std::find(logits, logits + count, peak) - logits)};
}

// Without calls, so that it becomes vector code: 2^n * e^r with |r| <= ln(2) / 2 and the Taylor polynomial of degree 7
// (its remainder is 2e-9). Below -87.7 n is -127, and 2^n comes out as the float of all bits 0.
void exp_below_zero(float* values, size_t count) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // a loop of its own: in one with the rest the compiler makes a branch of it
  for (size_t i = 0; i < count; ++i) values[i] = values[i] > -88.0f ? values[i] : -88.0f;
  for (size_t i = 0; i < count; ++i) {
    const float shifted = values[i] * 1.44269504f + kRound;
    const float n = shifted - kRound;
    const float r = (values[i] - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const uint32_t power = (std::bit_cast<uint32_t>(shifted) + 127u) << 23;  // 2^n: the low bits of `shifted` hold n
    values[i] = p * std::bit_cast<float>(power);
  }
}

// With independent accumulators like find_peak.
double sum_of(const float* values, size_t count) {
  double sums[kLanes] = {};
  const size_t whole = count / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) sums[j] += values[i + j];
  }
  for (size_t i = whole; i < count; ++i) sums[0] += values[i];
  return std::accumulate(sums, sums + kLanes, 0.0);
}

// Nearly all tokens cost one comparison.
std::vector<int32_t> best_tokens(const float* logits, int32_t vocabulary, int32_t count) {
  const auto better = [logits](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  std::vector<int32_t> heap;  // with the worst of the best on top
  if (count == 0) return heap;
  for (int32_t i = 0; i < vocabulary; ++i) {
    if (static_cast<int32_t>(heap.size()) < count) {
      heap.push_back(i);
      std::push_heap(heap.begin(), heap.end(), better);
    } else if (logits[i] > logits[heap.front()]) {
      std::pop_heap(heap.begin(), heap.end(), better);
      heap.back() = i;
      std::push_heap(heap.begin(), heap.end(), better);
    }
  }
  std::sort_heap(heap.begin(), heap.end(), better);
  return heap;
}

}  // namespace wf
