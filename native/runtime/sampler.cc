#include "sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
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
  const auto mild = [](float found) { return found >= -100 && found <= 100; };
  check("presence_penalty", o.presence_penalty, mild(o.presence_penalty), "a number from -100 to 100");
  check("frequency_penalty", o.frequency_penalty, mild(o.frequency_penalty), "a number from -100 to 100");
  for (const auto& [token, bias] : o.bias) {
    check("bias", token, token >= 0 && token < vocabulary, "a token of the vocabulary");
    check("bias", bias, mild(bias), "a number from -100 to 100");
  }
}

void Sampler::accept(const int32_t* tokens, int64_t count, bool prompt) {
  guesses_.clear();
  for (int64_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocabulary_) {
      throw InputError(message("tokens: found ", tokens[i], ", allowed are 0 to ", vocabulary_ - 1));
    }
    if (!prompt) ++counts_[tokens[i]];
    const auto index = static_cast<size_t>(tokens[i]);
    if (seen_flags_[index]) continue;
    seen_flags_[index] = true;
    seen_.push_back(tokens[i]);
  }
}

Sample Sampler::sample(const float* logits, int32_t logprobs, const uint32_t* mask) {
  Sample result;
  result.token = choose(penalize(logits, false, mask), kTokens);
  add_logprobs(logits, logprobs, result);
  return result;
}

Sampler::Penalized Sampler::penalize(const float* logits, bool guesses, const uint32_t* mask) {
  auto [peak, best] = find_peak(logits, vocabulary_);
  const auto& o = options_;
  const bool repels = o.repetition_penalty != 1 || o.presence_penalty != 0 || o.frequency_penalty != 0;
  const bool text = repels && (!seen_.empty() || (guesses && !guesses_.empty()));
  if (!text && o.bias.empty() && mask == nullptr) return {logits, peak, best};
  penalized_.assign(logits, logits + vocabulary_);
  if (text) repel(guesses);
  for (const auto& [token, bias] : o.bias) penalized_[static_cast<size_t>(token)] += bias;
  if (mask != nullptr) {
    bool any = false;
    for (size_t i = 0; i < penalized_.size(); ++i) {
      if ((mask[i / 32] >> (i % 32) & 1) == 0) penalized_[i] = -std::numeric_limits<float>::infinity();
      any |= penalized_[i] != -std::numeric_limits<float>::infinity();
    }
    if (!any) throw InputError("mask: found no token that is allowed and that the model can give");
  }
  std::tie(peak, best) = find_peak(penalized_.data(), vocabulary_);
  return {penalized_.data(), peak, best};
}

void Sampler::repel(bool guesses) {
  const auto& o = options_;
  const auto at = [this](int32_t id) -> float& { return penalized_[static_cast<size_t>(id)]; };
  if (o.repetition_penalty != 1) {
    // Source: arXiv 1909.05858, section 4.1, with the sign rule of transformers for negative logits.
    const auto lower = [&](int32_t id) {
      float& logit = at(id);
      logit = logit > 0 ? logit / o.repetition_penalty : logit * o.repetition_penalty;
    };
    std::for_each(seen_.begin(), seen_.end(), lower);
    for (size_t i = 0; guesses && i < guesses_.size(); ++i) {
      const auto here = guesses_.begin() + static_cast<ptrdiff_t>(i);
      const bool known = seen_flags_[static_cast<size_t>(*here)] || std::find(guesses_.begin(), here, *here) != here;
      if (!known) lower(*here);
    }
  }
  if (o.presence_penalty == 0 && o.frequency_penalty == 0) return;
  // Source: OpenAI's API reference: logit - count * frequency_penalty - (count > 0) * presence_penalty.
  const auto subtract = [&](int32_t id, int32_t count) {
    at(id) -= static_cast<float>(count) * o.frequency_penalty + o.presence_penalty;
  };
  if (!guesses || guesses_.empty()) {
    for (const auto& [id, count] : counts_) subtract(id, count);
    return;
  }
  auto counts = counts_;
  for (const int32_t id : guesses_) ++counts[id];
  for (const auto& [id, count] : counts) subtract(id, count);
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
