// The buffers of a forward pass, allocated once when a model is loaded.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "model_config.h"

namespace wf {

// Tokens that go through the layers together; a longer prompt is fed in pieces.
constexpr int32_t kMostChunkTokens = 256;

inline int32_t padded_rows(int32_t rows) { return (rows + kRowsPerBlock - 1) / kRowsPerBlock * kRowsPerBlock; }
inline int32_t column_blocks(int32_t columns) { return (columns + kColumnsPerBlock - 1) / kColumnsPerBlock; }
inline int32_t widest(const ModelConfig& config) {
  return std::max({config.hidden_size, config.intermediate_size, config.q_width()});
}

// kMostChunkTokens, or fewer so that the buffers of a very wide model stay below 128 MiB.
inline int32_t chunk_tokens(const ModelConfig& config) {
  constexpr int64_t kMostBytes = 128 << 20;
  const int64_t floats = int64_t{6} * config.hidden_size + int64_t{4} * config.intermediate_size +
                         int64_t{4} * config.q_width() + int64_t{2} * config.kv_width() + 4096;
  return static_cast<int32_t>(std::clamp<int64_t>(kMostBytes / (floats * 4), 1, kMostChunkTokens));
}

// What belongs to tokens: the residual stream and the quantised input of the next product. While one token is
// decoded every thread computes these for itself, which is cheaper than one more barrier.
struct TokenScratch {
  TokenScratch(const ModelConfig& config, int32_t tokens)
      : residual(size(tokens, config.hidden_size)),
        normed(size(tokens, widest(config))),
        quantized(size(tokens, column_blocks(widest(config)) * kColumnsPerBlock)),
        block_sums(size(tokens, column_blocks(widest(config)))),
        scales(size(tokens, 1)),
        high(size(tokens, column_blocks(config.hidden_size) * kColumnsPerBlock)),
        low(high.size()),
        half_sums(size(tokens, column_blocks(config.hidden_size) * 2)),
        wide_scales(size(tokens, 1)) {}

  static size_t size(int32_t tokens, int32_t width) { return static_cast<size_t>(tokens) * static_cast<size_t>(width); }

  std::vector<float> residual;      // [tokens, D]
  std::vector<float> normed;        // [tokens, width of the product at hand]
  std::vector<int8_t> quantized;    // [tokens, column blocks * 64]
  std::vector<int32_t> block_sums;  // [tokens, column blocks]
  std::vector<float> scales;        // [tokens]
  // The head's input, as WideActivations.
  std::vector<int8_t> high, low;   // [tokens, column blocks of D * 64]
  std::vector<int32_t> half_sums;  // [tokens, column blocks of D * 2]
  std::vector<float> wide_scales;  // [tokens]
};

// What threads write for each other. Widths are padded to whole row blocks.
struct SharedScratch {
  explicit SharedScratch(const ModelConfig& config)
      : chunk(chunk_tokens(config)),
        tokens(config, chunk),
        q_stride(padded_rows(config.q_width())),
        kv_stride(padded_rows(config.kv_width())),
        hidden_stride(padded_rows(config.hidden_size)),
        middle_stride(padded_rows(config.intermediate_size)),
        q(TokenScratch::size(chunk, q_stride)),
        k(TokenScratch::size(chunk, kv_stride)),
        v(TokenScratch::size(chunk, kv_stride)),
        attention(TokenScratch::size(chunk, q_stride)),
        hidden(TokenScratch::size(chunk, hidden_stride)),
        gate(TokenScratch::size(chunk, middle_stride)),
        up(TokenScratch::size(chunk, middle_stride)),
        cosines(TokenScratch::size(chunk, config.head_dim / 2)),
        sines(cosines.size()) {}

  const int32_t chunk;  // tokens
  TokenScratch tokens;
  int32_t q_stride, kv_stride, hidden_stride, middle_stride;
  std::vector<float> q, k, v;         // [tokens, stride]
  std::vector<float> attention;       // [tokens, q_stride]
  std::vector<float> hidden;          // [tokens, hidden_stride]: output of o or down
  std::vector<float> gate, up;        // [tokens, middle_stride]
  std::vector<float> cosines, sines;  // [tokens, head_dim / 2]
};

}  // namespace wf
