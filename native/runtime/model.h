// A loaded model: prefill and decode of token sequences in independent slots.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "active_threads.h"
#include "kernels/kernels.h"
#include "kv_cache.h"
#include "model_config.h"
#include "rope.h"
#include "scratch.h"
#include "threads.h"
#include "weights.h"

namespace wf {

struct ModelOptions {
  int32_t threads = 0;  // 0: available_cores()
  int32_t context = 0;  // positions of a slot; 0: min(max_position_embeddings, 4096)
  int32_t slots = 1;
  std::string kernels = "auto";
  KvType kv_type = KvType::kF16;
  bool oversubscribe = false;     // let more threads work than there are CPUs: for tests of the threads
  bool keep_mapped = false;       // see file_source
  std::string layout = "stored";  // of the weights in memory: stored, t2 or t1.6 (converted, the same numbers)
  int32_t prefetch_bytes = -1;    // see TernaryMatrix::prefetch; -1: preferred_prefetch_bytes()
};

class Pass;

enum class LogitsOf : uint8_t { kNone, kLast, kAll, kRows };

// Tokens for one slot in a joint pass.
struct BatchItem {
  int32_t slot;
  const int32_t* tokens;
  int64_t count;
  LogitsOf want;
  // Position of the first token, at most the slot's length; -1: behind the last. The keys and values of the positions
  // it covers are computed anew, those behind them stay.
  int64_t start = -1;
  // Which keys the query at position p sees. 1: the causal rule, those up to p. B: its whole block, those before
  // (p / B + 1) * B, as far as the slot holds them behind this item.
  int64_t block = 1;
  // Attention of each row as if its token came by itself: the logits of a pass a token, to the last bit.
  bool alone = false;
  const int32_t* rows = nullptr;  // kRows: which tokens, rising
  int64_t row_count = 0;
  // The rows asked for are given as hidden states, not as logits and choices.
  bool hidden = false;
};

// For each row asked for: the best token (the lowest of equal ones), its probability, and the entropy in nats of the
// softmax. Banned tokens have probability 0. Logits that are no numbers give token -1 and NaN.
struct Choices {
  int32_t* token = nullptr;
  float* probability = nullptr;
  float* entropy = nullptr;
};

class Model {
 public:
  // Loads a packed directory. Throws FormatError for the files, InputError for the options.
  static std::unique_ptr<Model> load(const std::string& directory, const ModelOptions& options);
  // The same from what a packed directory holds: the texts of its config.json and generation_config.json (may be empty)
  // and its tensors. See memory_source.
  static std::unique_ptr<Model> from_tensors(const std::string& config_json, const std::string& generation_json,
                                             const std::vector<HeldTensor>& tensors, std::shared_ptr<void> owner,
                                             const std::string& place, const ModelOptions& options);
  // Random weights of the architecture in the text of a config.json.
  static std::unique_ptr<Model> random(const std::string& config_json, const PackingConfig& packing, uint64_t seed,
                                       const ModelOptions& options);

  Model(ModelConfig config, const PackingConfig& packing, std::unique_ptr<TensorSource> source,
        const ModelOptions& options);

  const ModelConfig& config() const { return config_; }
  int32_t context() const { return context_; }
  int32_t slots() const { return static_cast<int32_t>(slots_.size()); }
  int threads() const { return pool_.size(); }
  const char* kernels_name() const { return kernels_->name; }
  const std::string& kernels_reason() const { return kernels_reason_; }
  TernaryLayout layout() const { return weights_.layers.front().q.matrix.layout; }
  int32_t prefetch_bytes() const { return weights_.layers.front().q.matrix.prefetch; }
  uint64_t bytes_per_token() const { return weights_.bytes_per_token; }
  uint64_t kv_bytes() const { return KvCache::bytes(config_, context_, kv_type_); }

  // Appends `count` tokens to a slot. logits: null for kNone, [V] for kLast, [count, V] for kAll.
  // Throws InputError for an unknown slot, a token outside the vocabulary or a sequence beyond the context, before
  // anything is written. Calls from several threads wait for each other.
  void forward(int32_t slot, const int32_t* tokens, int64_t count, LogitsOf want, float* logits);

  // The same for several slots together: the weights are read once for all tokens. logits: null, or a row for each one
  // asked for, in the order of the items, [rows, V]; choices: the same of each row, or null. A token's numbers are
  // those of one call after the other. hidden: the states behind the last norm, [rows of items with `hidden`, D], or
  // null where there are none. A slot may occur again when the new item starts where the one before it ends.
  // The rows of a block go through the layers together: throws InputError for more of them than pass_rows().
  void forward_batch(const std::vector<BatchItem>& items, float* logits, const Choices& choices = {},
                     float* hidden = nullptr);
  int32_t pass_rows() const { return shared_.chunk; }
  // Whether layers attend within a sliding window, which has no rule for blocks.
  bool has_windows() const;

  // While on, passes add to profile(), which starts at zero.
  void set_profiling(bool on);
  Profile profile() const;

  // Tokens whose logits are -infinity: MASK of a diffusion model, and its padding.
  std::vector<int32_t> banned_tokens() const;
  // Bans no token that ends a text; for those that the files read here do not name. Throws FormatError for MASK.
  void allow_tokens(const std::vector<int32_t>& ends);

  int32_t length(int32_t slot) const;
  // Forgets the positions from `length` on. Throws InputError when the slot holds fewer.
  void truncate(int32_t slot, int32_t length);
  // Lets `target` hold what `source` holds in its first `positions` positions, to the last bit, and nothing else.
  // Throws InputError when the source holds fewer.
  void copy_prefix(int32_t source, int32_t target, int32_t positions);

  // Calls f(0) to f(count - 1), each once, over the threads that passes use, and returns when all are done. f must not
  // throw.
  template <typename F>
  void each(int64_t count, F f) {
    const std::lock_guard<std::mutex> lock(mutex_);
    pool_.run(most_active_, [&](Worker& worker) {
      worker.chunks(count, 1, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) f(i);
      });
    });
  }

 private:
  KvCache& checked_slot(int32_t slot) const;
  // Where an item lies, what its slot held before it, and whether its slot has another one.
  struct Place {
    int64_t start, length;
    bool shared;
  };
  std::vector<Place> check(const std::vector<BatchItem>& items) const;
  void check_tokens(const BatchItem& item) const;
  void check_rows(const BatchItem& item) const;
  void check_block(const BatchItem& item, const Place& place) const;
  void grow_scratch(const std::vector<BatchItem>& items, bool logits, bool choices);
  // How many tokens of an item, from `done` on, go into a pass that has room for `room`; 0: none of them fit.
  int64_t fitting(const BatchItem& item, const Place& place, int64_t done, int64_t room) const;
  // Adds `count` tokens of an item, from `done` on, to the rows of the next pass.
  void add_rows(const BatchItem& item, const Place& place, int64_t done, int64_t count);
  void clear_rows();
  // Where the rows of a call go; moves on from pass to pass.
  struct Outputs {
    float* logits;
    Choices choices;
    float* hidden;
  };
  // Runs the rows that shared_ holds, appends them to their slots and clears shared_; the outputs move on.
  void run_pass(Outputs& out);
  void run_job(Pass& pass, size_t rows);

  ModelConfig config_;
  Weights weights_;
  Rope rope_, local_rope_;
  const Kernels* kernels_;
  std::string kernels_reason_;
  KvType kv_type_;
  int32_t context_;
  std::vector<std::unique_ptr<KvCache>> slots_;
  ThreadPool pool_;
  const int most_active_;  // threads of a pass: more than CPUs would wait for each other
  ActiveThreads decode_threads_, few_rows_threads_;
  SharedScratch shared_;
  std::vector<ThreadScratch> own_;  // by thread
  std::unique_ptr<Profile> profile_;
  mutable std::mutex mutex_;
};

}  // namespace wf
