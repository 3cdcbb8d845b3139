// What rows of logits say of given tokens: log-probabilities, natural logarithm, of the unmodified logits.
#pragma once
#include <cstdint>

namespace wf {

// For each of `rows` rows of logits [rows, vocabulary]: the logprob of its token, NaN for the token -1; and its `count`
// best tokens with theirs, best first (of equal ones the lower token), in [rows, count]. Throws InputError for another
// token outside the vocabulary or a count beyond it, FormatError when logits hold NaN or have no finite maximum.
struct RowScores {
  float* logprobs;
  int32_t* best;
  float* best_logprobs;
};
void score_rows(const float* logits, int64_t rows, int32_t vocabulary, const int32_t* tokens, int32_t count,
                const RowScores& out);

}  // namespace wf
