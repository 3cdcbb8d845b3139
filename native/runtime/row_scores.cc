#include "row_scores.h"

#include <cmath>
#include <limits>
#include <vector>

#include "errors.h"
#include "vocabulary.h"

namespace wf {

void score_rows(const float* logits, int64_t rows, int32_t vocabulary, const int32_t* tokens, int32_t count,
                const RowScores& out) {
  if (count < 0 || count > vocabulary) {
    throw InputError(message("count: found ", count, ", allowed are 0 to ", vocabulary));
  }
  std::vector<float> weights(static_cast<size_t>(vocabulary));
  for (int64_t row = 0; row < rows; ++row, logits += vocabulary) {
    const int32_t token = tokens[row];
    if (token < -1 || token >= vocabulary) {
      throw InputError(message("tokens: found ", token, " at index ", row, ", allowed are 0 to ", vocabulary - 1,
                               ", or -1 for none"));
    }
    const float peak = find_peak(logits, vocabulary).first;
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = logits[i] - peak;
    exp_below_zero(weights.data(), weights.size());
    const auto log_total = static_cast<float>(std::log(sum_of(weights.data(), weights.size())));
    out.logprobs[row] = token == -1 ? std::numeric_limits<float>::quiet_NaN() : logits[token] - peak - log_total;
    int64_t place = row * count;
    for (const int32_t best : best_tokens(logits, vocabulary, count)) {
      out.best[place] = best;
      out.best_logprobs[place++] = logits[best] - peak - log_total;
    }
  }
}

}  // namespace wf
