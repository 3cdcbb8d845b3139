// One pass of up to SharedScratch::chunk rows through all layers, run by every thread of the pool together. Rows may
// belong to several slots: weights are read once for all of them, attention is each slot's own.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "model.h"
#include "profile.h"

namespace wf {

struct PassContext {
  const ModelConfig& config;
  const Weights& weights;
  const Kernels& kernels;
  const Rope& rope;
  const Rope& local_rope;           // used where config says so
  SharedScratch& shared;            // its ids, runs and wanted rows are the pass's
  std::vector<ThreadScratch>& own;  // by thread
  Profile* profile;                 // or null
};

class Pass {
 public:
  // logits: [wanted rows, V], or null where nobody asks for them; choices: of the wanted rows; hidden: [hidden rows,
  // D].
  Pass(const PassContext& context, float* logits, const Choices& choices, float* hidden)
      : c_(context),
        count_(static_cast<int32_t>(context.shared.ids.size())),
        logits_(logits),
        choices_(choices),
        hidden_(hidden) {}

  // The job of the thread pool: all threads call it with their worker. No exception leaves it: it allocates nothing.
  void run(Worker& worker) noexcept;

 private:
  // How the queries of a run meet their keys.
  struct Task {
    const Run* run;
    int32_t row, queries;  // rows of the pass; queries is 1 but for blocks
    int32_t kv_head;
    int32_t split;  // -1: all, one after the other
    bool block;
  };
  struct Range {
    int32_t first, last, splits, split_keys;
  };
  // Consecutive rows of the pass.
  struct Rows {
    int32_t first, count;
  };

  ThreadScratch& own(const Worker& worker) const { return c_.own[static_cast<size_t>(worker.index())]; }
  TokenScratch& scratch(const Worker& worker) const { return count_ == 1 ? own(worker).token : c_.shared.tokens; }
  // f(row) for each of `rows`; of a pass of one row, in every thread.
  template <typename F>
  void each_row(Worker& worker, int32_t rows, F&& f) const noexcept;
  // f(begin, end) over row blocks of `bytes` each.
  template <typename F>
  void each_block(Worker& worker, int64_t blocks, int64_t bytes, F&& f) const noexcept;
  // f(begin, end, rows) over row blocks of `bytes` each, for all rows of the pass or, with many, the thread's own.
  template <typename F>
  void each_product(Worker& worker, int64_t blocks, int64_t bytes, F&& f) const noexcept;
  bool rows_stay(const Worker& worker) const noexcept;
  Rows rows_of(const Worker& worker) const noexcept;
  void mark(Worker& worker, Part part) const noexcept;
  const Run& run_of(int32_t row) const noexcept;

  void embed(Worker& worker) noexcept;
  void project(Worker& worker, const Layer& layer) noexcept;
  void mlp(Worker& worker, const Layer& layer) noexcept;
  // forward_head.cc
  void head(Worker& worker) noexcept;
  void give_hidden(Worker& worker) noexcept;
  void norm_head_rows(Worker& worker, int32_t rows) noexcept;
  // Logits [count, V] of the wanted rows from `first` on.
  void head_product(Worker& worker, int32_t first, int32_t count, float* out) noexcept;
  void choose(Worker& worker, int32_t first, int32_t count, const float* logits) noexcept;
  void choose_row(int32_t place, const float* logits, const SoftmaxPart* parts) noexcept;

  // residual += added (when given), normed by `added_norm` (when given) in `normed`.
  void add_to_residual(float* residual, const float* added, const float* added_norm, float* normed) const noexcept;
  // The same, then quantized = quantise(rms_norm(residual)).
  void norm_and_quantize(Worker& worker, const float* added, const float* added_norm, const float* norm) noexcept;
  // quantized = quantise(row), after `norm` when there is one; `keep`: what is quantised is put in `normed` too.
  void quantize(TokenScratch& scratch, int32_t token, const float* row, int32_t width, const float* norm, float epsilon,
                bool keep) noexcept;
  // low = V^T x of those of `linears` that have factors, for the x in `normed` that all of them read.
  void reduce(Worker& worker, std::initializer_list<const Linear*> linears) noexcept;
  void product(const TokenScratch& scratch, const Linear& linear, int64_t begin, int64_t end, Rows rows, float* out,
               int32_t stride) noexcept;

  // out += U low, for the outputs of row blocks.
  void correct(const Linear& linear, int64_t begin, int64_t end, Rows rows, float* out, int32_t stride) noexcept;
  float* low(const Linear& linear, int32_t row) const noexcept {
    return c_.shared.low.data() + static_cast<int64_t>(row) * c_.shared.low_stride + linear.low_place;
  }

  // forward_attention.cc
  void attention(Worker& worker, int32_t index, const Layer& layer) noexcept;
  void rotate(float* head, const float* norm, const TokenScratch& scratch, int32_t index, int32_t row) const noexcept;
  void store(const TokenScratch& scratch, int32_t index, const Layer& layer, const Run& run, int32_t row,
             int32_t kv_head) noexcept;
  void store_first(Worker& worker, int32_t index, const Layer& layer) noexcept;
  Range range_of(int32_t index, const Run& run, int32_t row) const noexcept;
  bool split_between_threads(const Run& run) const { return run.single && run.count == 1 && count_ < kSplitRows; }
  bool attends_in_blocks(int32_t index, const Run& run) const noexcept;
  int32_t tasks_of(int32_t index, const Run& run) const noexcept;
  Task task_of(int32_t index, const Run& run, int32_t number) const noexcept;
  void attend(Worker& worker, int32_t index, const Layer& layer, const Task& task) noexcept;
  void attend_block(Worker& worker, int32_t index, const Task& task) noexcept;
  // The heads [first, last) of one query from the sums of its ranges: [heads, head_dim], from head 0 on.
  void merge(PartialScratch& partial, int32_t row, int32_t splits, int32_t first, int32_t last,
             float* out) const noexcept;
  const float* attended(TokenScratch& scratch, int32_t index, const Run& run, int32_t row) noexcept;

  const PassContext& c_;
  const int32_t count_;
  float* const logits_;
  const Choices choices_;
  float* const hidden_;
};

}  // namespace wf

#include "forward-inl.h"
