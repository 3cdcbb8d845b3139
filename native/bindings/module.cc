// wrinklefree._native: the face of the runtime in Python. Only the files of this directory know Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <memory>
#include <optional>
#include <tuple>
#include <variant>

#include "kernel_bindings.h"
#include "runtime/errors.h"
#include "runtime/model.h"
#include "runtime/sampler.h"
#include "sampler_bindings.h"
#include "tensor_bindings.h"
#include "training_bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wf {
namespace {

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ChoiceArrays = std::tuple<Ids, Numbers, Numbers>;
using Wanted = std::variant<int32_t, Tokens>;

// The exceptions of the runtime become those of wrinklefree.errors.
void translate(const std::exception_ptr& error, void*) {
  const auto raise = [](const char* name, const std::exception& e) {
    const nb::object type = nb::module_::import_("wrinklefree.errors").attr(name);
    PyErr_SetString(type.ptr(), e.what());
  };
  try {
    std::rethrow_exception(error);
  } catch (const FormatError& e) {
    raise("FormatError", e);
  } catch (const InputError& e) {
    raise("InputError", e);
  }
}

ModelOptions make_options(int32_t threads, int32_t context, int32_t slots, const std::string& kernels,
                          const std::string& kv_type) {
  ModelOptions options;
  options.threads = threads;
  options.context = context;
  options.slots = slots;
  options.kernels = kernels;
  if (kv_type != "float16" && kv_type != "float32" && kv_type != "int8") {
    throw InputError(message("kv_type: found ", quoted(kv_type), ", allowed are float16, float32 and int8"));
  }
  options.kv_type = kv_type == "float16" ? KvType::kF16 : kv_type == "float32" ? KvType::kF32 : KvType::kI8;
  return options;
}

std::unique_ptr<Model> load_model(const std::string& directory, int32_t threads, int32_t context, int32_t slots,
                                  const std::string& kernels, const std::string& kv_type, bool keep_mapped,
                                  const std::string& layout, int32_t prefetch_bytes) {
  ModelOptions options = make_options(threads, context, slots, kernels, kv_type);
  options.keep_mapped = keep_mapped;
  options.layout = layout;
  options.prefetch_bytes = prefetch_bytes;
  const nb::gil_scoped_release release;
  return Model::load(directory, options);
}

std::unique_ptr<Model> held_model(const std::string& config_json, const nb::dict& tensors,
                                  const std::string& generation_json, const std::string& place, int32_t threads,
                                  int32_t context, int32_t slots, const std::string& kernels,
                                  const std::string& kv_type, const std::string& layout, int32_t prefetch_bytes) {
  ModelOptions options = make_options(threads, context, slots, kernels, kv_type);
  options.layout = layout;
  options.prefetch_bytes = prefetch_bytes;
  return model_from_tensors(config_json, tensors, generation_json, place, options);
}

std::unique_ptr<Model> random_model(const std::string& config_json, const std::string& granularity, int64_t group_size,
                                    uint64_t seed, const std::string& layout, const std::string& head, int32_t threads,
                                    const std::string& kernels, int32_t context, int32_t slots,
                                    const std::string& kv_type, int32_t prefetch_bytes) {
  ModelOptions options = make_options(threads, context, slots, kernels, kv_type);
  options.prefetch_bytes = prefetch_bytes;
  const PackingConfig packing = make_packing_config(layout, granularity, group_size, head, "Model.random");
  const nb::gil_scoped_release release;
  return Model::random(config_json, packing, seed, options);
}

void forward(Model& model, int32_t slot, const Tokens& tokens, const std::optional<Logits>& logits) {
  LogitsOf want = LogitsOf::kNone;
  const auto count = static_cast<int64_t>(tokens.shape(0));
  if (logits.has_value()) {
    const auto width = static_cast<size_t>(model.config().vocab_size);
    const bool last = logits->ndim() == 1 && logits->shape(0) == width;
    const bool all = logits->ndim() == 2 && logits->shape(0) == tokens.shape(0) && logits->shape(1) == width;
    if (!last && !all) {
      throw InputError(message("logits: an array [", width, "] or [", count, ", ", width, "] is needed"));
    }
    want = last ? LogitsOf::kLast : LogitsOf::kAll;
  }
  float* out = logits.has_value() ? logits->data() : nullptr;
  const nb::gil_scoped_release release;
  model.forward(slot, tokens.data(), count, want, out);
}

// Sets what an item asks for (0 no logits, 1 those of its last token, 2 all, or indices of tokens); returns the rows.
size_t set_want(BatchItem& item, const Wanted& wanted) {
  if (const auto* rows = std::get_if<Tokens>(&wanted)) {
    item.want = LogitsOf::kRows;
    item.rows = rows->data();
    item.row_count = static_cast<int64_t>(rows->shape(0));
    return rows->shape(0);
  }
  const int32_t code = std::get<int32_t>(wanted);
  if (code < 0 || code > 2) throw InputError(message("wants: found ", code, ", allowed are 0, 1, 2 or an array"));
  item.want = static_cast<LogitsOf>(code);
  return code == 0 ? 0 : code == 1 ? 1 : static_cast<size_t>(item.count);
}

Choices checked_choices(const std::optional<ChoiceArrays>& arrays, size_t rows) {
  if (!arrays.has_value()) return {};
  const auto& [tokens, probabilities, entropies] = *arrays;
  if (tokens.shape(0) != rows || probabilities.shape(0) != rows || entropies.shape(0) != rows) {
    throw InputError(message("choices: three arrays [", rows, "] are needed"));
  }
  if (rows == 0) return {};
  return {tokens.data(), probabilities.data(), entropies.data()};
}

void forward_batch(Model& model, const std::vector<int32_t>& slots, const std::vector<Tokens>& tokens,
                   const std::vector<Wanted>& wants, const std::optional<Logits>& logits,
                   const std::optional<std::vector<int64_t>>& starts, const std::optional<std::vector<int64_t>>& blocks,
                   const std::optional<std::vector<bool>>& alone, const std::optional<ChoiceArrays>& choices,
                   const std::optional<Logits>& hidden, const std::optional<std::vector<bool>>& hidden_items) {
  const auto wrong = [&](const auto& list) { return list.has_value() && list->size() != slots.size(); };
  if (slots.size() != tokens.size() || slots.size() != wants.size() || wrong(starts) || wrong(blocks) || wrong(alone) ||
      wrong(hidden_items)) {
    throw InputError("batch: slots, tokens, wants, starts, blocks, alone and hidden_items must have the same length");
  }
  std::vector<BatchItem> items;
  size_t rows = 0, hidden_rows = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    BatchItem item{slots[i], tokens[i].data(), static_cast<int64_t>(tokens[i].shape(0)), LogitsOf::kNone};
    item.hidden = hidden_items.has_value() && (*hidden_items)[i];
    (item.hidden ? hidden_rows : rows) += set_want(item, wants[i]);
    if (starts.has_value()) item.start = (*starts)[i];
    if (blocks.has_value()) item.block = (*blocks)[i];
    if (alone.has_value()) item.alone = (*alone)[i];
    items.push_back(item);
  }
  const auto width = static_cast<size_t>(model.config().vocab_size);
  const bool fits = logits.has_value() && logits->ndim() == 2 && logits->shape(0) == rows && logits->shape(1) == width;
  if (rows > 0 && !fits && (logits.has_value() || !choices.has_value())) {
    throw InputError(message("logits: an array [", rows, ", ", width, "] is needed"));
  }
  float* out = rows > 0 && logits.has_value() ? logits->data() : nullptr;
  const Choices chosen = checked_choices(choices, rows);
  const auto size = static_cast<size_t>(model.config().hidden_size);
  if (hidden_rows > 0 &&
      (!hidden.has_value() || hidden->ndim() != 2 || hidden->shape(0) != hidden_rows || hidden->shape(1) != size)) {
    throw InputError(message("hidden: an array [", hidden_rows, ", ", size, "] is needed"));
  }
  float* states = hidden_rows > 0 ? hidden->data() : nullptr;
  const nb::gil_scoped_release release;
  model.forward_batch(items, out, chosen, states);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds that `count` tokens take through an empty slot 0, with the logits of the last.
double time_prefill(Model& model, int32_t count) {
  const nb::gil_scoped_release release;
  if (count < 1) throw InputError(message("count: found ", count, ", at least one token is needed"));
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = i % model.config().vocab_size;
  std::vector<float> logits(static_cast<size_t>(model.config().vocab_size));
  model.truncate(0, 0);
  const auto start = std::chrono::steady_clock::now();
  model.forward(0, tokens.data(), count, LogitsOf::kLast, logits.data());
  return seconds_since(start);
}

// Seconds that greedy decoding of `count` tokens takes behind what slot 0 holds.
double time_decode(Model& model, int32_t count) {
  const nb::gil_scoped_release release;
  Sampler greedy(model.config().vocab_size, {});
  std::vector<float> logits(static_cast<size_t>(model.config().vocab_size));
  int32_t token = 0;
  const auto start = std::chrono::steady_clock::now();
  for (int32_t i = 0; i < count; ++i) {
    model.forward(0, &token, 1, LogitsOf::kLast, logits.data());
    token = greedy.sample(logits.data(), -1).token;
  }
  return seconds_since(start);
}

// Seconds that one pass of `count` tokens takes behind what slot 0 holds, with the logits of all or of the last.
double time_pass(Model& model, int32_t count, bool all) {
  const nb::gil_scoped_release release;
  if (count < 1) throw InputError(message("count: found ", count, ", at least one token is needed"));
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = i % model.config().vocab_size;
  const size_t rows = all ? tokens.size() : 1;
  std::vector<float> logits(rows * static_cast<size_t>(model.config().vocab_size));
  const auto start = std::chrono::steady_clock::now();
  model.forward(0, tokens.data(), count, all ? LogitsOf::kAll : LogitsOf::kLast, logits.data());
  return seconds_since(start);
}

// Seconds that `steps` greedy tokens for each of the first `sequences` slots take, all slots in one pass a step.
double time_batch_decode(Model& model, int32_t sequences, int32_t steps) {
  const nb::gil_scoped_release release;
  const auto width = static_cast<size_t>(model.config().vocab_size);
  Sampler greedy(model.config().vocab_size, {});
  std::vector<int32_t> tokens(static_cast<size_t>(std::max(sequences, 0)));
  std::vector<BatchItem> items;
  for (int32_t i = 0; i < sequences; ++i) {
    tokens[static_cast<size_t>(i)] = i % model.config().vocab_size;
    items.push_back({i, &tokens[static_cast<size_t>(i)], 1, LogitsOf::kLast});
  }
  std::vector<float> logits(tokens.size() * width);
  const auto start = std::chrono::steady_clock::now();
  for (int32_t step = 0; step < steps; ++step) {
    model.forward_batch(items, logits.data());
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = greedy.sample(logits.data() + i * width, -1).token;
  }
  return seconds_since(start);
}

// (seconds by part of a pass, waits at barriers) since profiling was switched on.
nb::object profile_of(const Model& model) {
  const Profile profile = model.profile();
  nb::dict seconds;
  for (size_t i = 0; i < kParts; ++i) seconds[kPartNames[i]] = profile.seconds[i];
  return nb::make_tuple(seconds, profile.waits);
}

void bind_model(nb::module_& module) {
  nb::class_<Model>(module, "Model", "A model in memory with one KV cache for each slot.")
      .def_static("load", &load_model, "directory"_a, "threads"_a = 0, "context"_a = 0, "slots"_a = 1,
                  "kernels"_a = "auto", "kv_type"_a = "float16", "keep_mapped"_a = false, "layout"_a = "stored",
                  "prefetch_bytes"_a = -1,
                  "Loads a packed directory; layout stored, t2 or t1.6: how the weights lie in memory.")
      .def_static("from_tensors", &held_model, "config_json"_a, "tensors"_a, "generation_json"_a = "",
                  "place"_a = "tensors", "threads"_a = 0, "context"_a = 0, "slots"_a = 1, "kernels"_a = "auto",
                  "kv_type"_a = "float16", "layout"_a = "stored", "prefetch_bytes"_a = -1,
                  "A model of what a packed directory holds: the text of its config.json and its tensors by name, as "
                  "NumPy arrays, which it keeps and nobody may change.")
      .def_static("random", &random_model, "config_json"_a, "granularity"_a = "tensor", "group_size"_a = 64,
                  "seed"_a = 0, "layout"_a = "t2-r16c64", "head"_a = "q8", "threads"_a = 0, "kernels"_a = "auto",
                  "context"_a = 0, "slots"_a = 1, "kv_type"_a = "float16", "prefetch_bytes"_a = -1,
                  "Random weights of the architecture of a config.json text.")
      .def("forward", &forward, "slot"_a, "tokens"_a, "logits"_a.none() = nb::none(),
           "Appends tokens; logits is a float32 array [V] for the last token or [T, V] for all, or None.")
      .def(
          "forward_batch", &forward_batch, "slots"_a, "tokens"_a, "wants"_a, "logits"_a.none() = nb::none(),
          "starts"_a.none() = nb::none(), "blocks"_a.none() = nb::none(), "alone"_a.none() = nb::none(),
          "choices"_a.none() = nb::none(), "hidden"_a.none() = nb::none(), "hidden_items"_a.none() = nb::none(),
          "Computes tokens of several slots in joint passes; see BatchItem in runtime/model.h. wants: 0 nothing, 1 the "
          "last token, 2 all, or an int32 array of rising indices; logits [rows asked for, V], in order, or None; "
          "starts: position of the first token or -1; blocks: 1 causal, B by blocks; choices: (token int32, "
          "probability float32, entropy float32), each [rows asked for]; hidden_items: which items' rows are given in "
          "hidden "
          "[those rows, D] instead, the float32 states behind the last norm.")
      .def("allow_tokens", &Model::allow_tokens, "ends"_a,
           "Tokens that end a text are no padding: they are not banned.")
      .def("length", &Model::length, "slot"_a)
      .def("truncate", &Model::truncate, "slot"_a, "length"_a)
      .def("copy_prefix", &Model::copy_prefix, "source"_a, "target"_a, "positions"_a,
           nb::call_guard<nb::gil_scoped_release>(),
           "Lets the slot target hold the first positions of the slot source, and nothing else.")
      .def("time_prefill", &time_prefill, "count"_a, "Seconds for a prompt of count tokens in slot 0.")
      .def("time_decode", &time_decode, "count"_a, "Seconds for count greedy tokens behind what slot 0 holds.")
      .def("time_pass", &time_pass, "count"_a, "all"_a, "Seconds of one pass of count tokens behind what slot 0 holds.")
      .def("time_batch_decode", &time_batch_decode, "sequences"_a, "steps"_a,
           "Seconds of greedy steps of the first slots together.")
      .def("set_profiling", &Model::set_profiling, "on"_a)
      .def("profile", &profile_of, "({part: seconds}, waits at barriers) since profiling was switched on.")
      .def_prop_ro("context", &Model::context)
      .def_prop_ro("slots", &Model::slots)
      .def_prop_ro("threads", &Model::threads)
      .def_prop_ro("pass_rows", &Model::pass_rows)
      .def_prop_ro("has_windows", &Model::has_windows)
      .def_prop_ro("banned_tokens", &Model::banned_tokens)
      .def_prop_ro("kernels_name", &Model::kernels_name)
      .def_prop_ro("kernels_reason", &Model::kernels_reason)
      .def_prop_ro("layout", [](const Model& model) { return layout_name(model.layout()); })
      .def_prop_ro("prefetch_bytes", &Model::prefetch_bytes)
      .def_prop_ro("bytes_per_token", &Model::bytes_per_token)
      .def_prop_ro("kv_bytes", &Model::kv_bytes)
      .def_prop_ro("hidden_size", [](const Model& model) { return model.config().hidden_size; })
      .def_prop_ro("vocab_size", [](const Model& model) { return model.config().vocab_size; })
      .def_prop_ro("max_position_embeddings",
                   [](const Model& model) { return model.config().max_position_embeddings; });
}

}  // namespace
}  // namespace wf

NB_MODULE(_native, module) {
  nb::register_exception_translator(wf::translate);
  module.doc() = "The CPU engine of wrinklefree.";
  wf::bind_model(module);
  wf::bind_sampler(module);
  wf::bind_kernels(module);
  wf::bind_repack(module);
  wf::bind_training(module);
  module.def("available_cores", &wf::available_cores, "Physical cores this process may use.");
  module.def(
      "core_choice",
      [] {
        const wf::CoreChoice choice = wf::choose_cores();
        nb::dict found;
        found["cpus"] = choice.cpus;
        found["cores"] = choice.cores;
        found["smt"] = choice.cpus > choice.cores;
        found["quota"] = choice.quota;
        found["numa_nodes"] = choice.numa_nodes;
        found["chosen"] = choice.chosen;
        found["why"] = choice.why;
        return found;
      },
      "The processors this process may use, and how many threads are started by default, with the reason.");
}
