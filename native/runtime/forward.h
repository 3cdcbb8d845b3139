// One pass of up to SharedScratch::chunk tokens through all layers, run by every thread of the pool together.
#pragma once
#include <cstdint>

#include "model.h"

namespace wf {

struct PassContext {
  const ModelConfig& config;
  const Weights& weights;
  const Kernels& kernels;
  KvCache& cache;
  KvType kv_type;
  SharedScratch& shared;
  std::vector<TokenScratch>& own;           // by thread
  std::vector<std::vector<float>>& scores;  // by thread
};

class Pass {
 public:
  Pass(const PassContext& context, const int32_t* tokens, int32_t count, LogitsOf want, float* logits)
      : c_(context), tokens_(tokens), count_(count), start_(context.cache.length()), want_(want), logits_(logits) {}

  // The job of the thread pool: all threads call it with their worker. No exception leaves it: it allocates nothing.
  void run(Worker& worker) noexcept;

 private:
  TokenScratch& scratch(const Worker& worker) const {
    return count_ == 1 ? c_.own[static_cast<size_t>(worker.index())] : c_.shared.tokens;
  }
  template <typename F>
  void each_token(Worker& worker, F&& f) const noexcept;

  void embed(Worker& worker) noexcept;
  void attention(Worker& worker, int32_t index, const Layer& layer) noexcept;
  void rotate_and_store(int32_t index, const Layer& layer, int32_t token, int32_t head) noexcept;
  void attend_all(Worker& worker, int32_t index) noexcept;
  // `queries` tokens from `first` on, all query heads of one key-value head.
  void attend_block(int32_t index, int32_t first, int32_t queries, int32_t kv_head) noexcept;
  void attend(Worker& worker, int32_t index, int32_t token, int32_t head) noexcept;
  void mlp(Worker& worker, const Layer& layer) noexcept;
  void head(Worker& worker) noexcept;

  // residual += added (when given); quantized = quantise(rms_norm(residual)).
  void norm_and_quantize(Worker& worker, const float* added, const float* norm) noexcept;
  // quantized = quantise(input), after `norm` when there is one.
  void quantize_rows(Worker& worker, const float* input, int32_t width, int32_t stride, const float* norm,
                     float epsilon) noexcept;
  void quantize(TokenScratch& scratch, int32_t token, const float* input, int32_t width) noexcept;
  void product(const TokenScratch& scratch, const Linear& linear, int64_t begin, int64_t end, float* out,
               int32_t stride) noexcept;
  // Row blocks of `bytes` each to hand out at once, of `total`.
  int64_t grain(const Worker& worker, int64_t total, int64_t bytes) const;

  const PassContext& c_;
  const int32_t* tokens_;
  const int32_t count_;
  const int32_t start_;  // position of the first token
  const LogitsOf want_;
  float* const logits_;
};

}  // namespace wf
