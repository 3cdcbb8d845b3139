// Choosing the next token from logits, proposing tokens and verifying proposals. No step sorts the whole vocabulary.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace wf {

struct SamplingOptions {
  float temperature = 0;         // 0: the most likely token
  int32_t top_k = 0;             // 0: all
  float top_p = 1;               // 1: all
  float min_p = 0;               // 0: all
  float repetition_penalty = 1;  // 1: none
  uint64_t seed = 0;
  float presence_penalty = 0;                   // subtracted from the logits of tokens of the answer
  float frequency_penalty = 0;                  // the same, for each time they occur
  std::vector<std::pair<int32_t, float>> bias;  // added to the logits of tokens
};

struct Sample {
  int32_t token = 0;
  float logprob = 0;                            // of `token`, natural logarithm; only when asked for
  std::vector<std::pair<int32_t, float>> best;  // the most likely tokens with their logprobs, best first
};

// A token drawn from a distribution q, with what of q is not 0: the tokens in rising order, their probabilities.
struct Proposal {
  int32_t token = 0;
  std::vector<int32_t> ids;
  std::vector<float> probabilities;
};

struct Verdict {
  bool accepted = false;
  Sample sample;  // the proposed token, or the one that takes its place
};

// The random number of draw `counter` under `seed`, in [0, 1): a pure function, so a sequence can be repeated from
// any draw on. Two rounds of the splitmix64 finalizer (Steele, Lea, Flood, OOPSLA 2014).
double uniform(uint64_t seed, uint64_t counter);

class Sampler {
 public:
  // Throws InputError for an option outside its range.
  Sampler(int32_t vocabulary, const SamplingOptions& options);

  // Tokens of the text: each one chosen, or, with `prompt`, those before the answer, to which the repetition penalty
  // alone applies.
  void accept(const int32_t* tokens, int64_t count, bool prompt = false);

  // Repetition penalty, presence and frequency penalty, bias, mask, temperature, top-k, top-p, min-p, draw, in this
  // order (that of transformers, as far as it has them). mask: null, or mask_words() words whose bit i % 32 of word
  // i / 32 says that token i is allowed. logprobs: -1 for none, else how many best tokens to list; they are those of
  // the unmodified logits. Equal logits: the smaller token first. Throws FormatError when the logits hold NaN or have
  // no finite maximum, InputError when the mask allows no token that the model can give.
  Sample sample(const float* logits, int32_t logprobs, const uint32_t* mask = nullptr);
  size_t mask_words() const { return (static_cast<size_t>(vocabulary_) + 31) / 32; }

  // A token drawn from q, what the filters make of `logits`. Until the next accept(), the penalties of further
  // proposals apply to it too. (speculative.cc)
  Proposal propose(const float* logits);

  // With p, what the filters make of `logits`: accepts the proposal with probability min(1, p(token) / q(token)), else
  // draws from max(0, p - q), normalised. Either way the token is distributed like one of sample(), whatever q is, if
  // the proposal was drawn from q. Throws like sample(), and InputError for a proposal of another vocabulary.
  Verdict verify(const float* logits, const Proposal& proposal, int32_t logprobs);

 private:
  // Random numbers of different uses never meet: sampling without proposals draws the same tokens whatever else is
  // asked for in between.
  enum Stream : uint8_t { kTokens, kProposals, kTests, kStreams };
  // Logits after penalties, bias and mask: the given ones, or those in penalized_.
  struct Penalized {
    const float* logits;
    float peak;
    int32_t best;
  };
  double random(Stream stream);
  Penalized penalize(const float* logits, bool guesses, const uint32_t* mask = nullptr);
  void repel(bool guesses);  // lowers penalized_ for tokens of the text
  // Fills ids_ (in rising order) and weights_ with the distribution that the filters leave, not normalised; for
  // temperature 0 the best token alone.
  void filter(const Penalized& input);
  // Fills ids_ and weights_ = exp((logit - peak) / temperature) of the tokens that top-k leaves.
  void weigh(const float* logits, float peak);
  // The least weight that top-p keeps, and of equal ones the last place in weights_ that it keeps.
  std::pair<float, size_t> top_p_bound() const;
  void drop_light();  // sets the weights of tokens that top-p or min-p excludes to 0
  // The place in weights_ of the token at `part`, in [0, 1), of their sum.
  size_t pick(double part) const;
  int32_t choose(const Penalized& input, Stream stream);
  int32_t token_at(size_t place) const { return ids_.empty() ? static_cast<int32_t>(place) : ids_[place]; }
  size_t place_of(int32_t token) const;     // in weights_; their number when the token is not among them
  void subtract(const Proposal& proposal);  // weights_ = max(0, p - q)
  void add_logprobs(const float* logits, int32_t logprobs, Sample& sample);
  // weights_ = exp(logit - peak) of all tokens; returns their sum.
  double softmax(const float* logits, float peak);

  const int32_t vocabulary_;
  const SamplingOptions options_;
  std::array<uint64_t, kStreams> draws_ = {};
  std::vector<bool> seen_flags_;
  std::vector<int32_t> seen_;
  std::unordered_map<int32_t, int32_t> counts_;  // how often a token is in the answer
  std::vector<int32_t> guesses_;                 // proposed since the last accept()
  std::vector<float> penalized_;
  std::vector<int32_t> ids_;  // empty: place and token are the same
  std::vector<float> weights_;
};

}  // namespace wf
