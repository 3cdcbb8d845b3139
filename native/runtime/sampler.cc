#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>

#include "errors.h"
#include "vocabulary.h"

namespace wf {

namespace {

void check(const char* name, double found, bool allowed, const char* range) {
  if (!allowed) throw InputError(message(name, ": found ", found, ", allowed is ", range));
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

double Sampler::random(Stream stream) {
  const auto number = static_cast<size_t>(stream);
  return uniform(options_.seed, (static_cast<uint64_t>(stream) << 56) | draws_[number]++);
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
  guesses_.clear();
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
  Sample result;
  result.token = choose(penalize(logits, false), kTokens);
  add_logprobs(logits, logprobs, result);
  return result;
}

Sampler::Penalized Sampler::penalize(const float* logits, bool guesses) {
  const float* used = logits;
  auto [peak, best] = find_peak(logits, vocabulary_);
  if (options_.repetition_penalty != 1 && (!seen_.empty() || (guesses && !guesses_.empty()))) {
    // Source: arXiv 1909.05858, section 4.1, with the sign rule of transformers for negative logits.
    penalized_.assign(logits, logits + vocabulary_);
    const auto lower = [this](int32_t id) {
      float& logit = penalized_[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    };
    std::for_each(seen_.begin(), seen_.end(), lower);
    if (guesses) std::for_each(guesses_.begin(), guesses_.end(), lower);
    used = penalized_.data();
    std::tie(peak, best) = find_peak(used, vocabulary_);
  }
  return {used, peak, best};
}

void Sampler::filter(const Penalized& input) {
  if (options_.temperature == 0) {
    ids_.assign(1, input.best);
    weights_.assign(1, 1.0f);
    return;
  }
  weigh(input.logits, input.peak);
  if (options_.top_p < 1 || options_.min_p > 0) drop_light();
}

int32_t Sampler::choose(const Penalized& input, Stream stream) {
  filter(input);
  return options_.temperature == 0 ? input.best : token_at(pick(random(stream)));
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
    weights_[i] = (heavy & (weight >= options_.min_p)) ? weight : 0.0f;
  }
}

size_t Sampler::pick(double part) const {
  // sums of pieces first, so that the walk to the drawn token adds up few numbers
  constexpr size_t kPiece = 256;
  std::vector<double> sums;
  for (size_t start = 0; start < weights_.size(); start += kPiece) {
    sums.push_back(sum_of(weights_.data() + start, std::min(kPiece, weights_.size() - start)));
  }
  double left = 0;
  for (const double sum : sums) left += sum;
  left *= part;
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
  return chosen;
}

double Sampler::softmax(const float* logits, float peak) {
  weights_.resize(static_cast<size_t>(vocabulary_));
  for (size_t i = 0; i < weights_.size(); ++i) weights_[i] = logits[i] - peak;
  exp_below_zero(weights_.data(), weights_.size());
  return sum_of(weights_.data(), weights_.size());
}

void Sampler::add_logprobs(const float* logits, int32_t logprobs, Sample& sample) {
  if (logprobs < 0) return;
  const float peak = find_peak(logits, vocabulary_).first;
  const auto log_total = static_cast<float>(std::log(softmax(logits, peak)));
  sample.logprob = logits[sample.token] - peak - log_total;
  for (const int32_t token : best_tokens(logits, vocabulary_, std::min(logprobs, vocabulary_))) {
    sample.best.emplace_back(token, logits[token] - peak - log_total);
  }
}

}  // namespace wf
