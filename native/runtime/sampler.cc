#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "errors.h"

namespace wf {

namespace {

void check(const char* name, double found, bool allowed, const char* range) {
  if (!allowed) throw InputError(message(name, ": found ", found, ", allowed is ", range));
}

constexpr int32_t kLanes = 16;  // independent accumulators, so that the compiler may use vectors

// The largest logit and the first token that has it.
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

// values[i] = exp(values[i]) for values <= 0, to two units of the last place, without calls so that it becomes vector
// code: 2^n * e^r with |r| <= ln(2) / 2 and the Taylor polynomial of degree 7 (its remainder is 2e-9). Below -87.7 it
// is 0: there n is -127, and 2^n comes out as the float of all bits 0.
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

// The sum in float64, with independent accumulators like find_peak.
double sum_of(const float* values, size_t count) {
  double sums[kLanes] = {};
  const size_t whole = count / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) sums[j] += values[i + j];
  }
  for (size_t i = whole; i < count; ++i) sums[0] += values[i];
  return std::accumulate(sums, sums + kLanes, 0.0);
}

// The best `count` tokens, best first; of equal ones the smaller first. Nearly all tokens cost one comparison.
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

uint64_t mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

double uniform(uint64_t seed, uint64_t counter) {
  return static_cast<double>(mix(mix(seed) ^ counter) >> 11) * 0x1p-53;
}

Sampler::Sampler(int32_t vocabulary, const SamplingOptions& options)
    : vocabulary_(vocabulary), options_(options), seen_flags_(static_cast<size_t>(std::max(vocabulary, 0))) {
  const auto& o = options_;
  check("vocabulary", vocabulary, vocabulary > 0, "a positive integer");
  check("temperature", o.temperature, o.temperature >= 0 && o.temperature <= 100, "a number from 0 to 100");
  check("top_k", o.top_k, o.top_k >= 0, "0 (all) or a positive integer");
  check("top_p", o.top_p, o.top_p > 0 && o.top_p <= 1, "a number above 0 and at most 1");
  check("min_p", o.min_p, o.min_p >= 0 && o.min_p <= 1, "a number from 0 to 1");
  check("repetition_penalty", o.repetition_penalty, o.repetition_penalty >= 0.01f && o.repetition_penalty <= 100,
        "a number from 0.01 to 100");
}

void Sampler::accept(const int32_t* tokens, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocabulary_) {
      throw InputError(message("tokens: found ", tokens[i], ", allowed are 0 to ", vocabulary_ - 1));
    }
    const auto index = static_cast<size_t>(tokens[i]);
    if (seen_flags_[index]) continue;
    seen_flags_[index] = true;
    seen_.push_back(tokens[i]);
  }
}

Sample Sampler::sample(const float* logits, int32_t logprobs) {
  auto [peak, token] = find_peak(logits, vocabulary_);
  Sample result;
  const float* used = logits;
  float used_peak = peak;
  if (options_.repetition_penalty != 1 && !seen_.empty()) {
    // Source: arXiv 1909.05858, section 4.1, with the sign rule of transformers for negative logits.
    penalized_.assign(logits, logits + vocabulary_);
    for (const int32_t id : seen_) {
      float& logit = penalized_[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    }
    used = penalized_.data();
    std::tie(used_peak, token) = find_peak(used, vocabulary_);
  }
  result.token = options_.temperature == 0 ? token : draw(used, used_peak);
  if (logprobs >= 0) add_logprobs(logits, peak, logprobs, result);
  return result;
}

void Sampler::weigh(const float* logits, float peak) {
  const float inverse = 1.0f / options_.temperature;
  if (options_.top_k == 0 || options_.top_k >= vocabulary_) {
    ids_.clear();
    weights_.resize(static_cast<size_t>(vocabulary_));
    for (size_t i = 0; i < weights_.size(); ++i) weights_[i] = (logits[i] - peak) * inverse;
  } else {
    ids_ = best_tokens(logits, vocabulary_, options_.top_k);
    std::sort(ids_.begin(), ids_.end());
    weights_.clear();
    for (const int32_t id : ids_) weights_.push_back((logits[id] - peak) * inverse);
  }
  exp_below_zero(weights_.data(), weights_.size());
}

std::pair<float, size_t> Sampler::top_p_bound() const {
  // A histogram over the upper bits of the weights finds the narrow range that holds the bound; only that is sorted.
  // Positive floats are ordered like their bits; 1.0, the largest weight, is 0x3f800000.
  constexpr int kShift = 20;
  const auto bin_of = [](float weight) { return std::bit_cast<uint32_t>(weight) >> kShift; };
  std::vector<double> mass((0x3f800000u >> kShift) + 1);
  for (const float weight : weights_) mass[bin_of(weight)] += weight;
  double total = 0;
  for (const double part : mass) total += part;
  const double wanted = static_cast<double>(options_.top_p) * total;
  double sum = 0;
  size_t bin = mass.size() - 1;
  while (bin > 0 && sum + mass[bin] < wanted) sum += mass[bin--];
  std::vector<std::pair<float, size_t>> range;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (bin_of(weights_[i]) == bin) range.emplace_back(weights_[i], i);
  }
  const auto heavier = [](const std::pair<float, size_t>& one, const std::pair<float, size_t>& other) {
    return one.first > other.first || (one.first == other.first && one.second < other.second);
  };
  std::sort(range.begin(), range.end(), heavier);
  for (const auto& candidate : range) {
    sum += candidate.first;
    if (sum >= wanted) return candidate;
  }
  return range.empty() ? std::pair<float, size_t>{0.0f, weights_.size()} : range.back();
}

void Sampler::drop_light() {
  float bound = 0;
  size_t last_equal = weights_.size();
  if (options_.top_p < 1) std::tie(bound, last_equal) = top_p_bound();
  for (size_t i = 0; i < weights_.size(); ++i) {
    const float weight = weights_[i];
    // the heaviest token has weight exp(0) = 1, so min_p is a bound on the weight itself
    const bool heavy = (weight > bound) | ((weight == bound) & (i <= last_equal));
    weights_[i] = heavy & (weight >= options_.min_p) ? weight : 0.0f;
  }
}

int32_t Sampler::draw(const float* logits, float peak) {
  weigh(logits, peak);
  if (options_.top_p < 1 || options_.min_p > 0) drop_light();
  // sums of pieces first, so that the walk to the drawn token adds up few numbers
  constexpr size_t kPiece = 256;
  std::vector<double> sums;
  for (size_t start = 0; start < weights_.size(); start += kPiece) {
    sums.push_back(sum_of(weights_.data() + start, std::min(kPiece, weights_.size() - start)));
  }
  double left = 0;
  for (const double sum : sums) left += sum;
  left *= uniform(options_.seed, draws_++);
  size_t piece = 0;
  while (piece + 1 < sums.size() && left >= sums[piece]) left -= sums[piece++];
  size_t chosen = weights_.size();
  for (size_t i = piece * kPiece; i < weights_.size(); ++i) {
    if (weights_[i] == 0) continue;
    chosen = i;
    left -= weights_[i];
    if (left < 0) break;
  }
  if (chosen == weights_.size()) {  // rounding led behind the last token of the last piece
    while (weights_[--chosen] == 0) {
    }
  }
  return ids_.empty() ? static_cast<int32_t>(chosen) : ids_[chosen];
}

void Sampler::add_logprobs(const float* logits, float peak, int32_t logprobs, Sample& sample) const {
  std::vector<float> weights(logits, logits + vocabulary_);
  for (float& weight : weights) weight -= peak;
  exp_below_zero(weights.data(), weights.size());
  const double total = sum_of(weights.data(), weights.size());
  const auto log_total = static_cast<float>(std::log(total));
  sample.logprob = logits[sample.token] - peak - log_total;
  for (const int32_t token : best_tokens(logits, vocabulary_, std::min(logprobs, vocabulary_))) {
    sample.best.emplace_back(token, logits[token] - peak - log_total);
  }
}

}  // namespace wf
