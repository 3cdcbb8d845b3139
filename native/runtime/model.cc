#include "model.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "errors.h"
#include "forward.h"
#include "kernels/cpu_features.h"
#include "mapped_file.h"

namespace wf {

namespace {

constexpr int32_t kDefaultContext = 4096;
constexpr int32_t kMostThreads = 256;
constexpr int32_t kMostSlots = 1024;
constexpr size_t kLargestConfig = 4 << 20;

int32_t checked_option(const char* name, int64_t found, int64_t least, int64_t most) {
  if (found < least || found > most) {
    throw InputError(message(name, ": found ", found, ", allowed is an integer from ", least, " to ", most));
  }
  return static_cast<int32_t>(found);
}

int choose_threads(const ModelOptions& options) {
  return options.threads == 0 ? available_cores() : checked_option("threads", options.threads, 1, kMostThreads);
}

WeightsInMemory choose_memory(const PackingConfig& packing, const ModelOptions& options) {
  constexpr int32_t kMostPrefetch = 1 << 16;
  const char* reason = nullptr;
  WeightsInMemory wanted{packing.layout,
                         options.prefetch_bytes == -1
                             ? preferred_prefetch_bytes(&reason)
                             : checked_option("prefetch_bytes", options.prefetch_bytes, 0, kMostPrefetch)};
  if (options.layout == "t2") {
    wanted.layout = TernaryLayout::kTwoBit;
  } else if (options.layout == "t1.6") {
    wanted.layout = TernaryLayout::kFiveTrits;
  } else if (options.layout != "stored") {
    throw InputError(message("layout: found ", quoted(options.layout), ", allowed are stored, t2 and t1.6"));
  }
  return wanted;
}

int32_t choose_context(const ModelConfig& config, const ModelOptions& options) {
  const int32_t most = config.max_position_embeddings;
  if (options.context == 0) return std::min(most, kDefaultContext);
  return checked_option("context", options.context, 1, most);
}

uint64_t machine_memory() {
  return static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

void check_memory(uint64_t bytes, const char* what) {
  const uint64_t memory = machine_memory();
  if (bytes > memory) {
    throw InputError(message(what, " would take ", bytes >> 20, " MiB, this machine has ", memory >> 20,
                             "; choose a smaller context or fewer slots"));
  }
}

// Bytes of the packed tensors of a model, to refuse a random one that cannot fit. Below 2^63 for every ModelConfig.
uint64_t estimated_bytes(const ModelConfig& config) {
  const auto hidden = static_cast<uint64_t>(config.hidden_size);
  const uint64_t widths = static_cast<uint64_t>(config.q_width()) * 2 + static_cast<uint64_t>(config.kv_width()) * 2 +
                          static_cast<uint64_t>(config.intermediate_size) * 3;
  return static_cast<uint64_t>(config.num_hidden_layers) * hidden * widths / 4 +
         static_cast<uint64_t>(config.vocab_size) * hidden * 2;
}

}  // namespace

std::unique_ptr<Model> Model::load(const std::string& directory, const ModelOptions& options) {
  const std::string config_path = directory + "/config.json";
  const JsonValue root = parse_config_text(read_small_file(config_path, kLargestConfig), config_path);
  const PackingConfig packing = parse_packing_config(root, config_path);
  ModelConfig config = parse_model_config(root, config_path);
  std::unique_ptr<TensorSource> source =
      file_source(directory + "/model.safetensors", options.keep_mapped, choose_threads(options));
  return std::make_unique<Model>(std::move(config), packing, std::move(source), options);
}

std::unique_ptr<Model> Model::random(const std::string& config_json, const PackingConfig& packing, uint64_t seed,
                                     const ModelOptions& options) {
  ModelConfig config = parse_model_config(parse_config_text(config_json, "config"), "config");
  check_memory(estimated_bytes(config), "the random weights");
  std::unique_ptr<TensorSource> source = random_source(config, seed, choose_threads(options));
  return std::make_unique<Model>(std::move(config), packing, std::move(source), options);
}

Model::Model(ModelConfig config, const PackingConfig& packing, std::unique_ptr<TensorSource> source,
             const ModelOptions& options)
    : config_(std::move(config)),
      weights_(config_, packing, choose_memory(packing, options), std::move(source)),
      rope_(config_.rope, config_.head_dim),
      local_rope_(config_.local_rope, config_.head_dim),
      kv_type_(options.kv_type),
      context_(choose_context(config_, options)),
      pool_(choose_threads(options)),
      most_active_(options.oversubscribe ? pool_.size() : std::min(pool_.size(), choose_cores().cpus)),
      decode_threads_(most_active_),
      shared_(config_, weights_.low_width) {
  const char* reason = nullptr;
  kernels_ = select_kernels(options.kernels.c_str(), &reason);
  if (kernels_ == nullptr) {
    throw InputError(message("kernels: ", quoted(options.kernels), " is unknown or cannot run on this machine",
                             reason != nullptr ? message(" (", reason, ")") : "", "; use auto"));
  }
  kernels_reason_ = reason != nullptr ? reason : "";
  const int32_t count = checked_option("slots", options.slots, 1, kMostSlots);
  check_memory(checked_product(kv_bytes(), static_cast<uint64_t>(count), "the KV caches"), "the KV caches");
  const bool huge = kv_bytes() * static_cast<uint64_t>(count) <= machine_memory() / 8;
  for (int32_t i = 0; i < count; ++i) slots_.push_back(std::make_unique<KvCache>(config_, context_, kv_type_, huge));
  for (int i = 0; i < pool_.size(); ++i) own_.emplace_back(config_);
}

KvCache& Model::checked_slot(int32_t slot) const {
  if (slot < 0 || slot >= slots()) {
    throw InputError(message("slot: found ", slot, ", this model has slots 0 to ", slots() - 1));
  }
  return *slots_[static_cast<size_t>(slot)];
}

int32_t Model::length(int32_t slot) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return checked_slot(slot).length();
}

void Model::truncate(int32_t slot, int32_t length) {
  const std::lock_guard<std::mutex> lock(mutex_);
  KvCache& cache = checked_slot(slot);
  if (length < 0 || length > cache.length()) {
    throw InputError(message("truncate: found ", length, ", slot ", slot, " holds ", cache.length(), " positions"));
  }
  cache.set_length(length);
}

void Model::run_job(Pass& pass, size_t rows) {
  const auto job = [&pass](Worker& worker) { pass.run(worker); };
  if (rows > 1) {  // pieces of work long enough to wait for
    pool_.run(most_active_, job);
    return;
  }
  const int64_t stalls = pool_.stalls();
  const auto start = std::chrono::steady_clock::now();
  pool_.run(decode_threads_.count(), job);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  decode_threads_.record(taken.count(), pool_.stalls() - stalls);
}

size_t Model::run_pass(float* logits) {
  const PassContext context{config_, weights_, *kernels_, rope_, local_rope_, shared_, own_, profile_.get()};
  Pass pass(context, logits);
  run_job(pass, shared_.ids.size());
  for (const Run& run : shared_.runs) run.cache->set_length(run.start + run.count);
  const size_t rows = shared_.wanted.size();
  clear_rows();
  return rows;
}

void Model::check(const std::vector<BatchItem>& items) const {
  std::vector<bool> used(slots_.size());
  if (items.empty()) throw InputError("batch: found no item, at least one is needed");
  for (const BatchItem& item : items) {
    const KvCache& cache = checked_slot(item.slot);
    if (used[static_cast<size_t>(item.slot)]) throw InputError(message("batch: slot ", item.slot, " occurs twice"));
    used[static_cast<size_t>(item.slot)] = true;
    if (item.count < 1) throw InputError("tokens: found none, at least one is needed");
    if (item.count > context_ - cache.length()) {
      throw InputError(message("tokens: ", item.count, " tokens behind position ", cache.length(),
                               " exceed the context of ", context_,
                               " positions; shorten the prompt or load with a larger context (at most ",
                               config_.max_position_embeddings, ")"));
    }
    for (int64_t i = 0; i < item.count; ++i) {
      if (item.tokens[i] < 0 || item.tokens[i] >= config_.vocab_size) {
        throw InputError(
            message("tokens: found ", item.tokens[i], " at index ", i, ", allowed are 0 to ", config_.vocab_size - 1));
      }
    }
  }
}

void Model::forward_batch(const std::vector<BatchItem>& items, float* logits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check(items);
  clear_rows();
  for (const BatchItem& item : items) {
    for (int64_t done = 0; done < item.count;) {
      const auto filled = static_cast<int64_t>(shared_.ids.size());
      const int64_t left = item.count - done;
      int64_t count = std::min(shared_.chunk - filled, left);
      // One row alone goes through attention in another way, so no piece of a longer item is one: where pieces end,
      // which depends on the other items, must not change a result.
      if (left - count == 1) --count;
      if (count < std::min<int64_t>(left, 2) && filled > 0) {
        logits += run_pass(logits) * static_cast<size_t>(config_.vocab_size);
        continue;
      }
      count = std::max<int64_t>(count, 1);  // a model so wide that few rows fit in a pass
      add_rows(item, done, count);
      done += count;
    }
  }
  run_pass(logits);
}

void Model::add_rows(const BatchItem& item, int64_t done, int64_t count) {
  KvCache& cache = checked_slot(item.slot);
  const auto first = static_cast<int32_t>(shared_.ids.size());
  shared_.runs.push_back({&cache, first, static_cast<int32_t>(count), cache.length()});
  shared_.ids.insert(shared_.ids.end(), item.tokens + done, item.tokens + done + count);
  for (int64_t i = 0; i < count; ++i) {
    const bool last = done + i == item.count - 1;
    if (item.want == LogitsOf::kAll || (item.want == LogitsOf::kLast && last)) {
      shared_.wanted.push_back(first + static_cast<int32_t>(i));
    }
  }
}

void Model::clear_rows() {
  shared_.ids.clear();
  shared_.wanted.clear();
  shared_.runs.clear();
}

void Model::forward(int32_t slot, const int32_t* tokens, int64_t count, LogitsOf want, float* logits) {
  forward_batch({{slot, tokens, count, want}}, logits);
}

void Model::set_profiling(bool on) {
  const std::lock_guard<std::mutex> lock(mutex_);
  profile_ = on ? std::make_unique<Profile>() : nullptr;
}

Profile Model::profile() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return profile_ == nullptr ? Profile{} : *profile_;
}

}  // namespace wf
