// The head of a pass: logits of the rows asked for, what their softmax says of each, and states without logits.
#include <algorithm>
#include <cmath>
#include <limits>

#include "forward.h"

namespace wf {

void Pass::head(Worker& worker) noexcept {
  const bool choosing = choices_.token != nullptr;
  if (logits_ == nullptr && !choosing) return;
  const auto rows = static_cast<int32_t>(c_.shared.wanted.size());
  const int64_t vocabulary = c_.config.vocab_size;
  norm_head_rows(worker, rows);
  const int32_t most = choosing ? std::min(rows, kHeadRows) : rows;
  for (int32_t first = 0; first < rows; first += most) {
    const int32_t count = std::min(most, rows - first);
    float* out = logits_ != nullptr ? logits_ + first * vocabulary : c_.shared.logits.data();
    head_product(worker, first, count, out);
    if (choosing) choose(worker, first, count, out);
  }
}

void Pass::give_hidden(Worker& worker) noexcept {
  if (count_ == 1 && worker.index() != 0) return;  // every thread has the row
  TokenScratch& s = scratch(worker);
  const int32_t hidden = c_.config.hidden_size;
  each_row(worker, static_cast<int32_t>(c_.shared.hidden_rows.size()), [&](int32_t place) {
    const int32_t row = c_.shared.hidden_rows[static_cast<size_t>(place)];
    float* residual = s.residual.data() + static_cast<int64_t>(row) * hidden;
    float* out = hidden_ + static_cast<int64_t>(place) * hidden;
    add_to_residual(residual, c_.shared.hidden.data() + static_cast<int64_t>(row) * c_.shared.hidden_stride,
                    c_.weights.layers.back().ffn_out_norm, out);
    c_.kernels.rms_norm(residual, c_.weights.final_norm, c_.config.rms_norm_eps, hidden, out);
  });
}

void Pass::norm_head_rows(Worker& worker, int32_t rows) noexcept {
  TokenScratch& s = scratch(worker);
  const int32_t hidden = c_.config.hidden_size;
  const int64_t blocks = column_blocks(hidden);
  each_row(worker, rows, [&](int32_t place) {  // the wanted rows move together
    const int32_t row = c_.shared.wanted[static_cast<size_t>(place)];
    float* residual = s.residual.data() + static_cast<int64_t>(row) * hidden;
    float* normed = s.normed.data() + static_cast<int64_t>(place) * hidden;
    add_to_residual(residual, c_.shared.hidden.data() + static_cast<int64_t>(row) * c_.shared.hidden_stride,
                    c_.weights.layers.back().ffn_out_norm, normed);
    c_.kernels.rms_norm(residual, c_.weights.final_norm, c_.config.rms_norm_eps, hidden, normed);
    if (c_.weights.head.f16 != nullptr) return;
    c_.kernels.quantize_wide(normed, hidden, s.high.data() + place * blocks * kColumnsPerBlock,
                             s.low.data() + place * blocks * kColumnsPerBlock, s.half_sums.data() + place * blocks * 2,
                             s.wide_scales.data() + place);
  });
}

void Pass::head_product(Worker& worker, int32_t first, int32_t count, float* out) noexcept {
  const TokenScratch& s = scratch(worker);
  const Table& table = c_.weights.head;
  const int32_t hidden = c_.config.hidden_size;
  const int32_t vocabulary = c_.config.vocab_size;
  const int64_t blocks = column_blocks(hidden);
  const int64_t codes = first * blocks * kColumnsPerBlock;
  const WideActivations wide{s.high.data() + codes, s.low.data() + codes, s.half_sums.data() + first * blocks * 2,
                             s.wide_scales.data() + first};
  const float* normed = s.normed.data() + static_cast<int64_t>(first) * hidden;
  const int64_t row_blocks = (vocabulary + kRowsPerBlock - 1) / kRowsPerBlock;
  each_block(worker, row_blocks, table.block_bytes(), [&](int64_t begin, int64_t end) {
    const auto from = static_cast<int32_t>(begin) * kRowsPerBlock;
    const auto to = static_cast<int32_t>(std::min<int64_t>(end * kRowsPerBlock, vocabulary));
    if (table.f16 == nullptr) {
      c_.kernels.table_gemm(&table.matrix, &wide, count, static_cast<int32_t>(begin), static_cast<int32_t>(end), out,
                            vocabulary);
    } else {  // its sums would depend on how many tokens there are: one at a time, over rows that stay in the cache
      for (int32_t row = from; row < to; row += kRowsPerBlock) {
        for (int32_t t = 0; t < count; ++t) {
          c_.kernels.f16_gemm(table.f16, hidden, normed + static_cast<int64_t>(t) * hidden, 1, row,
                              std::min(row + kRowsPerBlock, to), out + static_cast<int64_t>(t) * vocabulary, 0);
        }
      }
    }
    for (const int32_t token : c_.config.banned_tokens) {
      if (token < from || token >= to) continue;
      for (int32_t t = 0; t < count; ++t) {
        out[static_cast<int64_t>(t) * vocabulary + token] = -std::numeric_limits<float>::infinity();
      }
    }
  });
}

void Pass::choose(Worker& worker, int32_t first, int32_t count, const float* logits) noexcept {
  const int64_t vocabulary = c_.config.vocab_size;
  const int64_t pieces = softmax_pieces(c_.config);
  SoftmaxPart* parts = c_.shared.parts.data();
  worker.chunks(count * pieces, 1, count * pieces, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % pieces * kSoftmaxPiece;
      const auto width = static_cast<int32_t>(std::min<int64_t>(kSoftmaxPiece, vocabulary - from));
      c_.kernels.softmax_sums(logits + i / pieces * vocabulary + from, width, &parts[i].peak, &parts[i].total,
                              &parts[i].slope);
    }
  });
  worker.chunks(count, 1, count, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      choose_row(static_cast<int32_t>(first + t), logits + t * vocabulary, parts + t * pieces);
    }
  });
}

// With Z = sum e^(x - peak) and S = sum (x - peak) e^(x - peak): the best token has the probability 1 / Z, and the
// entropy is ln Z - S / Z.
void Pass::choose_row(int32_t place, const float* logits, const SoftmaxPart* parts) noexcept {
  const int32_t pieces = softmax_pieces(c_.config);
  const auto lower = [](const SoftmaxPart& a, const SoftmaxPart& b) { return a.peak < b.peak; };
  const SoftmaxPart* best = std::max_element(parts, parts + pieces, lower);  // the first of equal ones
  double total = 0, slope = 0;
  for (int32_t i = 0; i < pieces; ++i) {
    const double below = static_cast<double>(parts[i].peak) - static_cast<double>(best->peak);
    const double weight = std::exp(below);
    total += weight * parts[i].total;
    slope += weight * (parts[i].slope + below * parts[i].total);
  }
  int32_t token = -1;
  double probability = std::numeric_limits<double>::quiet_NaN(), entropy = probability;
  if (std::isfinite(total) && std::isfinite(slope)) {
    const float* from = logits + (best - parts) * kSoftmaxPiece;
    token = static_cast<int32_t>(std::find(from, logits + c_.config.vocab_size, best->peak) - logits);
    probability = 1 / total;
    entropy = std::max(0.0, std::log(total) - slope / total);
  }
  choices_.token[place] = token;
  choices_.probability[place] = static_cast<float>(probability);
  choices_.entropy[place] = static_cast<float>(entropy);
}

}  // namespace wf
