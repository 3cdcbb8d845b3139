#include "model.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "errors.h"
#include "forward.h"
#include "kernels/cpu_features.h"
#include "mapped_file.h"

namespace wf {

namespace {

constexpr int32_t kDefaultContext = 4096;
// Passes of so many rows may be left to fewer threads when others take the cores. What a further row costs, about (of
// one row's time): makes passes of different numbers of rows comparable.
constexpr int32_t kFewRows = 32;
constexpr double kRowCost = 0.12;
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
  const std::string generation_path = directory + "/generation_config.json";
  if (!config.banned_tokens.empty() && ::access(generation_path.c_str(), F_OK) == 0) {
    const std::string text = read_small_file(generation_path, kLargestConfig);
    allow_end_tokens(parse_config_text(text, generation_path), generation_path, config);
  }
  std::unique_ptr<TensorSource> source =
      file_source(directory + "/model.safetensors", options.keep_mapped, choose_threads(options));
  return std::make_unique<Model>(std::move(config), packing, std::move(source), options);
}

std::unique_ptr<Model> Model::from_tensors(const std::string& config_json, const std::string& generation_json,
                                           const std::vector<HeldTensor>& tensors, std::shared_ptr<void> owner,
                                           const std::string& place, const ModelOptions& options) {
  const std::string config_place = place + ": config";
  const JsonValue root = parse_config_text(config_json, config_place);
  const PackingConfig packing = parse_packing_config(root, config_place);
  ModelConfig config = parse_model_config(root, config_place);
  if (!config.banned_tokens.empty() && !generation_json.empty()) {
    const std::string generation_place = place + ": generation_config";
    allow_end_tokens(parse_config_text(generation_json, generation_place), generation_place, config);
  }
  std::unique_ptr<TensorSource> source = memory_source(tensors, std::move(owner), place, choose_threads(options));
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
      few_rows_threads_(most_active_),
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

std::vector<int32_t> Model::banned_tokens() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return config_.banned_tokens;
}

void Model::allow_tokens(const std::vector<int32_t>& ends) {
  const std::lock_guard<std::mutex> lock(mutex_);
  wf::allow_tokens(ends, "the tokenizer", config_);
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

void Model::copy_prefix(int32_t source, int32_t target, int32_t positions) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const KvCache& from = checked_slot(source);
  KvCache& to = checked_slot(target);
  if (positions < 0 || positions > from.length()) {
    throw InputError(
        message("copy_prefix: found ", positions, ", slot ", source, " holds ", from.length(), " positions"));
  }
  if (source == target) return to.set_length(positions);
  to.copy_prefix(from, positions);
}

void Model::run_job(Pass& pass, size_t rows) {
  const auto job = [&pass](Worker& worker) { pass.run(worker); };
  if (rows > static_cast<size_t>(kFewRows)) {  // pieces of work long enough to wait for
    pool_.run(most_active_, job);
    return;
  }
  ActiveThreads& threads = rows == 1 ? decode_threads_ : few_rows_threads_;
  const int64_t stalls = pool_.stalls();
  const auto start = std::chrono::steady_clock::now();
  pool_.run(threads.count(), job);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  threads.record(taken.count() / (1 + kRowCost * static_cast<double>(rows - 1)), pool_.stalls() - stalls);
}

void Model::run_pass(Outputs& out) {
  const PassContext context{config_, weights_, *kernels_, rope_, local_rope_, shared_, own_, profile_.get()};
  Pass pass(context, out.logits, out.choices, out.hidden);
  run_job(pass, shared_.ids.size());
  for (const Run& run : shared_.runs) run.cache->set_length(std::max(run.cache->length(), run.start + run.count));
  const size_t rows = shared_.wanted.size();
  if (out.logits != nullptr) out.logits += rows * static_cast<size_t>(config_.vocab_size);
  if (out.choices.token != nullptr) {
    out.choices = {out.choices.token + rows, out.choices.probability + rows, out.choices.entropy + rows};
  }
  if (out.hidden != nullptr) out.hidden += shared_.hidden_rows.size() * static_cast<size_t>(config_.hidden_size);
  clear_rows();
}

void Model::check_tokens(const BatchItem& item) const {
  if (item.count < 1) throw InputError("tokens: found none, at least one is needed");
  for (int64_t i = 0; i < item.count; ++i) {
    if (item.tokens[i] < 0 || item.tokens[i] >= config_.vocab_size) {
      throw InputError(
          message("tokens: found ", item.tokens[i], " at index ", i, ", allowed are 0 to ", config_.vocab_size - 1));
    }
  }
}

void Model::check_rows(const BatchItem& item) const {
  if (item.want != LogitsOf::kRows) return;
  for (int64_t i = 0; i < item.row_count; ++i) {
    if (item.rows[i] < (i == 0 ? 0 : item.rows[i - 1] + 1) || item.rows[i] >= item.count) {
      throw InputError(message("rows: found ", item.rows[i], " at index ", i, ", allowed are rising indices of the ",
                               item.count, " tokens"));
    }
  }
}

bool Model::has_windows() const {
  return std::any_of(config_.windows.begin(), config_.windows.end(), [](int32_t window) { return window != 0; });
}

void Model::check_block(const BatchItem& item, const Place& place) const {
  if (item.block < 1 || item.block > std::numeric_limits<int32_t>::max()) {
    throw InputError(message("block: found ", item.block, ", allowed are 1 (causal) and more"));
  }
  if (item.block == 1) return;
  if (has_windows()) {
    throw InputError(message("block: found ", item.block,
                             ", this model has layers with a sliding window, which have no rule for blocks; allowed is "
                             "1 (causal)"));
  }
  const int64_t first = std::min(item.count, item.block - place.start % item.block);
  const int64_t most = std::max(first, std::min(item.count - first, item.block));
  if (most > shared_.chunk) {
    throw InputError(message("block: ", most,
                             " tokens of one block must be computed together, a pass of this model has ", shared_.chunk,
                             " rows; use smaller blocks"));
  }
}

std::vector<Model::Place> Model::check(const std::vector<BatchItem>& items) const {
  struct Slot {
    int64_t length = 0, end = 0;
    int32_t items = 0;
    const BatchItem* last = nullptr;
  };
  std::vector<Slot> found(slots_.size());
  std::vector<Place> places;
  if (items.empty()) throw InputError("batch: found no item, at least one is needed");
  for (const BatchItem& item : items) {
    const int64_t held = checked_slot(item.slot).length();
    Slot& slot = found[static_cast<size_t>(item.slot)];
    if (slot.items++ == 0) slot.length = held;
    check_tokens(item);
    check_rows(item);
    const Place place{item.start == -1 ? slot.length : item.start, slot.length, false};
    if (slot.last != nullptr && place.start != slot.end) {
      throw InputError(message("batch: slot ", item.slot, " occurs twice, and the second item starts at position ",
                               place.start, "; it must start at ", slot.end, ", where the first one ends"));
    }
    if (place.start < 0 || place.start > slot.length) {
      throw InputError(message("start: found ", item.start, ", slot ", item.slot, " holds ", slot.length,
                               " positions; allowed are 0 to ", slot.length, ", or -1 for behind the last"));
    }
    if (item.count > context_ - place.start) {
      throw InputError(message("tokens: ", item.count, " tokens from position ", place.start,
                               " on exceed the context of ", context_,
                               " positions; shorten the prompt or load with a larger context (at most ",
                               config_.max_position_embeddings, ")"));
    }
    check_block(item, place);
    // What the first item sees of the second one's positions would be neither the old nor the new.
    if (slot.last != nullptr && slot.last->block > 1 && slot.end % slot.last->block != 0 && slot.length > slot.end) {
      throw InputError(message("batch: slot ", item.slot,
                               " occurs twice, and the first item ends inside a block that "
                               "the slot already holds; use two calls"));
    }
    slot.end = place.start + item.count;
    slot.length = std::max(slot.length, slot.end);
    slot.last = &item;
    places.push_back(place);
  }
  for (size_t i = 0; i < items.size(); ++i) {
    places[i].shared = found[static_cast<size_t>(items[i].slot)].items > 1;
  }
  return places;
}

void Model::grow_scratch(const std::vector<BatchItem>& items, bool logits, bool choices) {
  if (!choices) return;
  int64_t rows = 0;
  for (const BatchItem& item : items) {
    if (item.hidden) continue;
    rows += item.want == LogitsOf::kAll    ? item.count
            : item.want == LogitsOf::kRows ? item.row_count
            : item.want == LogitsOf::kLast ? 1
                                           : 0;
  }
  const auto most = static_cast<size_t>(std::min<int64_t>({rows, shared_.chunk, kHeadRows}));
  const auto grow = [](auto& memory, size_t size) { memory.resize(std::max(memory.size(), size)); };
  grow(shared_.parts, most * static_cast<size_t>(softmax_pieces(config_)));
  if (!logits) grow(shared_.logits, most * static_cast<size_t>(config_.vocab_size));
}

int64_t Model::fitting(const BatchItem& item, const Place& place, int64_t done, int64_t room) const {
  const int64_t left = item.count - done;
  if (left <= room) return left;
  if (item.block > 1) {  // whole blocks
    const int64_t position = place.start + done;
    return std::max<int64_t>(0, (position + room) / item.block * item.block - position);
  }
  if (item.alone) return room;
  // One row alone goes through attention in another way, so no piece of a longer item is one: where pieces end, which
  // depends on the other items, must not change a result. But in a model so wide that a pass has one row.
  const int64_t count = left - room == 1 ? room - 1 : room;
  return count >= 2 ? count : room == shared_.chunk ? 1 : 0;
}

void Model::forward_batch(const std::vector<BatchItem>& items, float* logits, const Choices& choices, float* hidden) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::vector<Place> places = check(items);
  grow_scratch(items, logits != nullptr, choices.token != nullptr);
  clear_rows();
  Outputs out{logits, choices, hidden};
  for (size_t i = 0; i < items.size(); ++i) {
    for (int64_t done = 0; done < items[i].count;) {
      const int64_t room = shared_.chunk - static_cast<int64_t>(shared_.ids.size());
      const int64_t count = fitting(items[i], places[i], done, room);
      if (count == 0) {
        run_pass(out);
        continue;
      }
      add_rows(items[i], places[i], done, count);
      done += count;
    }
  }
  run_pass(out);
}

void Model::add_rows(const BatchItem& item, const Place& place, int64_t done, int64_t count) {
  const auto first = static_cast<int32_t>(shared_.ids.size());
  const int64_t start = place.start + done;
  const bool one = item.block == 1 && count == 1;
  shared_.runs.push_back({&checked_slot(item.slot), first, static_cast<int32_t>(count), static_cast<int32_t>(start),
                          static_cast<int32_t>(item.block), static_cast<int32_t>(std::max(place.length, start + count)),
                          item.alone || one, !one || place.shared});
  shared_.ids.insert(shared_.ids.end(), item.tokens + done, item.tokens + done + count);
  std::vector<int32_t>& rows = item.hidden ? shared_.hidden_rows : shared_.wanted;
  const auto want = [&](int64_t index) {
    if (index >= done && index < done + count) rows.push_back(first + static_cast<int32_t>(index - done));
  };
  if (item.want == LogitsOf::kLast) want(item.count - 1);
  for (int64_t i = 0; i < (item.want == LogitsOf::kAll ? count : 0); ++i) want(done + i);
  for (int64_t i = 0; i < (item.want == LogitsOf::kRows ? item.row_count : 0); ++i) want(item.rows[i]);
}

void Model::clear_rows() {
  shared_.ids.clear();
  shared_.wanted.clear();
  shared_.hidden_rows.clear();
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
