// The tensors of a model as the kernels want them, checked against config.json.
#pragma once
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model_config.h"
#include "tensor_source.h"

namespace wf {

struct Linear {
  TernaryMatrix matrix{};
  const float* bias = nullptr;  // [rows], or null
  // A low-rank correction adds U (V^T x), x before it is quantised. Float16 bits; rank 0: there is none.
  int32_t rank = 0;
  int32_t low_place = 0;            // of its V^T x among those of the linears with the same input
  const uint16_t* low_u = nullptr;  // [rows, rank]
  const uint16_t* low_v = nullptr;  // [rank, columns]: V^T
};

struct Layer {
  Linear q, k, v, o, gate, up, down;
  const float* input_norm = nullptr;     // [D]
  const float* post_norm = nullptr;      // [D], before the MLP
  const float* attn_out_norm = nullptr;  // [D], of what attention returns, or null
  const float* ffn_out_norm = nullptr;   // [D], of what the MLP returns, or null
  const float* attn_sub_norm = nullptr;  // [heads * head_dim], or null
  const float* ffn_sub_norm = nullptr;   // [intermediate], or null
  float attn_sub_eps = 0.0f;             // epsilon of these two norms: their own, else the model's
  float ffn_sub_eps = 0.0f;
  const float* q_norm = nullptr;  // [head_dim], or null
  const float* k_norm = nullptr;  // [head_dim], or null
};

// An embedding or head [V, D]: quantised, or plain float16.
struct Table {
  TableMatrix matrix{};           // codes are null when the table is float16
  const uint16_t* f16 = nullptr;  // [V, D]

  // out[0..D) = row `row` as float32.
  void row(int32_t row, float* out) const;
  // Bytes that the 16 rows of a row block take.
  int64_t block_bytes() const;
};

// How the weights are to lie in memory.
struct WeightsInMemory {
  TernaryLayout layout;    // another than the stored one: converted, which changes no product
  int32_t prefetch_bytes;  // see TernaryMatrix::prefetch
};

class Weights {
 public:
  // Throws FormatError when a tensor is missing, left over or not what `config` says.
  Weights(const ModelConfig& config, const PackingConfig& packing, const WeightsInMemory& wanted,
          std::unique_ptr<TensorSource> source);

  Table embedding, head;
  const float* final_norm = nullptr;
  std::vector<Layer> layers;
  // Bytes of weights that one decoded token reads: everything but the embedding rows of other tokens.
  uint64_t bytes_per_token = 0;
  int32_t low_width = 0;  // ranks of linears with the same input, together, at most

 private:
  Layer load_layer(const ModelConfig& config, const std::string& prefix);
  Linear load_linear(const std::string& name, int32_t rows, int32_t columns, bool bias_needed);
  void load_factors(const std::string& name, Linear& linear);
  // Gives the linears that share an input their places.
  void place_factors(std::initializer_list<Linear*> linears);
  Table load_table(const ModelConfig& config, const std::string& name);
  const float* load_vector(const std::string& name, int32_t size, Role role);
  float load_epsilon(const std::string& name, float otherwise);
  const float* load_optional(const std::string& name, int32_t size, bool needed, Role role);
  // [padded_rows]: the first `rows` of `stored` (or its only one, when `one_for_all`), then zeros.
  const float* pad_scales(const float* stored, int32_t rows, int32_t padded_rows, bool one_for_all);

  PackingConfig packing_;
  WeightsInMemory wanted_;
  std::unique_ptr<TensorSource> source_;
  size_t factors_ = 0;                         // linears with factors so far
  std::deque<std::vector<float>> row_scales_;  // padded to whole row blocks
};

}  // namespace wf
