// Any bytes as calls of a loaded model and of samplers: batches, starts, blocks, rows, lengths, options.
#include <fuzzer/FuzzedDataProvider.h>

#include <limits>
#include <vector>

#include "fuzz/fuzz.h"
#include "runtime/model.h"
#include "runtime/sampler.h"

namespace {

constexpr const char* kConfig = R"({"model_type": "qwen3", "hidden_size": 16, "intermediate_size": 24,
  "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20,
  "max_position_embeddings": 40, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
  "wrinklefree": {"dlm": {"mask_token_id": 3, "block_size": 4, "token_shift": true, "variant": "fast_dllm",
  "clean_half": "causal"}}})";
constexpr int32_t kVocabulary = 20, kHidden = 16;
constexpr int32_t kSlots = 3;

std::unique_ptr<wf::Model> make_model() {
  wf::ModelOptions options;
  options.threads = 1;
  options.slots = kSlots;
  return wf::Model::random(kConfig, wf::make_packing_config("t2-r16c64", "row", 0, "q8", "fuzz"), 1, options);
}

// Mostly small numbers, sometimes any.
int64_t number(FuzzedDataProvider& input, int64_t most) {
  return input.ConsumeBool() ? input.ConsumeIntegralInRange<int64_t>(-1, most) : input.ConsumeIntegral<int64_t>();
}

int32_t small(FuzzedDataProvider& input, int32_t most) {
  return input.ConsumeIntegral<uint8_t>() == 255 ? input.ConsumeIntegral<int32_t>()
                                                 : input.ConsumeIntegralInRange<int32_t>(-1, most);
}

void batch(wf::Model& model, FuzzedDataProvider& input) {
  struct Item {
    std::vector<int32_t> tokens, rows;
  };
  std::vector<Item> owned(input.ConsumeIntegralInRange<size_t>(0, 4));
  std::vector<wf::BatchItem> items;
  size_t rows = 0, hidden_rows = 0;
  for (Item& own : owned) {
    own.tokens.resize(input.ConsumeIntegralInRange<size_t>(0, 12));
    const bool good = input.ConsumeIntegral<uint8_t>() < 240;
    for (int32_t& token : own.tokens) {
      token = good ? input.ConsumeIntegralInRange<int32_t>(0, kVocabulary - 1) : input.ConsumeIntegral<int32_t>();
    }
    own.rows.resize(input.ConsumeIntegralInRange<size_t>(0, 3));
    for (int32_t& row : own.rows) row = small(input, 12);
    wf::BatchItem item{
        small(input, kSlots), own.tokens.data(), static_cast<int64_t>(own.tokens.size()),
        input.PickValueInArray({wf::LogitsOf::kNone, wf::LogitsOf::kLast, wf::LogitsOf::kAll, wf::LogitsOf::kRows})};
    item.start = input.ConsumeBool() ? -1 : number(input, 40);
    item.block = input.ConsumeBool() ? 1 : number(input, 16);
    item.alone = input.ConsumeBool();
    item.rows = own.rows.data();
    item.row_count = static_cast<int64_t>(own.rows.size());
    item.hidden = input.ConsumeBool();
    (item.hidden ? hidden_rows : rows) += item.want == wf::LogitsOf::kNone   ? 0
                                          : item.want == wf::LogitsOf::kLast ? 1
                                          : item.want == wf::LogitsOf::kAll  ? own.tokens.size()
                                                                             : own.rows.size();
    items.push_back(item);
  }
  std::vector<float> logits(rows * kVocabulary), probability(rows), entropy(rows), hidden(hidden_rows * kHidden);
  std::vector<int32_t> token(rows, -2);
  wf::Choices choices;
  if (input.ConsumeBool()) choices = {token.data(), probability.data(), entropy.data()};
  const bool ran = fuzz::accepted(
      [&] { model.forward_batch(items, input.ConsumeBool() ? logits.data() : nullptr, choices, hidden.data()); });
  for (size_t i = 0; ran && choices.token != nullptr && i < rows; ++i) {
    fuzz::require(token[i] >= -1 && token[i] < kVocabulary && token[i] != 3, "a token that is not allowed");
  }
}

void sample(FuzzedDataProvider& input) {
  wf::SamplingOptions options;
  const auto real = [&] {
    return input.ConsumeBool() ? input.ConsumeFloatingPointInRange<float>(0, 2) : input.ConsumeFloatingPoint<float>();
  };
  options.temperature = real();
  options.top_k = small(input, 24);
  options.top_p = real();
  options.min_p = real();
  options.repetition_penalty = real();
  options.presence_penalty = real();
  options.frequency_penalty = real();
  if (input.ConsumeBool()) options.bias = {{small(input, kVocabulary), real()}};
  options.seed = input.ConsumeIntegral<uint64_t>();
  fuzz::accepted([&] {
    wf::Sampler sampler(kVocabulary, options);
    std::vector<float> logits(kVocabulary);
    for (int round = 0; round < 3; ++round) {
      for (float& logit : logits) logit = real();
      const int32_t seen[] = {small(input, kVocabulary), small(input, kVocabulary)};
      fuzz::accepted([&] { sampler.accept(seen, 2, input.ConsumeBool()); });
      const auto inside = [&](int32_t token) {
        fuzz::require(token >= 0 && token < kVocabulary, "a token outside the vocabulary");
      };
      fuzz::accepted([&] { inside(sampler.sample(logits.data(), small(input, 24)).token); });
      fuzz::accepted([&] {
        const auto mask = input.ConsumeIntegral<uint32_t>();
        const int32_t token = sampler.sample(logits.data(), -1, &mask).token;
        fuzz::require(token >= 0 && token < kVocabulary && (mask >> token & 1) == 1, "a token that the mask excludes");
      });
      fuzz::accepted([&] {
        const wf::Proposal proposal = sampler.propose(logits.data());
        inside(proposal.token);
        inside(sampler.verify(logits.data(), proposal, -1).sample.token);
      });
    }
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<wf::Model> model = make_model();
  for (int32_t slot = 0; slot < kSlots; ++slot) model->truncate(slot, 0);
  FuzzedDataProvider input(data, size);
  for (int step = 0; step < 8 && input.remaining_bytes() > 0; ++step) {
    switch (input.ConsumeIntegralInRange<int>(0, 4)) {
      case 0:
        sample(input);
        break;
      case 1:
        fuzz::accepted([&] { model->truncate(small(input, kSlots), small(input, 40)); });
        break;
      case 2:
        fuzz::accepted([&] { model->copy_prefix(small(input, kSlots), small(input, kSlots), small(input, 40)); });
        break;
      default:
        batch(*model, input);
    }
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      fuzz::require(model->length(slot) >= 0 && model->length(slot) <= model->context(), "a slot beyond the context");
    }
  }
  return 0;
}
