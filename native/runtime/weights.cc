#include "weights.h"

#include <algorithm>

#include "errors.h"
#include "half.h"

namespace wf {

namespace {

constexpr int32_t kNibbleColumns = 32;  // of a block: those whose nibble is the low one of its byte

int32_t blocks_of(int32_t size, int32_t block) { return (size + block - 1) / block; }

int32_t columns_per_scale(TableFormat format) { return format == TableFormat::kQ6 ? 64 : 32; }

// The integer value of column `column` of a block of 64, for the row whose bytes start at `row` (4 x row of 16).
int32_t table_value(TableFormat format, const uint8_t* row, int32_t column) {
  const int32_t byte = column % 4;
  if (format == TableFormat::kQ8) return row[64 * (column / 4) + byte] - 128;
  const int32_t nibble = row[64 * (column % kNibbleColumns / 4) + byte] >> (column / kNibbleColumns * 4) & 15;
  if (format == TableFormat::kQ4) return nibble - 8;
  const int32_t high = row[512 + 64 * (column % 16 / 4) + byte] >> (column / 16 * 2) & 3;
  return (high << 4 | nibble) - 32;
}

}  // namespace

void Table::row(int32_t row, float* out) const {
  const int32_t columns = matrix.columns;
  if (f16 != nullptr) {
    const uint16_t* values = f16 + static_cast<int64_t>(row) * columns;
    for (int32_t i = 0; i < columns; ++i) out[i] = half_to_float(values[i]);
    return;
  }
  const int32_t block_row = row / kRowsPerBlock;
  const int32_t inside = row % kRowsPerBlock;
  const int64_t bytes = table_block_bytes(matrix.format);
  const uint8_t* codes = matrix.codes + int64_t{block_row} * matrix.column_blocks * bytes + 4 * inside;
  const int32_t group = columns_per_scale(matrix.format);
  const int64_t groups = int64_t{matrix.column_blocks} * (kColumnsPerBlock / group);
  for (int32_t i = 0; i < columns; ++i) {
    const int32_t value = table_value(matrix.format, codes + i / kColumnsPerBlock * bytes, i % kColumnsPerBlock);
    const float scale =
        matrix.row_scales != nullptr
            ? matrix.row_scales[row]
            : half_to_float(matrix.group_scales[(block_row * groups + i / group) * kRowsPerBlock + inside]);
    out[i] = static_cast<float>(value) * scale;
  }
}

int64_t Table::block_bytes() const {
  if (f16 != nullptr) return int64_t{kRowsPerBlock} * matrix.columns * 2;
  return matrix.column_blocks * table_block_bytes(matrix.format);
}

Weights::Weights(const ModelConfig& config, const PackingConfig& packing, const WeightsInMemory& wanted,
                 std::unique_ptr<TensorSource> source)
    : packing_(packing), wanted_(wanted), source_(std::move(source)) {
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
  if (factors_ != packing_.low_rank.size()) {
    throw FormatError(message("config.json: wrinklefree: low_rank names ", packing_.low_rank.size(),
                              " linear layers, the model has ", factors_, " of them"));
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
  place_factors({&layer.q, &layer.k, &layer.v});
  place_factors({&layer.o});
  place_factors({&layer.gate, &layer.up});
  place_factors({&layer.down});
  layer.input_norm = load_vector(prefix + "input_layernorm.weight", hidden, Role::kNorm);
  const char* const before_mlp = config.sandwich_norms ? "pre_feedforward_layernorm" : "post_attention_layernorm";
  layer.post_norm = load_vector(prefix + before_mlp + ".weight", hidden, Role::kNorm);
  if (config.sandwich_norms) {
    layer.attn_out_norm = load_vector(prefix + "post_attention_layernorm.weight", hidden, Role::kNorm);
    layer.ffn_out_norm = load_vector(prefix + "post_feedforward_layernorm.weight", hidden, Role::kNorm);
  }
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
  m.row_blocks = blocks_of(rows, kRowsPerBlock);
  m.column_blocks = blocks_of(columns, kColumnsPerBlock);
  m.layout = wanted_.layout;
  m.prefetch = wanted_.prefetch_bytes;
  m.codes = source_->codes(name + ".weight", {m.row_blocks, m.column_blocks, packing_.layout}, m.layout);
  bytes_per_token += CodesShape{m.row_blocks, m.column_blocks, m.layout}.bytes();
  const std::string scale_name = name + ".weight_scale";
  const auto row_blocks = static_cast<uint64_t>(m.row_blocks);
  if (packing_.granularity == Granularity::kGroup) {
    const auto groups = static_cast<uint64_t>(blocks_of(columns, packing_.group_size));
    m.group_blocks = packing_.group_size / kColumnsPerBlock;
    m.group_scales = reinterpret_cast<const uint16_t*>(
        source_->get(scale_name, Dtype::kF16, {row_blocks, groups, kRowsPerBlock}, Role::kWeightScale));
    bytes_per_token += row_blocks * groups * kRowsPerBlock * 2;
  } else {
    const bool per_row = packing_.granularity == Granularity::kRow;
    const uint64_t count = per_row ? static_cast<uint64_t>(rows) : 1;
    const auto* stored =
        reinterpret_cast<const float*>(source_->get(scale_name, Dtype::kF32, {count}, Role::kWeightScale));
    m.row_scales = pad_scales(stored, rows, m.row_blocks * kRowsPerBlock, !per_row);
    bytes_per_token += row_blocks * kRowsPerBlock * sizeof(float);
  }
  linear.bias = load_optional(name + ".bias", rows, bias_needed, Role::kBias);
  load_factors(name, linear);
  return linear;
}

void Weights::load_factors(const std::string& name, Linear& linear) {
  const auto found = packing_.low_rank.find(name);
  if (found == packing_.low_rank.end()) return;
  const int32_t rows = linear.matrix.rows, columns = linear.matrix.columns;
  linear.rank = found->second;
  if (linear.rank > std::min(rows, columns)) {
    throw FormatError(message("config.json: wrinklefree: low_rank: ", quoted(name), ": found ", linear.rank, ", a ",
                              rows, " x ", columns, " layer takes 1 to ", std::min(rows, columns)));
  }
  const auto factor = [&](const char* suffix, int32_t height, int32_t width) {
    bytes_per_token += static_cast<uint64_t>(height) * static_cast<uint64_t>(width) * 2;
    return reinterpret_cast<const uint16_t*>(source_->get(
        name + suffix, Dtype::kF16, {static_cast<uint64_t>(height), static_cast<uint64_t>(width)}, Role::kTable));
  };
  linear.low_u = factor(".low_rank_u", rows, linear.rank);
  linear.low_v = factor(".low_rank_v", linear.rank, columns);
  ++factors_;
}

void Weights::place_factors(std::initializer_list<Linear*> linears) {
  int32_t place = 0;
  for (Linear* linear : linears) {
    linear->low_place = place;
    place += linear->rank;
  }
  low_width = std::max(low_width, place);
}

Table Weights::load_table(const ModelConfig& config, const std::string& name) {
  Table table;
  TableMatrix& m = table.matrix;
  m.rows = config.vocab_size;
  m.columns = config.hidden_size;
  m.row_blocks = blocks_of(m.rows, kRowsPerBlock);
  m.column_blocks = blocks_of(m.columns, kColumnsPerBlock);
  m.prefetch = wanted_.prefetch_bytes;
  const auto rows = static_cast<uint64_t>(m.rows);
  const auto columns = static_cast<uint64_t>(m.columns);
  if (packing_.table == TableKind::kF16) {
    table.f16 = reinterpret_cast<const uint16_t*>(source_->get(name, Dtype::kF16, {rows, columns}, Role::kTable));
    bytes_per_token += rows * columns * 2;
    return table;
  }
  m.format = packing_.table == TableKind::kQ8   ? TableFormat::kQ8
             : packing_.table == TableKind::kQ6 ? TableFormat::kQ6
                                                : TableFormat::kQ4;
  const auto row_blocks = static_cast<uint64_t>(m.row_blocks);
  const auto column_blocks = static_cast<uint64_t>(m.column_blocks);
  const auto block_bytes = static_cast<uint64_t>(table_block_bytes(m.format));
  m.codes = reinterpret_cast<const uint8_t*>(
      source_->get(name, Dtype::kU8, {row_blocks, column_blocks, block_bytes}, Role::kTable));
  bytes_per_token += row_blocks * column_blocks * block_bytes;
  if (m.format == TableFormat::kQ8) {
    m.row_scales = pad_scales(load_vector(name + "_scale", m.rows, Role::kTableScale), m.rows,
                              m.row_blocks * kRowsPerBlock, false);
    return table;
  }
  const uint64_t groups = column_blocks * static_cast<uint64_t>(kColumnsPerBlock / columns_per_scale(m.format));
  m.group_scales = reinterpret_cast<const uint16_t*>(
      source_->get(name + "_scale", Dtype::kF16, {row_blocks, groups, kRowsPerBlock}, Role::kTableScale));
  bytes_per_token += row_blocks * groups * kRowsPerBlock * 2;
  return table;
}

const float* Weights::pad_scales(const float* stored, int32_t rows, int32_t padded_rows, bool one_for_all) {
  std::vector<float>& padded = row_scales_.emplace_back(static_cast<size_t>(padded_rows), 0.0f);
  for (int32_t i = 0; i < rows; ++i) padded[static_cast<size_t>(i)] = stored[one_for_all ? 0 : i];
  return padded.data();
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
