#include "forward.h"

#include <algorithm>
#include <cmath>

namespace wf {

namespace {

// out[i] = gelu(gate[i]) * up[i], GELU in its tanh form: arXiv 1606.08415, section 2. In no kernel table: a family of
// models needs it, and it is a small part of their time.
void gelu_tanh_mul(const float* gate, const float* up, int32_t n, float* out) {
  constexpr float kRootOfTwoOverPi = 0.7978845608f, kCubic = 0.044715f;
  for (int32_t i = 0; i < n; ++i) {
    const float x = gate[i];
    out[i] = 0.5f * x * (1.0f + std::tanh(kRootOfTwoOverPi * (x + kCubic * x * x * x))) * up[i];
  }
}

}  // namespace

void Pass::mark(Worker& worker, Part part) const noexcept {
  if (c_.profile != nullptr && worker.index() == 0) c_.profile->mark(part);
}

const Run& Pass::run_of(int32_t row) const noexcept {
  const auto before = [](int32_t wanted, const Run& run) { return wanted < run.first; };
  return *(std::upper_bound(c_.shared.runs.begin(), c_.shared.runs.end(), row, before) - 1);
}

void Pass::run(Worker& worker) noexcept {
  if (c_.profile != nullptr && worker.index() == 0) {
    worker.watch(c_.profile);
    c_.profile->start();
  }
  embed(worker);
  mark(worker, Part::kEmbed);
  for (size_t i = 0; i < c_.weights.layers.size(); ++i) {
    const Layer& layer = c_.weights.layers[i];
    norm_and_quantize(worker, i == 0 ? nullptr : c_.shared.hidden.data(),
                      i == 0 ? nullptr : c_.weights.layers[i - 1].ffn_out_norm, layer.input_norm);
    mark(worker, Part::kNorm);
    project(worker, layer);
    mark(worker, Part::kQkv);
    attention(worker, static_cast<int32_t>(i), layer);
    norm_and_quantize(worker, c_.shared.hidden.data(), layer.attn_out_norm, layer.post_norm);
    mark(worker, Part::kNorm);
    mlp(worker, layer);
  }
  if (!c_.shared.hidden_rows.empty() && hidden_ != nullptr) give_hidden(worker);
  if (!c_.shared.wanted.empty()) head(worker);
  mark(worker, Part::kHead);
}

void Pass::embed(Worker& worker) noexcept {
  TokenScratch& s = scratch(worker);
  const int32_t hidden = c_.config.hidden_size;
  const int32_t turns = c_.config.head_dim / 2;
  each_row(worker, count_, [&](int32_t row) {
    float* residual = s.residual.data() + static_cast<int64_t>(row) * hidden;
    c_.weights.embedding.row(c_.shared.ids[static_cast<size_t>(row)], residual);
    if (c_.config.embedding_scale != 1) {
      for (int32_t i = 0; i < hidden; ++i) residual[i] *= c_.config.embedding_scale;
    }
    const Run& run = run_of(row);
    const int32_t position = run.start + row - run.first;
    float* cosines = s.cosines.data() + static_cast<int64_t>(row) * turns * (c_.config.has_local_rope ? 2 : 1);
    float* sines = s.sines.data() + (cosines - s.cosines.data());
    c_.rope.angles(position, cosines, sines);
    if (c_.config.has_local_rope) c_.local_rope.angles(position, cosines + turns, sines + turns);
  });
}

void Pass::quantize(TokenScratch& s, int32_t token, const float* row, int32_t width, const float* norm, float epsilon,
                    bool keep) noexcept {
  const int64_t blocks = column_blocks(width);
  int8_t* q = s.quantized.data() + token * blocks * kColumnsPerBlock;
  int32_t* sums = s.block_sums.data() + token * blocks;
  float* scale = s.scales.data() + token;
  float* normed = s.normed.data() + static_cast<int64_t>(token) * width;
  if (norm == nullptr) {
    if (keep && normed != row) std::copy(row, row + width, normed);
    return c_.kernels.quantize(row, width, q, sums, scale);
  }
  c_.kernels.norm_quantize(row, norm, epsilon, width, normed, q, sums, scale);
}

void Pass::add_to_residual(float* residual, const float* added, const float* added_norm, float* normed) const noexcept {
  const int32_t hidden = c_.config.hidden_size;
  if (added_norm != nullptr) {
    c_.kernels.rms_norm(added, added_norm, c_.config.rms_norm_eps, hidden, normed);
    added = normed;
  }
  c_.kernels.add(residual, added, hidden);
}

void Pass::norm_and_quantize(Worker& worker, const float* added, const float* added_norm, const float* norm) noexcept {
  TokenScratch& s = scratch(worker);
  const int32_t hidden = c_.config.hidden_size;
  each_row(worker, count_, [&](int32_t row) {
    float* residual = s.residual.data() + static_cast<int64_t>(row) * hidden;
    if (added != nullptr) {
      add_to_residual(residual, added + static_cast<int64_t>(row) * c_.shared.hidden_stride, added_norm,
                      s.normed.data() + static_cast<int64_t>(row) * hidden);
    }
    quantize(s, row, residual, hidden, norm, c_.config.rms_norm_eps, false);
  });
}

void Pass::product(const TokenScratch& s, const Linear& linear, int64_t begin, int64_t end, Rows rows, float* out,
                   int32_t stride) noexcept {
  const auto first = static_cast<int32_t>(begin);
  const auto last = static_cast<int32_t>(end);
  const int64_t blocks = static_cast<int64_t>(rows.first) * linear.matrix.column_blocks;
  out += static_cast<int64_t>(rows.first) * stride;
  c_.kernels.ternary_gemm(&linear.matrix, s.quantized.data() + blocks * kColumnsPerBlock, s.block_sums.data() + blocks,
                          s.scales.data() + rows.first, rows.count, first, last, out, stride);
  if (linear.rank > 0) correct(linear, begin, end, rows, out, stride);
  if (linear.bias == nullptr) return;
  const int32_t output = first * kRowsPerBlock;
  const int32_t outputs = std::min(last * kRowsPerBlock, linear.matrix.rows) - output;
  for (int32_t t = 0; t < rows.count; ++t) {
    c_.kernels.add(out + static_cast<int64_t>(t) * stride + output, linear.bias + output, outputs);
  }
}

void Pass::reduce(Worker& worker, std::initializer_list<const Linear*> linears) noexcept {
  int64_t total = 0;
  for (const Linear* linear : linears) total += linear->rank;
  if (total == 0) return;
  const TokenScratch& s = scratch(worker);
  const int32_t columns = (*linears.begin())->matrix.columns;
  each_product(worker, total, int64_t{2} * columns, [&](int64_t begin, int64_t end, Rows rows) {
    for (const Linear* linear : linears) {
      const int64_t first = std::max<int64_t>(begin - linear->low_place, 0);
      const int64_t last = std::min<int64_t>(end - linear->low_place, linear->rank);
      if (first >= last) continue;
      // One token at a time: its sums must not depend on how many there are.
      for (int32_t t = rows.first; t < rows.first + rows.count; ++t) {
        c_.kernels.f16_gemm(linear->low_v, columns, s.normed.data() + static_cast<int64_t>(t) * columns, 1,
                            static_cast<int32_t>(first), static_cast<int32_t>(last), low(*linear, t), 0);
      }
    }
  });
}

void Pass::correct(const Linear& linear, int64_t begin, int64_t end, Rows rows, float* out, int32_t stride) noexcept {
  constexpr int32_t kOutputs = 64;
  float piece[kOutputs];
  const auto from = static_cast<int32_t>(begin) * kRowsPerBlock;
  const int32_t to = std::min(static_cast<int32_t>(end) * kRowsPerBlock, linear.matrix.rows);
  for (int32_t t = 0; t < rows.count; ++t) {
    for (int32_t first = from; first < to; first += kOutputs) {
      const int32_t count = std::min(kOutputs, to - first);
      c_.kernels.f16_gemm(linear.low_u + static_cast<int64_t>(first) * linear.rank, linear.rank,
                          low(linear, rows.first + t), 1, 0, count, piece, 0);
      c_.kernels.add(out + static_cast<int64_t>(t) * stride + first, piece, count);
    }
  }
}

void Pass::project(Worker& worker, const Layer& layer) noexcept {
  SharedScratch& shared = c_.shared;
  const TokenScratch& s = scratch(worker);
  struct Target {
    const Linear& linear;
    float* out;
    int32_t stride;
  };
  const Target targets[] = {{layer.q, shared.q.data(), shared.q_stride},
                            {layer.k, shared.k.data(), shared.kv_stride},
                            {layer.v, shared.v.data(), shared.kv_stride}};
  reduce(worker, {&layer.q, &layer.k, &layer.v});
  int64_t total = 0;
  for (const Target& target : targets) total += target.linear.matrix.row_blocks;
  each_product(worker, total, block_bytes(layer.q), [&](int64_t begin, int64_t end, Rows rows) {
    int64_t offset = 0;
    for (const Target& target : targets) {
      const int64_t blocks = target.linear.matrix.row_blocks;
      const int64_t first = std::max<int64_t>(begin - offset, 0);
      const int64_t last = std::min(end - offset, blocks);
      if (first < last) product(s, target.linear, first, last, rows, target.out, target.stride);
      offset += blocks;
    }
  });
}

void Pass::mlp(Worker& worker, const Layer& layer) noexcept {
  SharedScratch& shared = c_.shared;
  TokenScratch& s = scratch(worker);
  const int32_t middle = c_.config.intermediate_size;
  const int32_t stride = shared.middle_stride;
  const auto combine = c_.config.activation == Activation::kSilu    ? c_.kernels.silu_mul
                       : c_.config.activation == Activation::kRelu2 ? c_.kernels.relu2_mul
                                                                    : gelu_tanh_mul;
  reduce(worker, {&layer.gate, &layer.up});
  each_product(worker, layer.gate.matrix.row_blocks, 2 * block_bytes(layer.gate),
               [&](int64_t begin, int64_t end, Rows rows) {
                 product(s, layer.gate, begin, end, rows, shared.gate.data(), stride);
                 product(s, layer.up, begin, end, rows, shared.up.data(), stride);
                 const auto first = static_cast<int32_t>(begin) * kRowsPerBlock;
                 const int32_t width = std::min(static_cast<int32_t>(end) * kRowsPerBlock, middle) - first;
                 for (int32_t t = rows.first; t < rows.first + rows.count; ++t) {
                   float* gate = shared.gate.data() + static_cast<int64_t>(t) * stride + first;
                   combine(gate, shared.up.data() + static_cast<int64_t>(t) * stride + first, width, gate);
                 }
               });
  mark(worker, Part::kGateUp);
  each_row(worker, count_, [&](int32_t row) {
    quantize(s, row, shared.gate.data() + static_cast<int64_t>(row) * stride, middle, layer.ffn_sub_norm,
             layer.ffn_sub_eps, layer.down.rank > 0);
  });
  mark(worker, Part::kNorm);
  reduce(worker, {&layer.down});
  each_product(worker, layer.down.matrix.row_blocks, block_bytes(layer.down),
               [&](int64_t begin, int64_t end, Rows rows) {
                 product(s, layer.down, begin, end, rows, shared.hidden.data(), shared.hidden_stride);
               });
  mark(worker, Part::kDown);
}

}  // namespace wf
