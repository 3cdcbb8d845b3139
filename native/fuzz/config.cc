// Any bytes as the text of config.json and generation_config.json.
#include <cmath>

#include "fuzz/fuzz.h"
#include "runtime/kv_cache.h"
#include "runtime/model_config.h"
#include "runtime/rope.h"

namespace {

// What the rest of the runtime relies on without looking again.
void check(const wf::ModelConfig& config) {
  fuzz::require(config.num_attention_heads % config.num_key_value_heads == 0, "heads that cannot be shared");
  fuzz::require(config.head_dim >= 2 && config.head_dim % 2 == 0, "an odd head");
  fuzz::require(config.windows.size() == static_cast<size_t>(config.num_hidden_layers), "not a window for each layer");
  fuzz::require(std::isfinite(config.attention_scale) && std::isfinite(config.embedding_scale), "an infinite scale");
  fuzz::require(wf::KvCache::bytes(config, config.max_position_embeddings, wf::KvType::kF32) < uint64_t{1} << 60,
                "a KV cache whose size overflows");
  for (const int32_t token : config.banned_tokens) {
    fuzz::require(token >= 0 && token < config.vocab_size, "a banned token outside the vocabulary");
  }
  const wf::Rope rope(config.rope, config.head_dim);
  float cosines[512], sines[512];
  rope.angles(config.max_position_embeddings - 1, cosines, sines);
  for (int32_t i = 0; i < config.head_dim / 2; ++i) {
    fuzz::require(std::isfinite(cosines[i]) && std::isfinite(sines[i]), "an angle that is no number");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);  // without a 0 behind it
  wf::JsonValue root;
  const bool json = fuzz::accepted([&] { root = wf::parse_json(text, "fuzz", {4 << 20, 16, 65'536}); });
  // The same text by the door that files take.
  const bool same = fuzz::accepted([&] { wf::parse_config_text(std::string(text), "fuzz"); });
  fuzz::require(json == same, "two readings of one text");
  if (!json) return 0;
  fuzz::accepted([&] { wf::parse_packing_config(root, "fuzz"); });
  fuzz::accepted([&] {
    wf::ModelConfig config = wf::parse_model_config(root, "fuzz");
    check(config);
    fuzz::accepted([&] { wf::allow_end_tokens(root, "fuzz", config); });
  });
  return 0;
}
