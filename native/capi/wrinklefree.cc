// The C interface of include/wrinklefree.h over runtime/model.h: no exception leaves it.
#include "include/wrinklefree.h"

#include <sys/stat.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "runtime/errors.h"
#include "runtime/model.h"

struct wf_model {
  std::unique_ptr<wf::Model> model;
};

namespace {

thread_local std::string last_error;

// Runs f; its result, or `failed` with the reason kept for wf_error.
template <typename Result, typename F>
Result guarded(Result failed, F&& f) noexcept {
  try {
    last_error.clear();
    return f();
  } catch (const std::exception& error) {
    try {
      last_error = error.what();
    } catch (...) {  // no memory for the text
    }
  }
  return failed;
}

wf::KvType kv_type_of(const std::string& name) {
  if (name == "float16") return wf::KvType::kF16;
  if (name == "float32") return wf::KvType::kF32;
  if (name == "int8") return wf::KvType::kI8;
  throw wf::InputError("kv_type: found \"" + name + "\", allowed are float16, float32 and int8");
}

void require(bool fact, const char* message) {
  if (!fact) throw wf::InputError(message);
}

wf::BatchItem item_of(const wf_item& item) {
  require(item.tokens != nullptr, "tokens: found null");
  require(item.row_count >= 0 && (item.row_count == 0 || item.rows != nullptr), "rows: found null or fewer than none");
  wf::BatchItem found{item.slot, item.tokens, item.count, wf::LogitsOf::kRows};
  found.start = item.start;
  found.block = item.block;
  found.alone = item.alone != 0;
  found.rows = item.rows;
  found.row_count = item.row_count;
  return found;
}

}  // namespace

int32_t wf_api_version(void) { return WF_API_VERSION; }

void wf_default_options(wf_options* options) { *options = {0, 0, 1, "auto", "float16"}; }

const char* wf_error(void) { return last_error.c_str(); }

wf_model* wf_load(const char* directory, const wf_options* options) {
  return guarded<wf_model*>(nullptr, [&] {
    require(directory != nullptr, "directory: found null");
    struct stat found{};
    if (::stat(directory, &found) == 0 && !S_ISDIR(found.st_mode)) {
      throw wf::InputError(wf::message(directory,
                                       ": is a file; wf_load takes a packed directory, which wf import writes "
                                       "of the files of other programs"));
    }
    wf_options wanted;
    wf_default_options(&wanted);
    if (options != nullptr) wanted = *options;
    require(wanted.kernels != nullptr && wanted.kv_type != nullptr, "options: found null for kernels or kv_type");
    wf::ModelOptions chosen;
    chosen.threads = wanted.threads;
    chosen.context = wanted.context;
    chosen.slots = wanted.slots;
    chosen.kernels = wanted.kernels;
    chosen.kv_type = kv_type_of(wanted.kv_type);
    return new wf_model{wf::Model::load(directory, chosen)};
  });
}

void wf_free(wf_model* model) { delete model; }

int32_t wf_vocab_size(const wf_model* model) { return model->model->config().vocab_size; }
int32_t wf_context(const wf_model* model) { return model->model->context(); }
int32_t wf_slots(const wf_model* model) { return model->model->slots(); }
const char* wf_kernels(const wf_model* model) { return model->model->kernels_name(); }

int wf_forward(wf_model* model, int32_t slot, const int32_t* tokens, int64_t count, int want, float* logits) {
  return guarded(1, [&] {
    require(want >= WF_LOGITS_NONE && want <= WF_LOGITS_ALL, "want: allowed are WF_LOGITS_NONE, _LAST and _ALL");
    require(tokens != nullptr, "tokens: found null");
    require(want == WF_LOGITS_NONE || logits != nullptr, "logits: found null, and logits are asked for");
    model->model->forward(slot, tokens, count, static_cast<wf::LogitsOf>(want), logits);
    return 0;
  });
}

void wf_default_item(wf_item* item) { *item = {0, 0, nullptr, 0, -1, 1, nullptr, 0}; }

int wf_forward_rows(wf_model* model, const wf_item* items, int64_t count, const wf_rows* out) {
  return guarded(1, [&] {
    require(items != nullptr && count > 0, "items: found none, at least one is needed");
    std::vector<wf::BatchItem> batch;
    int64_t rows = 0;
    for (int64_t i = 0; i < count; ++i) {
      batch.push_back(item_of(items[i]));
      rows += items[i].row_count;
    }
    const wf_rows none{};
    const wf_rows& wanted = out == nullptr ? none : *out;
    require((wanted.token == nullptr) == (wanted.probability == nullptr) &&
                (wanted.token == nullptr) == (wanted.entropy == nullptr),
            "out: token, probability and entropy must be given together");
    require(rows == 0 || wanted.logits != nullptr || wanted.token != nullptr,
            "out: found null, and rows are asked for");
    model->model->forward_batch(batch, wanted.logits, {wanted.token, wanted.probability, wanted.entropy});
    return 0;
  });
}

int32_t wf_pass_rows(const wf_model* model) { return model->model->pass_rows(); }

int32_t wf_length(wf_model* model, int32_t slot) {
  return guarded(-1, [&] { return model->model->length(slot); });
}

int wf_truncate(wf_model* model, int32_t slot, int32_t length) {
  return guarded(1, [&] {
    model->model->truncate(slot, length);
    return 0;
  });
}
