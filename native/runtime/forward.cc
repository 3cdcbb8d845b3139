#include "forward.h"

#include <algorithm>
#include <cmath>

namespace wf {

namespace {
int64_t block_bytes(const Linear& linear) { return row_block_bytes(linear.matrix.layout, linear.matrix.column_blocks); }
}  // namespace

template <typename F>
void Pass::each_token(Worker& worker, F&& f) const noexcept {
  if (count_ == 1) {
    f(0);
    return;
  }
  constexpr int64_t kGrain = 4;
  worker.chunks(count_, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) f(static_cast<int32_t>(t));
  });
}

int64_t Pass::grain(const Worker& worker, int64_t total, int64_t bytes) const {
  // About four pieces a thread, so that little is left to wait for when a core is slow. For one token a piece is at
  // most some microseconds of memory traffic, so that a longer wait means that a core was taken away.
  constexpr int64_t kMostBytes = 128 << 10;
  const int64_t piece = std::max<int64_t>(1, total / (4 * worker.count()));
  if (count_ == 1) return std::min(piece, std::max<int64_t>(1, kMostBytes / std::max<int64_t>(bytes, 1)));
  return (piece + kPanelGrain - 1) / kPanelGrain * kPanelGrain;
}

void Pass::run(Worker& worker) noexcept {
  embed(worker);
  for (size_t i = 0; i < c_.weights.layers.size(); ++i) {
    const Layer& layer = c_.weights.layers[i];
    norm_and_quantize(worker, i == 0 ? nullptr : c_.shared.hidden.data(), layer.input_norm);
    attention(worker, static_cast<int32_t>(i), layer);
    norm_and_quantize(worker, c_.shared.hidden.data(), layer.post_norm);
    mlp(worker, layer);
  }
  if (want_ != LogitsOf::kNone) head(worker);
}

void Pass::embed(Worker& worker) noexcept {
  TokenScratch& s = scratch(worker);
  const int32_t hidden = c_.config.hidden_size;
  each_token(worker, [&](int32_t t) {
    c_.weights.embedding.row(tokens_[t], s.residual.data() + static_cast<int64_t>(t) * hidden);
  });
}

void Pass::quantize(TokenScratch& s, int32_t token, const float* input, int32_t width) noexcept {
  const int64_t blocks = column_blocks(width);
  c_.kernels.quantize(input, width, s.quantized.data() + token * blocks * kColumnsPerBlock,
                      s.block_sums.data() + token * blocks, s.scales.data() + token);
}

void Pass::norm_and_quantize(Worker& worker, const float* added, const float* norm) noexcept {
  TokenScratch& s = scratch(worker);
  const int32_t hidden = c_.config.hidden_size;
  each_token(worker, [&](int32_t t) {
    float* residual = s.residual.data() + static_cast<int64_t>(t) * hidden;
    float* normed = s.normed.data() + static_cast<int64_t>(t) * hidden;
    if (added != nullptr) {
      c_.kernels.add(residual, added + static_cast<int64_t>(t) * c_.shared.hidden_stride, hidden);
    }
    c_.kernels.rms_norm(residual, norm, c_.config.rms_norm_eps, hidden, normed);
    quantize(s, t, normed, hidden);
  });
}

void Pass::quantize_rows(Worker& worker, const float* input, int32_t width, int32_t stride, const float* norm,
                         float epsilon) noexcept {
  TokenScratch& s = scratch(worker);
  each_token(worker, [&](int32_t t) {
    const float* row = input + static_cast<int64_t>(t) * stride;
    if (norm != nullptr) {
      float* normed = s.normed.data() + static_cast<int64_t>(t) * width;
      c_.kernels.rms_norm(row, norm, epsilon, width, normed);
      row = normed;
    }
    quantize(s, t, row, width);
  });
}

void Pass::product(const TokenScratch& s, const Linear& linear, int64_t begin, int64_t end, float* out,
                   int32_t stride) noexcept {
  const auto first = static_cast<int32_t>(begin);
  const auto last = static_cast<int32_t>(end);
  c_.kernels.ternary_gemm(&linear.matrix, s.quantized.data(), s.block_sums.data(), s.scales.data(), count_, first, last,
                          out, stride);
  if (linear.bias == nullptr) return;
  const int32_t row = first * kRowsPerBlock;
  const int32_t rows = std::min(last * kRowsPerBlock, linear.matrix.rows) - row;
  for (int32_t t = 0; t < count_; ++t) {
    c_.kernels.add(out + static_cast<int64_t>(t) * stride + row, linear.bias + row, rows);
  }
}

void Pass::attention(Worker& worker, int32_t index, const Layer& layer) noexcept {
  SharedScratch& shared = c_.shared;
  const TokenScratch& s = scratch(worker);
  struct Part {
    const Linear& linear;
    float* out;
    int32_t stride;
  };
  const Part parts[] = {{layer.q, shared.q.data(), shared.q_stride},
                        {layer.k, shared.k.data(), shared.kv_stride},
                        {layer.v, shared.v.data(), shared.kv_stride}};
  int64_t total = 0;
  for (const Part& part : parts) total += part.linear.matrix.row_blocks;
  worker.chunks(total, grain(worker, total, block_bytes(layer.q)), [&](int64_t begin, int64_t end) {
    int64_t offset = 0;
    for (const Part& part : parts) {
      const int64_t blocks = part.linear.matrix.row_blocks;
      const int64_t first = std::max<int64_t>(begin - offset, 0);
      const int64_t last = std::min(end - offset, blocks);
      if (first < last) product(s, part.linear, first, last, part.out, part.stride);
      offset += blocks;
    }
  });

  const int32_t heads = c_.config.num_attention_heads;
  const int32_t all_heads = heads + c_.config.num_key_value_heads;
  const int64_t turns = static_cast<int64_t>(count_) * all_heads;
  worker.chunks(turns, grain(worker, turns, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      rotate_and_store(index, layer, static_cast<int32_t>(i / all_heads), static_cast<int32_t>(i % all_heads));
    }
  });
  attend_all(worker, index);

  quantize_rows(worker, shared.attention.data(), c_.config.q_width(), shared.q_stride, layer.attn_sub_norm,
                layer.attn_sub_eps);
  const int64_t blocks = layer.o.matrix.row_blocks;
  worker.chunks(blocks, grain(worker, blocks, block_bytes(layer.o)), [&](int64_t begin, int64_t end) {
    product(s, layer.o, begin, end, shared.hidden.data(), shared.hidden_stride);
  });
}

void Pass::rotate_and_store(int32_t index, const Layer& layer, int32_t token, int32_t head) noexcept {
  SharedScratch& shared = c_.shared;
  const int32_t head_dim = c_.config.head_dim;
  const int32_t heads = c_.config.num_attention_heads;
  const float* cosines = shared.cosines.data() + static_cast<int64_t>(token) * (head_dim / 2);
  const float* sines = shared.sines.data() + static_cast<int64_t>(token) * (head_dim / 2);
  const auto turn = [&](float* values, const float* norm) {
    if (norm != nullptr) c_.kernels.rms_norm(values, norm, c_.config.rms_norm_eps, head_dim, values);
    Rope::rotate(values, head_dim, cosines, sines);
  };
  if (head < heads) {
    turn(shared.q.data() + static_cast<int64_t>(token) * shared.q_stride + head * head_dim, layer.q_norm);
    return;
  }
  const int32_t kv_head = head - heads;
  const int64_t offset = static_cast<int64_t>(token) * shared.kv_stride + kv_head * head_dim;
  float* key = shared.k.data() + offset;
  const float* value = shared.v.data() + offset;
  turn(key, layer.k_norm);
  const int32_t position = start_ + token;
  if (c_.kv_type == KvType::kF16) {
    c_.kernels.store_f16(key, head_dim, c_.cache.keys_f16(index, kv_head, position));
    c_.kernels.store_f16(value, head_dim, c_.cache.values_f16(index, kv_head, position));
  } else {
    std::copy(key, key + head_dim, c_.cache.keys_f32(index, kv_head, position));
    std::copy(value, value + head_dim, c_.cache.values_f32(index, kv_head, position));
  }
}

void Pass::attend_all(Worker& worker, int32_t index) noexcept {
  const int32_t heads = c_.config.num_attention_heads;
  const int32_t window = c_.config.windows[static_cast<size_t>(index)];
  if (count_ == 1 || window != 0 || !attend_block_takes(c_.config.head_dim)) {
    const int64_t queries = static_cast<int64_t>(count_) * heads;
    worker.chunks(queries, count_ == 1 ? 1 : heads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        attend(worker, index, static_cast<int32_t>(i / heads), static_cast<int32_t>(i % heads));
      }
    });
    return;
  }
  constexpr int32_t kQueries = 32;
  const int32_t blocks = (count_ + kQueries - 1) / kQueries;
  worker.chunks(static_cast<int64_t>(blocks) * c_.config.num_key_value_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // the last queries see the most keys: first, so that a thread does not start on them when the others are done
      const int32_t first = (blocks - 1 - static_cast<int32_t>(i) % blocks) * kQueries;
      attend_block(index, first, std::min(kQueries, count_ - first), static_cast<int32_t>(i) / blocks);
    }
  });
}

void Pass::attend_block(int32_t index, int32_t first, int32_t queries, int32_t kv_head) noexcept {
  const int32_t head_dim = c_.config.head_dim;
  const int32_t group = c_.config.num_attention_heads / c_.config.num_key_value_heads;
  const int32_t length = start_ + first + 1;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const int64_t stride = c_.shared.q_stride;
  const int64_t offset = first * stride + static_cast<int64_t>(kv_head) * group * head_dim;
  const float* query = c_.shared.q.data() + offset;
  float* out = c_.shared.attention.data() + offset;
  if (c_.kv_type == KvType::kF16) {
    c_.kernels.attend_block(query, stride, queries, group, c_.cache.keys_f16(index, kv_head, 0),
                            c_.cache.values_f16(index, kv_head, 0), head_dim, head_dim, length, scale, out, stride);
  } else {
    c_.kernels.attend_block_f32(query, stride, queries, group, c_.cache.keys_f32(index, kv_head, 0),
                                c_.cache.values_f32(index, kv_head, 0), head_dim, head_dim, length, scale, out, stride);
  }
}

void Pass::attend(Worker& worker, int32_t index, int32_t token, int32_t head) noexcept {
  const int32_t head_dim = c_.config.head_dim;
  const int32_t kv_head = head / (c_.config.num_attention_heads / c_.config.num_key_value_heads);
  const int32_t position = start_ + token;
  const int32_t window = c_.config.windows[static_cast<size_t>(index)];
  const int32_t first = window == 0 ? 0 : std::max(0, position + 1 - window);
  const int32_t length = position + 1 - first;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const int64_t offset = static_cast<int64_t>(token) * c_.shared.q_stride + head * head_dim;
  const float* query = c_.shared.q.data() + offset;
  float* out = c_.shared.attention.data() + offset;
  float* scores = c_.scores[static_cast<size_t>(worker.index())].data();
  if (c_.kv_type == KvType::kF16) {
    c_.kernels.attend(query, c_.cache.keys_f16(index, kv_head, first), c_.cache.values_f16(index, kv_head, first),
                      head_dim, head_dim, length, scale, scores, out);
  } else {
    c_.kernels.attend_f32(query, c_.cache.keys_f32(index, kv_head, first), c_.cache.values_f32(index, kv_head, first),
                          head_dim, head_dim, length, scale, scores, out);
  }
}

void Pass::mlp(Worker& worker, const Layer& layer) noexcept {
  SharedScratch& shared = c_.shared;
  const TokenScratch& s = scratch(worker);
  const int32_t middle = c_.config.intermediate_size;
  const int32_t stride = shared.middle_stride;
  const auto combine = c_.config.activation == Activation::kSilu ? c_.kernels.silu_mul : c_.kernels.relu2_mul;
  const int64_t blocks = layer.gate.matrix.row_blocks;
  worker.chunks(blocks, grain(worker, blocks, 2 * block_bytes(layer.gate)), [&](int64_t begin, int64_t end) {
    product(s, layer.gate, begin, end, shared.gate.data(), stride);
    product(s, layer.up, begin, end, shared.up.data(), stride);
    const auto row = static_cast<int32_t>(begin) * kRowsPerBlock;
    const int32_t rows = std::min(static_cast<int32_t>(end) * kRowsPerBlock, middle) - row;
    for (int32_t t = 0; t < count_; ++t) {
      float* gate = shared.gate.data() + static_cast<int64_t>(t) * stride + row;
      combine(gate, shared.up.data() + static_cast<int64_t>(t) * stride + row, rows, gate);
    }
  });
  quantize_rows(worker, shared.gate.data(), middle, stride, layer.ffn_sub_norm, layer.ffn_sub_eps);
  const int64_t out_blocks = layer.down.matrix.row_blocks;
  worker.chunks(out_blocks, grain(worker, out_blocks, block_bytes(layer.down)), [&](int64_t begin, int64_t end) {
    product(s, layer.down, begin, end, shared.hidden.data(), shared.hidden_stride);
  });
}

void Pass::head(Worker& worker) noexcept {
  TokenScratch& s = scratch(worker);
  const Table& table = c_.weights.head;
  const int32_t hidden = c_.config.hidden_size;
  const int32_t vocabulary = c_.config.vocab_size;
  const int32_t first = want_ == LogitsOf::kAll ? 0 : count_ - 1;
  const int64_t blocks = column_blocks(hidden);
  each_token(worker, [&](int32_t t) {
    if (t < first) return;
    float* residual = s.residual.data() + static_cast<int64_t>(t) * hidden;
    float* normed = s.normed.data() + static_cast<int64_t>(t) * hidden;
    c_.kernels.add(residual, c_.shared.hidden.data() + static_cast<int64_t>(t) * c_.shared.hidden_stride, hidden);
    c_.kernels.rms_norm(residual, c_.weights.final_norm, c_.config.rms_norm_eps, hidden, normed);
    if (table.f16 != nullptr) return;
    c_.kernels.quantize_wide(normed, hidden, s.high.data() + t * blocks * kColumnsPerBlock,
                             s.low.data() + t * blocks * kColumnsPerBlock, s.half_sums.data() + t * blocks * 2,
                             s.wide_scales.data() + t);
  });
  const float* input = s.normed.data() + static_cast<int64_t>(first) * hidden;
  const int64_t offset = first * blocks * kColumnsPerBlock;
  const WideActivations wide{s.high.data() + offset, s.low.data() + offset, s.half_sums.data() + first * blocks * 2,
                             s.wide_scales.data() + first};
  const int64_t row_blocks = table.matrix.row_blocks;
  worker.chunks(row_blocks, grain(worker, row_blocks, table.block_bytes()), [&](int64_t begin, int64_t end) {
    if (table.f16 == nullptr) {
      c_.kernels.table_gemm(&table.matrix, &wide, count_ - first, static_cast<int32_t>(begin),
                            static_cast<int32_t>(end), logits_, vocabulary);
      return;
    }
    const auto last = static_cast<int32_t>(std::min<int64_t>(end * kRowsPerBlock, vocabulary));
    c_.kernels.f16_gemm(table.f16, hidden, input, count_ - first, static_cast<int32_t>(begin) * kRowsPerBlock, last,
                        logits_, vocabulary);
  });
}

}  // namespace wf
