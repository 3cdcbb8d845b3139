// Whole models with several threads against one thread: model_test [packed directory ...]. For the sanitizers: the
// loader's and the forward pass's threads meet here without Python.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "runtime/model.h"

namespace {

constexpr const char* kConfig = R"({"model_type": "qwen3", "hidden_size": 320, "intermediate_size": 700,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 500,
  "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false})";

void require(bool fact, const std::string& what) {
  if (fact) return;
  std::fprintf(stderr, "model_test: %s\n", what.c_str());
  std::exit(1);
}

// Logits behind a prompt and two single tokens.
std::vector<float> logits_of(wf::Model& model) {
  const auto width = static_cast<size_t>(model.config().vocab_size);
  const int32_t count = std::min(20, model.context() - 2);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = 7 * i % model.config().vocab_size;
  std::vector<float> logits(width * 3);
  model.forward(0, tokens.data(), count, wf::LogitsOf::kLast, logits.data());
  model.forward(0, tokens.data(), 1, wf::LogitsOf::kLast, logits.data() + width);
  model.forward(0, tokens.data(), 1, wf::LogitsOf::kLast, logits.data() + 2 * width);
  return logits;
}

wf::ModelOptions with_threads(int threads) {
  wf::ModelOptions options;
  options.threads = threads;
  options.context = 64;
  return options;
}

void check_random() {
  for (const char* layout : {"t2-r16c64", "t1.6-r16c64"})
    for (const char* head : {"q8", "q6", "q4", "f16"}) {
      const wf::PackingConfig packing = wf::make_packing_config(layout, "group", 64, head, "model_test");
      const auto one = wf::Model::random(kConfig, packing, 1, with_threads(1));
      const auto four = wf::Model::random(kConfig, packing, 1, with_threads(4));
      require(logits_of(*one) == logits_of(*four), std::string("random model, ") + layout + ", " + head);
    }
}

void check_directory(const std::string& directory) {
  for (const bool keep_mapped : {false, true}) {
    wf::ModelOptions options = with_threads(4);
    options.keep_mapped = keep_mapped;
    const auto stored = wf::Model::load(directory, options);
    options.threads = 1;
    const auto alone = wf::Model::load(directory, options);
    require(logits_of(*stored) == logits_of(*alone), directory);
    options.threads = 4;
    for (const char* layout : {"t2", "t1.6"}) {
      options.layout = layout;
      logits_of(*wf::Model::load(directory, options));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    check_random();
    for (int i = 1; i < argc; ++i) check_directory(argv[i]);
  } catch (const std::exception& error) {
    require(false, error.what());
  }
  std::puts("model_test: ok");
  return 0;
}
