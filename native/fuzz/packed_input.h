// Inputs that are a packed model: how libFuzzer changes them, and what a model that loads must do.
#pragma once
#include <algorithm>
#include <vector>

#include "fuzz/fuzz.h"
#include "runtime/model.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace fuzz {

inline constexpr int32_t kMostTokens = 3;
inline constexpr int32_t kLargestVocabulary = 1 << 16;

// Computes a few tokens, as a text and as a block.
inline void run(wf::Model& model) {
  const int32_t vocabulary = model.config().vocab_size;
  if (vocabulary > kLargestVocabulary) return;
  const int32_t count = std::min({kMostTokens, model.context(), vocabulary});
  const int32_t tokens[kMostTokens] = {0, 1, 2};
  std::vector<float> logits(static_cast<size_t>(vocabulary) * kMostTokens);
  model.forward(0, tokens, count, wf::LogitsOf::kAll, logits.data());
  require(model.length(0) == count, "a slot of another length");
  if (model.has_windows()) return;
  wf::BatchItem item{0, tokens, count, wf::LogitsOf::kAll};
  item.start = 0;
  item.block = 4;
  int32_t token[kMostTokens];
  float probability[kMostTokens], entropy[kMostTokens];
  model.forward_batch({item}, nullptr, {token, probability, entropy});
  const std::vector<int32_t> banned = model.banned_tokens();
  for (int32_t i = 0; i < count; ++i) {
    require(token[i] >= -1 && token[i] < vocabulary, "a token outside the vocabulary");
    require(std::find(banned.begin(), banned.end(), token[i]) == banned.end(), "a banned token");
  }
}

// How a model is to be held, by the bits of one byte.
inline wf::ModelOptions options_of(uint8_t bits) {
  wf::ModelOptions options;
  options.threads = 1;
  options.keep_mapped = (bits & 2) != 0;
  constexpr const char* kLayouts[] = {"stored", "t2", "t1.6", "stored"};
  options.layout = kLayouts[bits >> 2 & 3];
  constexpr wf::KvType kTypes[] = {wf::KvType::kF16, wf::KvType::kF32, wf::KvType::kI8, wf::KvType::kF16};
  options.kv_type = kTypes[bits >> 4 & 3];
  return options;
}

inline std::string mutated(std::string part, size_t room) {
  const size_t size = part.size();
  part.resize(size + std::min<size_t>(room, 64));
  part.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(part.data()), size, part.size()));
  return part;
}

// The header's text changed and its length with it, so that the change is looked at.
inline void mutate_header(std::string& weights, size_t room) {
  uint64_t length = 0;
  if (weights.size() < 8) return;
  std::memcpy(&length, weights.data(), 8);
  if (length > weights.size() - 8) return;
  std::string text = mutated(weights.substr(8, length), room);
  const std::string data = weights.substr(8 + length);
  text.resize((text.size() + 63) / 64 * 64 + 56, ' ');  // the data stays aligned
  length = text.size();
  weights.assign(8, '\0');
  std::memcpy(weights.data(), &length, 8);
  weights += text + data;
}

}  // namespace fuzz

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  fuzz::Packed packed = fuzz::Packed::from({reinterpret_cast<const char*>(data), size});
  const size_t room = max_size - std::min(max_size, size + 128);
  const unsigned kind = seed % 16;
  if (size < 6 || kind == 0) return LLVMFuzzerMutate(data, size, max_size);
  if (kind == 1) packed.options = static_cast<uint8_t>(seed >> 8);
  if (kind >= 2 && kind < 8) packed.config = fuzz::mutated(packed.config, room);
  if (kind >= 8 && kind < 14) fuzz::mutate_header(packed.weights, room);
  if (kind >= 14) packed.weights = fuzz::mutated(packed.weights, room);
  const std::string out = packed.bytes();
  if (out.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, out.data(), out.size());
  return out.size();
}
