// Speculative sampling: tokens are proposed from one distribution and verified against another.
// Source: arXiv 2211.17192, section 2.3, and arXiv 2302.01318, algorithm 2.
#include <algorithm>

#include "errors.h"
#include "sampler.h"
#include "vocabulary.h"

namespace wf {

Proposal Sampler::propose(const float* logits) {
  Proposal proposal;
  proposal.token = choose(penalize(logits, true), kProposals);
  const double total = sum_of(weights_.data(), weights_.size());
  const auto kept = weights_.size() - static_cast<size_t>(std::count(weights_.begin(), weights_.end(), 0.0f));
  proposal.ids.reserve(kept);
  proposal.probabilities.reserve(kept);
  for (size_t place = 0; place < weights_.size(); ++place) {
    if (weights_[place] == 0) continue;
    proposal.ids.push_back(token_at(place));
    proposal.probabilities.push_back(static_cast<float>(weights_[place] / total));
  }
  guesses_.push_back(proposal.token);
  return proposal;
}

Verdict Sampler::verify(const float* logits, const Proposal& proposal, int32_t logprobs) {
  if (proposal.ids.empty() || proposal.ids.back() >= vocabulary_) {
    throw InputError(message("proposal: found one of another vocabulary, the sampler was made for ", vocabulary_));
  }
  const Penalized input = penalize(logits, false);
  filter(input);
  const size_t place = place_of(proposal.token);
  const double p = place == weights_.size() ? 0 : weights_[place] / sum_of(weights_.data(), weights_.size());
  const auto at = std::lower_bound(proposal.ids.begin(), proposal.ids.end(), proposal.token) - proposal.ids.begin();
  const double q = proposal.probabilities[static_cast<size_t>(at)];
  Verdict verdict;
  // With temperature 0 p is 0 or 1, and nothing is left to chance.
  verdict.accepted = options_.temperature == 0 ? p > 0 : random(kTests) * q < p;
  verdict.sample.token = proposal.token;
  if (!verdict.accepted) {
    subtract(proposal);
    // p and q may agree up to rounding; then p itself is what is left
    if (sum_of(weights_.data(), weights_.size()) == 0) filter(input);
    verdict.sample.token = options_.temperature == 0 ? input.best : token_at(pick(random(kTokens)));
  }
  add_logprobs(logits, logprobs, verdict.sample);
  return verdict;
}

size_t Sampler::place_of(int32_t token) const {
  if (ids_.empty()) return static_cast<size_t>(token);
  const auto found = std::lower_bound(ids_.begin(), ids_.end(), token);
  return found == ids_.end() || *found != token ? weights_.size() : static_cast<size_t>(found - ids_.begin());
}

void Sampler::subtract(const Proposal& proposal) {
  const double total = sum_of(weights_.data(), weights_.size());
  for (float& weight : weights_) weight = static_cast<float>(weight / total);
  for (size_t i = 0; i < proposal.ids.size(); ++i) {
    const size_t place = place_of(proposal.ids[i]);
    if (place < weights_.size()) weights_[place] = std::max(0.0f, weights_[place] - proposal.probabilities[i]);
  }
}

}  // namespace wf
