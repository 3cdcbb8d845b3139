// config.json as typed numbers, each in a checked range, so that no product of two of them can overflow.
#pragma once
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "json.h"
#include "kernels/kernels.h"

namespace wf {

enum class Activation : uint8_t { kSilu, kRelu2, kGeluTanh };
enum class RopeKind : uint8_t { kDefault, kLinear, kLlama3 };
enum class Granularity : uint8_t { kTensor, kRow, kGroup };
enum class TableKind : uint8_t { kQ8, kQ6, kQ4, kF16 };  // of the embedding and of an untied head

struct RopeConfig {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000;
  double factor = 1;                                                                    // kLinear, kLlama3
  double low_frequency_factor = 1, high_frequency_factor = 4, original_context = 8192;  // kLlama3
};

struct PackingConfig {
  Granularity granularity = Granularity::kTensor;
  int32_t group_size = 64;  // columns that share a scale; kGroup only
  TernaryLayout layout = TernaryLayout::kTwoBit;
  TableKind table = TableKind::kQ8;
  std::unordered_map<std::string, int32_t> low_rank;  // ranks of the linears that have factors, by full name
};

struct ModelConfig {
  std::string model_type;
  int32_t hidden_size = 0, intermediate_size = 0, num_hidden_layers = 0, vocab_size = 0;
  int32_t num_attention_heads = 0, num_key_value_heads = 0, head_dim = 0, max_position_embeddings = 0;
  float rms_norm_eps = 0;
  RopeConfig rope;
  RopeConfig local_rope;  // of the layers with a window, when they have one of their own
  bool has_local_rope = false;
  Activation activation = Activation::kSilu;
  bool qk_norm = false;         // RMSNorm of each head of q and k before RoPE
  bool sub_norms = false;       // config.json says there are attn_sub_norm and ffn_sub_norm
  bool qkv_bias = false;        // q, k and v must have a bias
  bool o_bias = false;          // ... and o
  bool mlp_bias = false;        // ... and gate, up and down
  bool sandwich_norms = false;  // RMSNorm of what attention and MLP return, before it is added
  float embedding_scale = 1;    // of an embedding's row when it is looked up
  float attention_scale = 0;    // of query times key
  bool tie_known = false;       // config.json has tie_word_embeddings
  bool tie_word_embeddings = false;
  std::vector<int32_t> banned_tokens;  // of a diffusion model: MASK, and padding that ends no text; never an output
  std::vector<int32_t> windows;        // by layer: positions a query may look back on, itself included; 0 is all

  int32_t q_width() const { return num_attention_heads * head_dim; }
  int32_t kv_width() const { return num_key_value_heads * head_dim; }
};

// Throws FormatError for a missing, unknown or out-of-range entry; `place` is the file's name.
ModelConfig parse_model_config(const JsonValue& root, const std::string& place);
// Takes end tokens out of the banned ones: they are no padding, though they fill up batches in many models. Throws
// FormatError for MASK.
void allow_tokens(const std::vector<int32_t>& ends, const std::string& place, ModelConfig& config);
// The same with those of a generation_config.json.
void allow_end_tokens(const JsonValue& root, const std::string& place, ModelConfig& config);
// The "wrinklefree" object: format, version and layout must be the ones this build reads.
PackingConfig parse_packing_config(const JsonValue& root, const std::string& place);
// The same from its parts, named as config.json names them. Throws FormatError for an unknown name or group size.
PackingConfig make_packing_config(const std::string& layout, const std::string& granularity, int64_t group_size,
                                  const std::string& table, const std::string& place);

// The name of a layout in config.json.
std::string layout_name(TernaryLayout layout);

// The text of config.json with the limits for untrusted files applied.
JsonValue parse_config_text(const std::string& text, const std::string& place);

}  // namespace wf
