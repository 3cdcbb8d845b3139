#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "errors.h"

namespace wf {

namespace {

void check(const char* name, double found, bool allowed, const char* range) {
  if (!allowed) throw InputError(message(name, ": found ", found, ", allowed is ", range));
}

// The largest logit and the first token that has it.
std::pair<float, int32_t> find_peak(const float* logits, int32_t count) {
  float peak = -std::numeric_limits<float>::infinity();
  int32_t token = 0;
  bool nan = false;
  for (int32_t i = 0; i < count; ++i) {
    nan |= std::isnan(logits[i]);
    if (logits[i] > peak) {
      peak = logits[i];
      token = i;
    }
  }
  if (nan || !std::isfinite(peak)) {
    throw FormatError(
        "logits: found NaN or infinity; the model's weights overflow float32, train or export it again");
  }
  return {peak, token};
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

void Sampler::select_top_k(const float* logits) {
  candidates_.clear();
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  const auto k = static_cast<size_t>(options_.top_k);
  // a heap of the best k so far with the worst of them on top: nearly all tokens cost one comparison
  for (int32_t i = 0; i < vocabulary_; ++i) {
    if (candidates_.size() < k) {
      candidates_.push_back({i, logits[i], 0});
      std::push_heap(candidates_.begin(), candidates_.end(), better);
    } else if (logits[i] > candidates_.front().logit) {
      std::pop_heap(candidates_.begin(), candidates_.end(), better);
      candidates_.back() = {i, logits[i], 0};
      std::push_heap(candidates_.begin(), candidates_.end(), better);
    }
  }
}

// Keeps the fewest candidates, heaviest first, whose weights reach top_p of `total`. Sorts growing pieces only.
void Sampler::keep_top_p(double total) {
  const auto heavier = [](const Candidate& a, const Candidate& b) {
    return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
  };
  const double wanted = static_cast<double>(options_.top_p) * total;
  double sum = 0;
  size_t done = 0;
  for (size_t piece = 64; done < candidates_.size(); piece *= 8) {
    const size_t end = std::min(candidates_.size(), done + piece);
    const auto first = candidates_.begin() + static_cast<std::ptrdiff_t>(done);
    std::partial_sort(first, candidates_.begin() + static_cast<std::ptrdiff_t>(end), candidates_.end(), heavier);
    for (; done < end; ++done) {
      sum += candidates_[done].weight;
      if (sum >= wanted) {
        candidates_.resize(done + 1);
        return;
      }
    }
  }
}

int32_t Sampler::draw(const float* logits, float peak) {
  if (options_.top_k > 0 && options_.top_k < vocabulary_) {
    select_top_k(logits);
  } else {
    candidates_.clear();
    for (int32_t i = 0; i < vocabulary_; ++i) candidates_.push_back({i, logits[i], 0});
  }
  double total = 0;
  for (Candidate& c : candidates_) {
    c.weight = std::exp((c.logit - peak) / options_.temperature);
    total += c.weight;
  }
  if (options_.top_p < 1) keep_top_p(total);
  if (options_.top_p < 1 || options_.min_p > 0) {
    // the heaviest candidate has weight exp(0) = 1, so min_p is a bound on the weight itself
    total = 0;
    std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < options_.min_p; });
    for (const Candidate& c : candidates_) total += c.weight;
  }
  const double target = uniform(options_.seed, draws_++) * total;
  double sum = 0;
  int32_t last = candidates_.front().token;
  for (const Candidate& c : candidates_) {
    if (c.weight == 0) continue;
    sum += c.weight;
    last = c.token;
    if (sum > target) break;
  }
  return last;
}

void Sampler::add_logprobs(const float* logits, float peak, int32_t logprobs, Sample& sample) const {
  double total = 0;
  for (int32_t i = 0; i < vocabulary_; ++i) total += std::exp(logits[i] - peak);
  const auto log_total = static_cast<float>(std::log(total));
  sample.logprob = logits[sample.token] - peak - log_total;
  std::vector<int32_t> order(static_cast<size_t>(vocabulary_));
  for (int32_t i = 0; i < vocabulary_; ++i) order[static_cast<size_t>(i)] = i;
  const int32_t count = std::min(logprobs, vocabulary_);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  for (int32_t i = 0; i < count; ++i) {
    const int32_t token = order[static_cast<size_t>(i)];
    sample.best.emplace_back(token, logits[token] - peak - log_total);
  }
}

}  // namespace wf
