#include "model_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <string_view>
#include <utility>

#include "errors.h"

namespace wf {

namespace {

constexpr JsonLimits kConfigLimits{4 << 20, 16, 65'536};
constexpr std::string_view kFormat = "packed";
constexpr int64_t kFormatVersion = 1;
constexpr std::string_view kTwoBitLayout = "t2-r16c64";
constexpr std::string_view kFiveTritLayout = "t1.6-r16c64";

constexpr std::array<std::pair<std::string_view, TableKind>, 4> kTables{{
    {"q8", TableKind::kQ8},
    {"q6", TableKind::kQ6},
    {"q4", TableKind::kQ4},
    {"f16", TableKind::kF16},
}};

// One object of config.json and its name for messages.
class Fields {
 public:
  Fields(const JsonValue& object, std::string place) : object_(object), place_(std::move(place)) {
    if (!object.is(JsonValue::Kind::kObject)) {
      throw FormatError(message(place_, ": found ", kind_name(object.kind), ", an object is needed"));
    }
  }

  // The member, or null when it is absent or JSON null.
  const JsonValue* optional(const char* key) const {
    const JsonValue* value = object_.find(key);
    return value == nullptr || value->is(JsonValue::Kind::kNull) ? nullptr : value;
  }

  const JsonValue& required(const char* key) const {
    const JsonValue* value = optional(key);
    if (value == nullptr) throw FormatError(message(place_, ": ", key, " is missing"));
    return *value;
  }

  int64_t integer(const char* key, int64_t least, int64_t most) const {
    const JsonValue& value = required(key);
    if (!value.is(JsonValue::Kind::kInteger) || value.integer < least || value.integer > most) {
      throw FormatError(
          message(place_, ": ", key, ": found ", shown(value), ", allowed is an integer from ", least, " to ", most));
    }
    return value.integer;
  }

  int64_t integer_or(const char* key, int64_t least, int64_t most, int64_t absent) const {
    return optional(key) == nullptr ? absent : integer(key, least, most);
  }

  double real(const char* key, double least, double most) const {
    const JsonValue& value = required(key);
    if (!value.is_number() || !(value.real >= least && value.real <= most)) {
      throw FormatError(
          message(place_, ": ", key, ": found ", shown(value), ", allowed is a number from ", least, " to ", most));
    }
    return value.real;
  }

  double real_or(const char* key, double least, double most, double absent) const {
    return optional(key) == nullptr ? absent : real(key, least, most);
  }

  bool boolean_or(const char* key, bool absent) const {
    const JsonValue* value = optional(key);
    if (value == nullptr) return absent;
    if (!value->is(JsonValue::Kind::kBool)) wrong(key, *value, "true or false");
    return value->boolean;
  }

  std::string text(const char* key) const {
    const JsonValue& value = required(key);
    if (!value.is(JsonValue::Kind::kString)) wrong(key, value, "a string");
    return value.string;
  }

  std::string text_or(const char* key, const std::string& absent) const {
    return optional(key) == nullptr ? absent : text(key);
  }

  [[noreturn]] void wrong(const char* key, const JsonValue& value, std::string_view allowed) const {
    throw FormatError(message(place_, ": ", key, ": found ", shown(value), ", allowed is ", allowed));
  }

  const std::string& place() const { return place_; }

 private:
  static std::string shown(const JsonValue& value) {
    if (value.is(JsonValue::Kind::kInteger)) return std::to_string(value.integer);
    if (value.is(JsonValue::Kind::kReal)) return message(value.real);
    if (value.is(JsonValue::Kind::kString)) return quoted(value.string);
    if (value.is(JsonValue::Kind::kBool)) return value.boolean ? "true" : "false";
    return kind_name(value.kind);
  }

  const JsonValue& object_;
  std::string place_;
};

constexpr double kMostTheta = 1e12;

struct Family {
  std::string_view model_type;
  bool qk_norm, qkv_bias, sub_norms;
  bool gemma = false;  // Gemma 3's text models: see parse_gemma
};
constexpr std::array<Family, 6> kFamilies{{
    {"llama", false, false, false},
    {"mistral", false, false, false},
    {"qwen2", false, true, false},
    {"qwen3", true, false, false},
    {"bitnet", false, false, true},
    {"gemma3_text", true, false, false, true},
}};

void apply_family(const Fields& fields, ModelConfig& config) {
  config.model_type = fields.text("model_type");
  for (const Family& family : kFamilies) {
    if (family.model_type != config.model_type) continue;
    config.qk_norm = family.qk_norm;
    config.qkv_bias = family.qkv_bias || fields.boolean_or("attention_bias", false);
    config.o_bias = !family.qkv_bias && fields.boolean_or("attention_bias", false);
    config.mlp_bias = fields.boolean_or("mlp_bias", false);
    config.sub_norms = family.sub_norms;
    config.sandwich_norms = config.has_local_rope = family.gemma;
    return;
  }
  throw FormatError(message(fields.place(), ": model_type: found ", quoted(config.model_type),
                            ", this engine runs llama, mistral, qwen2, qwen3, bitnet and gemma3_text"));
}

RopeConfig parse_rope_scaling(const Fields& fields, const std::string& kind, double theta) {
  RopeConfig rope;
  rope.theta = theta;
  if (kind == "default") return rope;
  constexpr double kMostFactor = 1e6;
  if (kind == "linear") {
    rope.kind = RopeKind::kLinear;
    rope.factor = fields.real("factor", 1, kMostFactor);
    return rope;
  }
  if (kind == "llama3") {
    rope.kind = RopeKind::kLlama3;
    rope.factor = fields.real("factor", 1, kMostFactor);
    rope.low_frequency_factor = fields.real("low_freq_factor", 1e-3, kMostFactor);
    rope.high_frequency_factor = fields.real("high_freq_factor", 1e-3, kMostFactor);
    rope.original_context = fields.real("original_max_position_embeddings", 1, 1 << 24);
    if (!(rope.high_frequency_factor > rope.low_frequency_factor)) {
      throw FormatError(fields.place() + ": high_freq_factor must be above low_freq_factor");
    }
    return rope;
  }
  throw FormatError(message(fields.place(), ": rope type: found ", quoted(kind),
                            ", this engine computes default, linear and llama3"));
}

// transformers 5 writes rope_parameters {rope_type, rope_theta, ...}; before it, rope_theta and rope_scaling.
RopeConfig parse_rope(const Fields& fields) {
  double theta = fields.real_or("rope_theta", 1, kMostTheta, 10000);
  if (fields.real_or("partial_rotary_factor", 0, 1, 1) != 1) {
    throw FormatError(fields.place() + ": partial_rotary_factor: this engine rotates whole heads only");
  }
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const JsonValue* value = fields.optional(key);
    if (value == nullptr) continue;
    const Fields rope(*value, fields.place() + ": " + key);
    theta = rope.real_or("rope_theta", 1, kMostTheta, theta);
    if (rope.real_or("partial_rotary_factor", 0, 1, 1) != 1) {
      throw FormatError(rope.place() + ": partial_rotary_factor: this engine rotates whole heads only");
    }
    return parse_rope_scaling(rope, rope.text_or("rope_type", rope.text_or("type", "default")), theta);
  }
  RopeConfig plain;
  plain.theta = theta;
  return plain;
}

// What the text models of Gemma 3 do in their own way. Source: their code in transformers, models/gemma3.
void parse_gemma(const Fields& fields, ModelConfig& config) {
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (fields.optional(key) != nullptr)
      throw FormatError(message(fields.place(), ": ", key, ": this engine has none"));
  }
  if (fields.boolean_or("use_bidirectional_attention", false)) {
    throw FormatError(fields.place() + ": use_bidirectional_attention: this engine's attention is causal");
  }
  const std::string activation = fields.text("hidden_activation");
  if (activation != "gelu_pytorch_tanh") {
    throw FormatError(message(fields.place(), ": hidden_activation: found ", quoted(activation),
                              ", this engine computes gelu_pytorch_tanh"));
  }
  config.activation = Activation::kGeluTanh;
  fields.required("layer_types");  // without it, whether a layer is local would be a guess
  fields.required("head_dim");
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(fields.real("query_pre_attn_scalar", 1, 1 << 20)));
  config.embedding_scale = static_cast<float>(std::sqrt(static_cast<double>(config.hidden_size)));
  const Fields ropes(fields.required("rope_parameters"), fields.place() + ": rope_parameters");
  const auto rope_of = [&](const char* kind) {
    const Fields rope(ropes.required(kind), ropes.place() + ": " + kind);
    return parse_rope_scaling(rope, rope.text_or("rope_type", "default"), rope.real("rope_theta", 1, kMostTheta));
  };
  config.rope = rope_of("full_attention");
  config.local_rope = rope_of("sliding_attention");
}

void parse_windows(const Fields& fields, ModelConfig& config) {
  config.windows.assign(static_cast<size_t>(config.num_hidden_layers), 0);
  const auto window = static_cast<int32_t>(fields.integer_or("sliding_window", 1, 1 << 24, 0));
  const JsonValue* types = fields.optional("layer_types");
  if (types != nullptr) {
    if (!types->is(JsonValue::Kind::kArray) || types->items.size() != config.windows.size()) {
      fields.wrong("layer_types", *types, "one entry for each hidden layer");
    }
    for (size_t i = 0; i < config.windows.size(); ++i) {
      const std::string& kind = types->items[i].string;
      if (kind == "full_attention") continue;
      if (kind != "sliding_attention" || window == 0) {
        fields.wrong("layer_types", types->items[i], "full_attention, or sliding_attention with a sliding_window");
      }
      config.windows[i] = window;
    }
    return;
  }
  if (config.model_type == "mistral") {
    config.windows.assign(config.windows.size(), window);
  } else if (fields.boolean_or("use_sliding_window", false)) {
    throw FormatError(fields.place() + ": use_sliding_window needs layer_types, one entry for each layer");
  }
}

void parse_heads(const Fields& fields, ModelConfig& config) {
  config.num_attention_heads = static_cast<int32_t>(fields.integer("num_attention_heads", 1, 1024));
  const int32_t heads = config.num_attention_heads;
  config.num_key_value_heads = static_cast<int32_t>(fields.integer_or("num_key_value_heads", 1, heads, heads));
  if (heads % config.num_key_value_heads != 0) {
    throw FormatError(message(fields.place(), ": num_key_value_heads: found ", config.num_key_value_heads,
                              ", it must divide num_attention_heads ", heads));
  }
  if (fields.optional("head_dim") == nullptr && config.hidden_size % heads != 0) {
    throw FormatError(message(fields.place(), ": hidden_size ", config.hidden_size, " is no multiple of ", heads,
                              " heads and head_dim is missing"));
  }
  config.head_dim = static_cast<int32_t>(fields.integer_or("head_dim", 2, 1024, config.hidden_size / heads));
  if (config.head_dim % 2 != 0 || config.head_dim < 2) {
    throw FormatError(message(fields.place(), ": head_dim: found ", config.head_dim, ", an even number is needed"));
  }
}

Activation parse_activation(const Fields& fields) {
  const std::string name = fields.text("hidden_act");
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "relu2") return Activation::kRelu2;
  throw FormatError(
      message(fields.place(), ": hidden_act: found ", quoted(name), ", this engine computes silu and relu2"));
}

// eos_token_id: an id, a list of them, or nothing.
std::vector<int32_t> end_tokens(const Fields& fields) {
  std::vector<int32_t> ends;
  const JsonValue* value = fields.optional("eos_token_id");
  if (value == nullptr) return ends;
  const auto add = [&](const JsonValue& token) {
    if (!token.is(JsonValue::Kind::kInteger) || token.integer < 0 ||
        token.integer > std::numeric_limits<int32_t>::max()) {
      fields.wrong("eos_token_id", token, "a token id or a list of them");
    }
    ends.push_back(static_cast<int32_t>(token.integer));
  };
  if (!value->is(JsonValue::Kind::kArray)) {
    add(*value);
  } else {
    for (const JsonValue& token : value->items) add(token);
  }
  return ends;
}

void check_name(const Fields& marker, const char* key, std::initializer_list<std::string_view> known) {
  const std::string found = marker.text(key);
  if (std::find(known.begin(), known.end(), found) != known.end()) return;
  std::string names;
  for (const std::string_view name : known) names += (names.empty() ? "" : ", ") + std::string(name);
  throw FormatError(message(marker.place(), ": ", key, ": found ", quoted(found), ", this engine knows ", names));
}

// What a diffusion model must never give out: MASK stands for what is not known yet, and padding that ends no text for
// nothing at all.
void parse_diffusion(const Fields& fields, const Fields& marker, ModelConfig& config) {
  const auto mask = static_cast<int32_t>(marker.integer("mask_token_id", 0, config.vocab_size - 1));
  marker.integer_or("block_size", 1, 1 << 24, 0);  // null: a document is one block
  const JsonValue& shift = marker.required("token_shift");
  if (!shift.is(JsonValue::Kind::kBool)) marker.wrong("token_shift", shift, "true or false");
  check_name(marker, "variant", {"fast_dllm", "llada", "causal"});
  check_name(marker, "clean_half", {"block_causal", "causal"});
  config.banned_tokens.push_back(mask);
  // Some configs say -1 where they have no padding.
  const auto padding = static_cast<int32_t>(fields.integer_or("pad_token_id", -1, config.vocab_size - 1, -1));
  if (padding >= 0 && padding != mask) config.banned_tokens.push_back(padding);
  if (static_cast<size_t>(config.vocab_size) <= config.banned_tokens.size()) {
    throw FormatError(message(marker.place(), ": a vocabulary of ", config.vocab_size, " leaves no token to choose"));
  }
  allow_tokens(end_tokens(fields), fields.place(), config);
}

}  // namespace

JsonValue parse_config_text(const std::string& text, const std::string& place) {
  return parse_json(text, place, kConfigLimits);
}

ModelConfig parse_model_config(const JsonValue& root, const std::string& place) {
  const Fields fields(root, place);
  ModelConfig config;
  apply_family(fields, config);
  config.hidden_size = static_cast<int32_t>(fields.integer("hidden_size", 1, 65'536));
  config.intermediate_size = static_cast<int32_t>(fields.integer("intermediate_size", 1, 1 << 20));
  config.num_hidden_layers = static_cast<int32_t>(fields.integer("num_hidden_layers", 1, 1024));
  config.vocab_size = static_cast<int32_t>(fields.integer("vocab_size", 1, 1 << 22));
  config.max_position_embeddings = static_cast<int32_t>(fields.integer("max_position_embeddings", 1, 1 << 24));
  config.rms_norm_eps = static_cast<float>(fields.real("rms_norm_eps", 0, 0.1));
  parse_heads(fields, config);
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  if (config.has_local_rope) {
    parse_gemma(fields, config);
  } else {
    config.rope = parse_rope(fields);
    config.activation = parse_activation(fields);
  }
  config.tie_known = fields.optional("tie_word_embeddings") != nullptr;
  config.tie_word_embeddings = fields.boolean_or("tie_word_embeddings", false);
  parse_windows(fields, config);
  if (const JsonValue* ours = fields.optional("wrinklefree")) {
    const Fields object(*ours, place + ": wrinklefree");
    config.sub_norms = config.sub_norms || object.text_or("subln", "none") != "none";
    if (const JsonValue* marker = object.optional("dlm")) {
      parse_diffusion(fields, Fields(*marker, object.place() + ": dlm"), config);
    }
  }
  return config;
}

void allow_tokens(const std::vector<int32_t>& ends, const std::string& place, ModelConfig& config) {
  for (const int32_t end : ends) {
    const auto found = std::find(config.banned_tokens.begin(), config.banned_tokens.end(), end);
    if (found == config.banned_tokens.end()) continue;
    if (found == config.banned_tokens.begin()) {
      throw FormatError(message(place, ": the end token ", end, " is the model's MASK; one of them is wrong"));
    }
    config.banned_tokens.erase(found);
  }
}

void allow_end_tokens(const JsonValue& root, const std::string& place, ModelConfig& config) {
  allow_tokens(end_tokens(Fields(root, place)), place, config);
}

std::string layout_name(TernaryLayout layout) {
  return std::string(layout == TernaryLayout::kTwoBit ? kTwoBitLayout : kFiveTritLayout);
}

PackingConfig make_packing_config(const std::string& layout, const std::string& granularity, int64_t group_size,
                                  const std::string& table, const std::string& place) {
  PackingConfig packing;
  if (layout == kFiveTritLayout) {
    packing.layout = TernaryLayout::kFiveTrits;
  } else if (layout != kTwoBitLayout) {
    throw FormatError(message(place, ": layout: found ", quoted(layout), ", this build reads ", kTwoBitLayout, " and ",
                              kFiveTritLayout, "; export the checkpoint again"));
  }
  if (granularity == "tensor") {
    packing.granularity = Granularity::kTensor;
  } else if (granularity == "row") {
    packing.granularity = Granularity::kRow;
  } else if (granularity == "group") {
    packing.granularity = Granularity::kGroup;
    if (group_size != 64 && group_size != 128 && group_size != 256) {
      throw FormatError(message(place, ": group_size: found ", group_size, ", allowed are 64, 128 and 256"));
    }
    packing.group_size = static_cast<int32_t>(group_size);
  } else {
    throw FormatError(
        message(place, ": granularity: found ", quoted(granularity), ", allowed are tensor, row and group"));
  }
  for (const auto& [name, kind] : kTables) {
    if (name != table) continue;
    packing.table = kind;
    return packing;
  }
  throw FormatError(message(place, ": embedding: found ", quoted(table), ", allowed are q8, q6, q4 and f16"));
}

namespace {

std::unordered_map<std::string, int32_t> parse_low_rank(const Fields& fields) {
  constexpr int64_t kMostRank = 1 << 18;  // that of a layer is checked with its sizes
  std::unordered_map<std::string, int32_t> ranks;
  const JsonValue* value = fields.optional("low_rank");
  if (value == nullptr) return ranks;
  if (!value->is(JsonValue::Kind::kObject)) fields.wrong("low_rank", *value, "an object of names and ranks");
  for (size_t i = 0; i < value->keys.size(); ++i) {
    const JsonValue& rank = value->items[i];
    if (!rank.is(JsonValue::Kind::kInteger) || rank.integer < 1 || rank.integer > kMostRank) {
      throw FormatError(message(fields.place(), ": low_rank: ", quoted(value->keys[i]),
                                ": allowed is an integer from 1 to ", kMostRank));
    }
    ranks.emplace(value->keys[i], static_cast<int32_t>(rank.integer));
  }
  return ranks;
}

}  // namespace

PackingConfig parse_packing_config(const JsonValue& root, const std::string& place) {
  const JsonValue* ours = root.find("wrinklefree");
  if (ours == nullptr) {
    throw FormatError(place + ": has no \"wrinklefree\" object, so this is no packed model; make one with wf export");
  }
  const Fields fields(*ours, place + ": wrinklefree");
  if (fields.text("format") != kFormat) {
    throw FormatError(message(fields.place(), ": format: found ", quoted(fields.text("format")),
                              ", the engine loads packed models; make one with wf export"));
  }
  const int64_t version = fields.integer("format_version", 0, std::numeric_limits<int32_t>::max());
  if (version != kFormatVersion) {
    throw FormatError(message(fields.place(), ": format_version: found ", version, ", this build reads ",
                              kFormatVersion, "; export the model again or install a newer wrinklefree"));
  }
  PackingConfig packing =
      make_packing_config(fields.text("layout"), fields.text("granularity"),
                          fields.integer_or("group_size", 0, 1 << 20, 0), fields.text("embedding"), fields.place());
  packing.low_rank = parse_low_rank(fields);
  return packing;
}

}  // namespace wf
