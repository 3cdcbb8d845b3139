#include "weights.h"

#include "errors.h"
#include "half.h"

namespace wf {

void Table::row(int32_t row, int32_t columns, float* out) const {
  const int64_t start = static_cast<int64_t>(row) * columns;
  for (int32_t i = 0; i < columns; ++i) {
    out[i] = q8 != nullptr ? static_cast<float>(q8[start + i]) * scales[row] : half_to_float(f16[start + i]);
  }
}

Weights::Weights(const ModelConfig& config, const PackingConfig& packing, std::unique_ptr<TensorSource> source)
    : packing_(packing), source_(std::move(source)) {
  embedding = load_table(config, "model.embed_tokens.weight");
  const std::string head_name = "lm_head.weight";
  const bool tied = config.tie_known ? config.tie_word_embeddings : !source_->has(head_name);
  if (tied) {
    head = embedding;
  } else {
    bytes_per_token = 0;  // a token reads one row of an embedding that is not the head too
    head = load_table(config, head_name);
  }
  final_norm = load_vector("model.norm.weight", config.hidden_size, Role::kNorm);
  for (int32_t i = 0; i < config.num_hidden_layers; ++i) {
    layers.push_back(load_layer(config, message("model.layers.", i, ".")));
  }
  source_->finish();
}

Layer Weights::load_layer(const ModelConfig& config, const std::string& prefix) {
  const int32_t hidden = config.hidden_size;
  const int32_t middle = config.intermediate_size;
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  Layer layer;
  layer.q = load_linear(attention + "q_proj", config.q_width(), hidden, config.qkv_bias);
  layer.k = load_linear(attention + "k_proj", config.kv_width(), hidden, config.qkv_bias);
  layer.v = load_linear(attention + "v_proj", config.kv_width(), hidden, config.qkv_bias);
  layer.o = load_linear(attention + "o_proj", hidden, config.q_width(), config.o_bias);
  layer.gate = load_linear(mlp + "gate_proj", middle, hidden, config.mlp_bias);
  layer.up = load_linear(mlp + "up_proj", middle, hidden, config.mlp_bias);
  layer.down = load_linear(mlp + "down_proj", hidden, middle, config.mlp_bias);
  layer.input_norm = load_vector(prefix + "input_layernorm.weight", hidden, Role::kNorm);
  layer.post_norm = load_vector(prefix + "post_attention_layernorm.weight", hidden, Role::kNorm);
  layer.attn_sub_norm =
      load_optional(attention + "attn_sub_norm.weight", config.q_width(), config.sub_norms, Role::kNorm);
  layer.ffn_sub_norm = load_optional(mlp + "ffn_sub_norm.weight", middle, config.sub_norms, Role::kNorm);
  layer.attn_sub_eps = load_epsilon(attention + "attn_sub_norm.eps", config.rms_norm_eps);
  layer.ffn_sub_eps = load_epsilon(mlp + "ffn_sub_norm.eps", config.rms_norm_eps);
  if (config.qk_norm) {
    layer.q_norm = load_vector(attention + "q_norm.weight", config.head_dim, Role::kNorm);
    layer.k_norm = load_vector(attention + "k_norm.weight", config.head_dim, Role::kNorm);
  }
  return layer;
}

Linear Weights::load_linear(const std::string& name, int32_t rows, int32_t columns, bool bias_needed) {
  Linear linear;
  TernaryMatrix& m = linear.matrix;
  m.rows = rows;
  m.columns = columns;
  m.row_blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  m.column_blocks = (columns + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const auto row_blocks = static_cast<uint64_t>(m.row_blocks);
  const auto column_blocks = static_cast<uint64_t>(m.column_blocks);
  m.codes = reinterpret_cast<const uint8_t*>(
      source_->get(name + ".weight", Dtype::kU8, {row_blocks, column_blocks, kBytesPerBlock}, Role::kCodes));
  bytes_per_token += row_blocks * column_blocks * kBytesPerBlock;
  const std::string scale_name = name + ".weight_scale";
  if (packing_.granularity == Granularity::kGroup) {
    const auto groups = static_cast<uint64_t>((columns + packing_.group_size - 1) / packing_.group_size);
    m.group_blocks = packing_.group_size / kColumnsPerBlock;
    m.group_scales = reinterpret_cast<const uint16_t*>(
        source_->get(scale_name, Dtype::kF16, {row_blocks, groups, kRowsPerBlock}, Role::kWeightScale));
    bytes_per_token += row_blocks * groups * kRowsPerBlock * 2;
  } else {
    const bool per_row = packing_.granularity == Granularity::kRow;
    const uint64_t count = per_row ? static_cast<uint64_t>(rows) : 1;
    const auto* stored =
        reinterpret_cast<const float*>(source_->get(scale_name, Dtype::kF32, {count}, Role::kWeightScale));
    std::vector<float>& padded = row_scales_.emplace_back(row_blocks * kRowsPerBlock, 0.0f);
    for (int32_t i = 0; i < rows; ++i) padded[static_cast<size_t>(i)] = stored[per_row ? i : 0];
    m.row_scales = padded.data();
    bytes_per_token += padded.size() * sizeof(float);
  }
  linear.bias = load_optional(name + ".bias", rows, bias_needed, Role::kBias);
  return linear;
}

Table Weights::load_table(const ModelConfig& config, const std::string& name) {
  const auto rows = static_cast<uint64_t>(config.vocab_size);
  const auto columns = static_cast<uint64_t>(config.hidden_size);
  Table table;
  if (source_->has(name) && source_->dtype(name) == Dtype::kF16) {
    table.f16 = reinterpret_cast<const uint16_t*>(source_->get(name, Dtype::kF16, {rows, columns}, Role::kTable));
    bytes_per_token += rows * columns * 2;
    return table;
  }
  table.q8 = reinterpret_cast<const int8_t*>(source_->get(name, Dtype::kI8, {rows, columns}, Role::kTable));
  table.scales = load_vector(name + "_scale", config.vocab_size, Role::kTableScale);
  bytes_per_token += rows * columns;
  return table;
}

const float* Weights::load_vector(const std::string& name, int32_t size, Role role) {
  bytes_per_token += static_cast<uint64_t>(size) * sizeof(float);
  return reinterpret_cast<const float*>(source_->get(name, Dtype::kF32, {static_cast<uint64_t>(size)}, role));
}

float Weights::load_epsilon(const std::string& name, float otherwise) {
  if (!source_->has(name)) return otherwise;
  const float epsilon = *load_vector(name, 1, Role::kNorm);
  if (!(epsilon >= 0.0f)) throw FormatError(message(name, ": found ", epsilon, ", an epsilon cannot be negative"));
  return epsilon;
}

const float* Weights::load_optional(const std::string& name, int32_t size, bool needed, Role role) {
  return needed || source_->has(name) ? load_vector(name, size, role) : nullptr;
}

}  // namespace wf
