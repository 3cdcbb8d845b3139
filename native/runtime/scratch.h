// The buffers of a forward pass, allocated once when a model is loaded.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "kernels/kernels.h"
#include "kv_cache.h"
#include "line_vector.h"
#include "model_config.h"

namespace wf {

// Tokens that go through the layers together; a longer prompt is fed in pieces.
constexpr int32_t kMostChunkTokens = 256;
// A single query's keys are handled in ranges of at least kSplitKeys positions and at most kMostSplits of them, by the
// number of positions alone, so that results do not depend on threads or on what else is in the pass.
constexpr int32_t kSplitKeys = 256;
constexpr int32_t kMostSplits = 16;
// Passes of fewer rows give each range of a query to a thread of its own.
constexpr int32_t kSplitRows = 8;

inline int32_t padded_rows(int32_t rows) { return (rows + kRowsPerBlock - 1) / kRowsPerBlock * kRowsPerBlock; }
// Floats from one row of a buffer to the next: whole row blocks, but no whole pages, since rows that many bytes apart
// fall into the same few places of a cache.
inline int32_t row_stride(int32_t rows) {
  constexpr int32_t kPageFloats = 1024;
  const int32_t padded = padded_rows(rows);
  return padded % kPageFloats == 0 ? padded + kRowsPerBlock : padded;
}
inline int32_t column_blocks(int32_t columns) { return (columns + kColumnsPerBlock - 1) / kColumnsPerBlock; }
inline int32_t widest(const ModelConfig& config) {
  return std::max({config.hidden_size, config.intermediate_size, config.q_width()});
}

// kMostChunkTokens, or fewer so that the buffers of a very wide model stay below 128 MiB.
inline int32_t chunk_tokens(const ModelConfig& config, int32_t low_width) {
  constexpr int64_t kMostBytes = 128 << 20;
  const int64_t floats = int64_t{6} * config.hidden_size + int64_t{4} * config.intermediate_size +
                         int64_t{4} * config.q_width() + int64_t{2} * config.kv_width() + low_width + 4096;
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
        wide_scales(size(tokens, 1)),
        cosines(size(tokens, config.head_dim / 2 * (config.has_local_rope ? 2 : 1))),
        sines(cosines.size()) {}

  static size_t size(int32_t tokens, int32_t width) { return static_cast<size_t>(tokens) * static_cast<size_t>(width); }

  LineVector<float> residual;      // [tokens, D]
  LineVector<float> normed;        // [tokens, width of the product at hand]
  LineVector<int8_t> quantized;    // [tokens, column blocks * 64]
  LineVector<int32_t> block_sums;  // [tokens, column blocks]
  LineVector<float> scales;        // [tokens]
  // The head's input, as WideActivations.
  LineVector<int8_t> high, low;      // [tokens, column blocks of D * 64]
  LineVector<int32_t> half_sums;     // [tokens, column blocks of D * 2]
  LineVector<float> wide_scales;     // [tokens]
  LineVector<float> cosines, sines;  // [tokens, 1 or 2 (global, local), head_dim / 2]
};

// One query's unfinished attention, for the heads of one key-value head and one range of positions (Kernels::attend).
struct PartialScratch {
  PartialScratch(const ModelConfig& config, int32_t rows)
      : heads(config.num_attention_heads),
        head_dim(config.head_dim),
        sums(TokenScratch::size(rows * kMostSplits, heads * (head_dim + 2))) {}

  float* peaks(int32_t row, int32_t split, int32_t head) { return start(row, split) + head; }
  float* totals(int32_t row, int32_t split, int32_t head) { return start(row, split) + heads + head; }
  float* out(int32_t row, int32_t split, int32_t head) { return start(row, split) + 2 * heads + head * head_dim; }

  const int32_t heads, head_dim;
  LineVector<float> sums;

 private:
  float* start(int32_t row, int32_t split) {
    return sums.data() + TokenScratch::size(row * kMostSplits + split, heads * (head_dim + 2));
  }
};

// What each thread has for itself.
struct ThreadScratch {
  explicit ThreadScratch(const ModelConfig& config)
      : token(config, 1),
        partial(config, 1),
        query(TokenScratch::size(1, config.q_width())),
        block(static_cast<float*>(
            ::operator new[](attend_scratch_floats(std::min(config.head_dim, kMaxBlockHeadDim)) * sizeof(float),
                             std::align_val_t{64}))) {}

  struct AlignedDelete {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };

  TokenScratch token;
  PartialScratch partial;
  LineVector<float> query;                        // heads after rotation
  std::unique_ptr<float[], AlignedDelete> block;  // for attend_block
};

// Consecutive rows of a pass that are consecutive positions of one slot.
struct Run {
  KvCache* cache;
  int32_t first;  // row
  int32_t count;
  int32_t start;     // position of the first row
  int32_t block;     // 1: causal; else a query sees its whole block of so many positions
  int32_t limit;     // ... but none from here on
  bool single;       // its queries attend one at a time, as that of a single row does
  bool store_first;  // its keys are stored before anybody attends, not by the task that attends them

  // Positions that the query of a row sees: those below.
  int32_t seen(int32_t row) const {
    const int32_t position = start + row - first;
    return block == 1 ? position + 1
                      : static_cast<int32_t>(std::min<int64_t>((position / block + int64_t{1}) * block, limit));
  }
};

// Rows whose logits are in memory at once where only the choices among them are asked for.
constexpr int32_t kHeadRows = 32;
// A piece of a row of logits whose part of the softmax is summed up at once: the same whatever the threads.
constexpr int32_t kSoftmaxPiece = 1024;
inline int32_t softmax_pieces(const ModelConfig& config) {
  return (config.vocab_size + kSoftmaxPiece - 1) / kSoftmaxPiece;
}
struct SoftmaxPart {
  float peak, total, slope;  // Kernels::softmax_sums
};

// What threads write for each other. Widths are padded to whole row blocks.
struct SharedScratch {
  SharedScratch(const ModelConfig& config, int32_t low_width)
      : chunk(chunk_tokens(config, low_width)),
        tokens(config, chunk),
        partial(config, std::min(chunk, kSplitRows)),
        q_stride(row_stride(config.q_width())),
        kv_stride(row_stride(config.kv_width())),
        hidden_stride(row_stride(config.hidden_size)),
        middle_stride(row_stride(config.intermediate_size)),
        low_stride(low_width),
        q(TokenScratch::size(chunk, q_stride)),
        k(TokenScratch::size(chunk, kv_stride)),
        v(TokenScratch::size(chunk, kv_stride)),
        attention(TokenScratch::size(chunk, q_stride)),
        hidden(TokenScratch::size(chunk, hidden_stride)),
        gate(TokenScratch::size(chunk, middle_stride)),
        up(TokenScratch::size(chunk, middle_stride)),
        low(TokenScratch::size(chunk, low_stride)) {
    ids.reserve(static_cast<size_t>(chunk));
    wanted.reserve(static_cast<size_t>(chunk));
    hidden_rows.reserve(static_cast<size_t>(chunk));
    runs.reserve(static_cast<size_t>(chunk));
  }

  const int32_t chunk;  // tokens
  TokenScratch tokens;
  PartialScratch partial;
  int32_t q_stride, kv_stride, hidden_stride, middle_stride, low_stride;
  LineVector<float> q, k, v;    // [tokens, stride]
  LineVector<float> attention;  // [tokens, q_stride]
  LineVector<float> hidden;     // [tokens, hidden_stride]: output of o or down
  LineVector<float> gate, up;   // [tokens, middle_stride]
  LineVector<float> low;        // [tokens, low_stride]: V^T x of low-rank corrections
  // The pass at hand.
  std::vector<int32_t> ids;          // [tokens]
  std::vector<int32_t> wanted;       // rows whose logits are asked for, rising
  std::vector<int32_t> hidden_rows;  // other rows, whose hidden states are asked for, rising
  std::vector<Run> runs;             // in the order of rows
  // Grown before a pass that needs them.
  LineVector<float> logits;        // [kHeadRows or fewer, V]
  std::vector<SoftmaxPart> parts;  // [kHeadRows or fewer, softmax_pieces]
};

}  // namespace wf
