// Choosing the next token from logits. No step sorts the whole vocabulary.
#pragma once
#include <cstddef>
#include <cstdint>
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
};

struct Sample {
  int32_t token = 0;
  float logprob = 0;                            // of `token`, natural logarithm; only when asked for
  std::vector<std::pair<int32_t, float>> best;  // the most likely tokens with their logprobs, best first
};

// The random number of draw `counter` under `seed`, in [0, 1): a pure function, so a sequence can be repeated from
// any draw on. Two rounds of the splitmix64 finalizer (Steele, Lea, Flood, OOPSLA 2014).
double uniform(uint64_t seed, uint64_t counter);

class Sampler {
 public:
  // Throws InputError for an option outside its range.
  Sampler(int32_t vocabulary, const SamplingOptions& options);

  // Tokens that the repetition penalty applies to: the prompt, and each token chosen.
  void accept(const int32_t* tokens, int64_t count);

  // Penalty, temperature, top-k, top-p, min-p, draw, in this order (that of transformers). logprobs: -1 for none,
  // else how many best tokens to list; they are those of the unmodified logits. Equal logits: the smaller token
  // first. Throws FormatError when the logits hold NaN or have no finite maximum.
  Sample sample(const float* logits, int32_t logprobs);

 private:
  int32_t draw(const float* logits, float peak);
  // Fills ids_ (in rising order) and weights_ = exp((logit - peak) / temperature) of the tokens that top-k leaves.
  void weigh(const float* logits, float peak);
  // The least weight that top-p keeps, and of equal ones the last place in weights_ that it keeps.
  std::pair<float, size_t> top_p_bound() const;
  void drop_light();  // sets the weights of tokens that top-p or min-p excludes to 0
  void add_logprobs(const float* logits, float peak, int32_t logprobs, Sample& sample) const;

  const int32_t vocabulary_;
  const SamplingOptions options_;
  uint64_t draws_ = 0;
  std::vector<bool> seen_flags_;
  std::vector<int32_t> seen_;
  std::vector<float> penalized_;
  std::vector<int32_t> ids_;  // empty: place and token are the same
  std::vector<float> weights_;
};

}  // namespace wf
