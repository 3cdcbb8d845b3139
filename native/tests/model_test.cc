// Whole models with several threads against one thread: model_test [packed directory ...]. For the sanitizers: the
// loader's and the forward pass's threads meet here without Python.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "runtime/errors.h"
#include "runtime/model.h"
#include "runtime/repack.h"
#include "runtime/safetensors.h"

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
  options.slots = 9;
  options.oversubscribe = true;  // as many working threads as asked for, on any machine
  return options;
}

// Prompts and single tokens of nine slots, in joint passes or one call after the other.
std::vector<float> slots_of(wf::Model& model, bool jointly) {
  const auto width = static_cast<size_t>(model.config().vocab_size);
  std::vector<int32_t> tokens(40);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(11 * i) % model.config().vocab_size;
  std::vector<float> logits;
  for (int32_t slot = 0; slot < model.slots(); ++slot) model.truncate(slot, 0);
  for (const int32_t step : {0, 1, 2}) {
    std::vector<wf::BatchItem> items;
    for (int32_t slot = 0; slot < model.slots(); ++slot) {
      const int64_t count = (slot + step) % 3 == 0 ? 12 + slot : 1;
      items.push_back({slot, tokens.data() + slot, count, wf::LogitsOf::kLast});
    }
    const size_t before = logits.size();
    logits.resize(before + items.size() * width);
    float* out = logits.data() + before;
    if (jointly) model.forward_batch(items, out);
    for (size_t i = 0; i < items.size() && !jointly; ++i) {
      model.forward(items[i].slot, items[i].tokens, items[i].count, items[i].want, out + i * width);
    }
  }
  return logits;
}

// The hidden states of three slots' tokens in joint passes beside logits that are as without them, and what a slot says
// behind a prefix copied from another.
std::vector<float> states_of(wf::Model& model) {
  const auto width = static_cast<size_t>(model.config().vocab_size),
             size = static_cast<size_t>(model.config().hidden_size);
  std::vector<int32_t> tokens(20);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(7 * i) % model.config().vocab_size;
  for (const int32_t slot : {0, 1, 2, 3}) model.truncate(slot, 0);
  wf::BatchItem item{0, tokens.data(), 20, wf::LogitsOf::kAll};
  item.hidden = true;
  wf::BatchItem one{2, tokens.data(), 1, wf::LogitsOf::kLast};
  one.hidden = true;
  std::vector<float> logits(width * 2), hidden(22 * size);
  model.forward_batch({item, {1, tokens.data(), 20, wf::LogitsOf::kLast}, one}, logits.data(), {}, hidden.data());
  model.forward_batch({one}, nullptr, {}, hidden.data() + 21 * size);
  model.copy_prefix(0, 3, 13);
  require(model.length(3) == 13 && model.length(0) == 20, "lengths of a copied prefix");
  model.forward(3, tokens.data() + 13, 7, wf::LogitsOf::kLast, logits.data() + width);
  require(std::equal(logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(width),
                     logits.begin() + static_cast<std::ptrdiff_t>(width)),
          "a copied prefix");
  hidden.insert(hidden.end(), logits.begin(), logits.end());
  return hidden;
}

// Not for a head in float16, whose sums run in another order for several tokens.
void check_joint(wf::Model& model, const std::string& what) {
  require(slots_of(model, true) == slots_of(model, false), "joint passes, " + what);
}

// A block model's steps in two slots: a prompt by blocks, a whole block, some of its rows anew, the finished block with
// the next one, tokens alone; what the rows' softmax says.
std::vector<float> blocks_of(wf::Model& model) {
  constexpr int32_t kBlock = 8, kMask = 5;
  const auto width = static_cast<size_t>(model.config().vocab_size);
  std::vector<int32_t> tokens(48), masks(kBlock, kMask);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(13 * i) % model.config().vocab_size;
  for (int32_t slot : {0, 1}) model.truncate(slot, 0);
  const int32_t rows[] = {1, 4, 7};
  const auto item = [&](int32_t slot, const int32_t* from, int64_t count, int64_t start, int64_t block) {
    wf::BatchItem found{slot, from, count, wf::LogitsOf::kLast};
    found.start = start;
    found.block = block;
    return found;
  };
  wf::BatchItem some = item(1, masks.data(), kBlock, 16, kBlock);
  some.want = wf::LogitsOf::kRows;
  some.rows = rows;
  some.row_count = 3;
  wf::BatchItem alone = item(0, tokens.data() + 8, 5, -1, 1);
  alone.want = wf::LogitsOf::kAll;
  alone.alone = true;
  const std::vector<std::vector<wf::BatchItem>> steps = {
      {item(0, tokens.data(), 7, -1, 1), item(1, tokens.data(), 16, -1, kBlock)},
      {some, alone},
      {item(1, tokens.data() + 1, 1, 20, kBlock), item(0, tokens.data(), 3, 2, 1)},
      {item(1, tokens.data() + 2, kBlock, 16, 1), item(0, tokens.data(), 1, -1, 1),
       item(1, masks.data(), kBlock, 24, kBlock)},
      {item(1, masks.data(), 1, 30, kBlock)},
      {item(0, tokens.data() + 5, 1, -1, 1), item(0, tokens.data() + 6, 1, -1, 1)},
  };
  std::vector<float> found;
  for (const auto& step : steps) {
    std::vector<float> logits(9 * width), probability(9), entropy(9);
    std::vector<int32_t> token(9);
    model.forward_batch(step, step.size() == 2 ? logits.data() : nullptr,
                        {token.data(), probability.data(), entropy.data()});
    found.insert(found.end(), logits.begin(), logits.end());
    found.insert(found.end(), probability.begin(), probability.end());
    found.insert(found.end(), entropy.begin(), entropy.end());
    for (int32_t id : token) found.push_back(static_cast<float>(id));
  }
  return found;
}

void check_random() {
  for (const char* layout : {"t2-r16c64", "t1.6-r16c64"})
    for (const char* head : {"q8", "q6", "q4", "f16"}) {
      wf::PackingConfig packing = wf::make_packing_config(layout, "group", 64, head, "model_test");
      packing.low_rank = {{"model.layers.0.self_attn.v_proj", 3}, {"model.layers.1.mlp.down_proj", 20}};
      const auto one = wf::Model::random(kConfig, packing, 1, with_threads(1));
      const auto four = wf::Model::random(kConfig, packing, 1, with_threads(4));
      const std::string what = std::string("random model, ") + layout + ", " + head;
      require(logits_of(*one) == logits_of(*four), what);
      require(blocks_of(*one) == blocks_of(*four), "blocks, " + what);
      require(states_of(*one) == states_of(*four), "hidden states, " + what);
      if (std::string(head) != "f16") check_joint(*four, what);
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

// The tensors of a file held in memory, in place and where they must be copied because they are not aligned.
void check_held(const std::string& directory) {
  const auto file = std::make_shared<wf::SafetensorsFile>(directory + "/model.safetensors");
  const std::string config = wf::read_small_file(directory + "/config.json", 1 << 20);
  const wf::ModelOptions options = with_threads(4);
  const auto stored = logits_of(*wf::Model::load(directory, options));
  for (const size_t shift : {0, 4}) {
    auto copies = std::make_shared<std::vector<std::vector<std::byte>>>();
    std::vector<wf::HeldTensor> tensors;
    for (const auto& [name, entry] : file->tensors()) {
      const std::byte* data = file->file().data() + file->offset(entry);
      if (shift != 0) {
        std::vector<std::byte>& copy = copies->emplace_back(entry.end - entry.begin + 64 + shift);
        const size_t aligned = 64 - reinterpret_cast<uintptr_t>(copy.data()) % 64;
        data = std::copy(data, data + (entry.end - entry.begin), copy.data() + aligned + shift) -
               static_cast<ptrdiff_t>(entry.end - entry.begin);
      }
      tensors.push_back({name, entry.dtype, entry.shape, data});
    }
    std::shared_ptr<void> owner = shift == 0 ? std::shared_ptr<void>(file) : std::shared_ptr<void>(copies);
    const auto held = wf::Model::from_tensors(config, "", tensors, std::move(owner), "held", options);
    require(logits_of(*held) == stored, "held tensors, " + directory);
    const auto refused = [&](const std::string& what) {
      try {
        wf::Model::from_tensors(config, "", tensors, nullptr, "held", options);
      } catch (const wf::FormatError&) {
        return;
      }
      require(false, "held tensors: " + what + " is not refused");
    };
    const wf::HeldTensor last = tensors.back();
    tensors.push_back(last);
    refused("a name twice");
    tensors.back().name = "surplus";
    refused("a tensor too many");
    tensors.resize(tensors.size() - 2);
    refused("a missing tensor");
    tensors.push_back(last);
    tensors.back().shape.back() += 1;
    refused("another shape");
  }
}

// Rows of random ternary values, stored as int8 in another order, against codes packed one by one.
void check_repack() {
  constexpr int32_t kRows = 37, kColumns = 200;
  constexpr int64_t kColumnBlocks = 4, kRowBlocks = 3;
  std::vector<uint8_t> values(static_cast<size_t>(kRows) * kColumns);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(static_cast<int>(i * i % 7 % 3) - 1);
  std::vector<int32_t> order(kRows);
  for (int32_t i = 0; i < kRows; ++i) order[static_cast<size_t>(i)] = (i * 5 + 3) % kRows;
  std::vector<uint8_t> expected(kRowBlocks * kColumnBlocks * 256, 0x55), found(expected.size());
  for (int32_t row = 0; row < kRows; ++row) {
    for (int32_t column = 0; column < kColumns; ++column) {
      const int32_t inside = column % 16, block = row / 16 * kColumnBlocks + column / 64;
      uint8_t& byte = expected[static_cast<size_t>(block * 256 + inside / 4 * 64 + row % 16 * 4 + inside % 4)];
      const int32_t shift = column % 64 / 16 * 2;
      const auto from = static_cast<size_t>(order[static_cast<size_t>(row)]);
      const int32_t code = static_cast<int8_t>(values[from * kColumns + static_cast<size_t>(column)]) + 1;
      byte = static_cast<uint8_t>((byte & ~(3 << shift)) | code << shift);
    }
  }
  for (const int threads : {1, 4}) {
    wf::repack_rows({wf::RowType::kI8, values.data(), kRows, kColumns, order.data()}, found.data(), "rows", threads);
    require(found == expected, "rows repacked");
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    check_random();
    check_repack();
    for (int i = 1; i < argc; ++i) {
      check_directory(argv[i]);
      check_held(argv[i]);
    }
  } catch (const std::exception& error) {
    require(false, error.what());
  }
  std::puts("model_test: ok");
  return 0;
}
