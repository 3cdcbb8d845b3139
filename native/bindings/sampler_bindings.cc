// The sampler's face in Python.
#include "sampler_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <vector>

#include "runtime/errors.h"
#include "runtime/model.h"
#include "runtime/row_scores.h"
#include "runtime/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wf {
namespace {

template <typename T, size_t dimensions>
using Array = nb::ndarray<T, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;

// A sampler with the vocabulary that its logits must have.
struct BoundSampler {
  int32_t vocabulary;
  Sampler sampler;
};

void check_width(const BoundSampler& self, size_t found) {
  if (found != static_cast<size_t>(self.vocabulary)) {
    throw InputError(message("logits: found ", found, " values, the sampler was made for ", self.vocabulary));
  }
}

nb::object sample(BoundSampler& self, const Array<const float, 1>& logits, int32_t logprobs,
                  const std::optional<Array<const uint32_t, 1>>& mask) {
  check_width(self, logits.shape(0));
  if (mask && mask->shape(0) != self.sampler.mask_words()) {
    throw InputError(message("mask: found ", mask->shape(0), " words, a vocabulary of ", self.vocabulary, " has ",
                             self.sampler.mask_words()));
  }
  Sample result;
  {
    const nb::gil_scoped_release release;
    result = self.sampler.sample(logits.data(), logprobs, mask ? mask->data() : nullptr);
  }
  return nb::make_tuple(result.token, result.logprob, nb::cast(result.best));
}

nb::object as_tuple(const Sample& result) {
  return nb::make_tuple(result.token, result.logprob, nb::cast(result.best));
}

// Samples row i of logits with samplers[i], on the model's threads. None stands for a row whose sampler has refused it:
// `sample` says why, and the other rows are as if it were not there.
nb::list sample_rows(Model& model, const std::vector<BoundSampler*>& samplers, const Array<const float, 2>& logits,
                     const std::vector<int32_t>& rows, const std::vector<int32_t>& logprobs) {
  const size_t count = samplers.size();
  if (rows.size() != count || logprobs.size() != count) {
    throw InputError("sample_rows: samplers, rows and logprobs must have the same length");
  }
  std::vector<const BoundSampler*> sorted(samplers.begin(), samplers.end());
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    throw InputError("sample_rows: found one sampler for two rows");
  }
  for (size_t i = 0; i < count; ++i) {
    check_width(*samplers[i], logits.shape(1));
    if (rows[i] < 0 || static_cast<size_t>(rows[i]) >= logits.shape(0)) {
      throw InputError(message("sample_rows: found row ", rows[i], " of ", logits.shape(0)));
    }
  }
  std::vector<std::optional<Sample>> found(count);
  {
    const nb::gil_scoped_release release;
    model.each(static_cast<int64_t>(count), [&](int64_t i) noexcept {
      const auto at = static_cast<size_t>(i);
      try {
        const float* row = logits.data() + static_cast<size_t>(rows[at]) * logits.shape(1);
        found[at] = samplers[at]->sampler.sample(row, logprobs[at]);
      } catch (...) {
        found[at].reset();
      }
    });
  }
  nb::list given;
  for (const std::optional<Sample>& one : found) given.append(one ? as_tuple(*one) : nb::none());
  return given;
}

Proposal propose(BoundSampler& self, const Array<const float, 1>& logits) {
  check_width(self, logits.shape(0));
  const nb::gil_scoped_release release;
  return self.sampler.propose(logits.data());
}

nb::object verify(BoundSampler& self, const Array<const float, 1>& logits, const Proposal& proposal, int32_t logprobs) {
  check_width(self, logits.shape(0));
  Verdict verdict;
  {
    const nb::gil_scoped_release release;
    verdict = self.sampler.verify(logits.data(), proposal, logprobs);
  }
  const Sample& result = verdict.sample;
  return nb::make_tuple(verdict.accepted, result.token, result.logprob, nb::cast(result.best));
}

Proposal make_proposal(int32_t token, const std::vector<int32_t>& ids, const std::vector<float>& probabilities) {
  const bool rising = std::is_sorted(ids.begin(), ids.end(), std::less_equal<int32_t>());
  if (!rising || ids.size() != probabilities.size() || !std::binary_search(ids.begin(), ids.end(), token) ||
      ids.front() < 0) {
    throw InputError("proposal: needed are rising token ids with a probability each, the token among them");
  }
  return {token, ids, probabilities};
}

template <typename T>
nb::object copied(const std::vector<T>& values) {
  return nb::cast(nb::ndarray<nb::numpy, const T, nb::ndim<1>>(values.data(), {values.size()}), nb::rv_policy::copy);
}

// On the model's threads, a row at a time.
void score(Model& model, const Array<const float, 2>& logits, const Array<const int32_t, 1>& tokens,
           const Array<float, 1>& logprobs, const Array<int32_t, 2>& best, const Array<float, 2>& best_logprobs) {
  const size_t rows = logits.shape(0), count = best.shape(1);
  if (logits.shape(1) < 1 || logits.shape(1) > size_t{1} << 30 || tokens.shape(0) != rows ||
      logprobs.shape(0) != rows || best.shape(0) != rows || best_logprobs.shape(0) != rows ||
      best_logprobs.shape(1) != count || count > logits.shape(1)) {
    throw InputError(message("score_rows: of logits [", rows, ", ", logits.shape(1), "] needed are tokens [", rows,
                             "], logprobs [", rows, "], and best and best_logprobs [", rows, ", at most so many]"));
  }
  const nb::gil_scoped_release release;
  const auto scored = [&](size_t first, size_t number) {
    score_rows(logits.data() + first * logits.shape(1), static_cast<int64_t>(number),
               static_cast<int32_t>(logits.shape(1)), tokens.data() + first, static_cast<int32_t>(count),
               {logprobs.data() + first, best.data() + first * count, best_logprobs.data() + first * count});
  };
  std::atomic<bool> failed = false;
  model.each(static_cast<int64_t>(rows), [&](int64_t i) noexcept {
    try {
      scored(static_cast<size_t>(i), 1);
    } catch (...) {
      failed = true;
    }
  });
  if (failed) scored(0, rows);  // says why, and in which row
}

}  // namespace

void bind_sampler(nb::module_& module) {
  nb::class_<BoundSampler>(module, "Sampler", "Chooses tokens from logits; see runtime/sampler.h.")
      .def(
          "__init__",
          [](BoundSampler* self, int32_t vocabulary, float temperature, int32_t top_k, float top_p, float min_p,
             float repetition_penalty, uint64_t seed, float presence_penalty, float frequency_penalty,
             const std::vector<std::pair<int32_t, float>>& bias) {
            const SamplingOptions options{
                temperature, top_k, top_p, min_p, repetition_penalty, seed, presence_penalty, frequency_penalty, bias};
            new (self) BoundSampler{vocabulary, Sampler(vocabulary, options)};
          },
          "vocabulary"_a, "temperature"_a = 0.0f, "top_k"_a = 0, "top_p"_a = 1.0f, "min_p"_a = 0.0f,
          "repetition_penalty"_a = 1.0f, "seed"_a = 0, "presence_penalty"_a = 0.0f, "frequency_penalty"_a = 0.0f,
          "bias"_a = std::vector<std::pair<int32_t, float>>())
      .def(
          "accept",
          [](BoundSampler& self, const Array<const int32_t, 1>& tokens, bool prompt) {
            self.sampler.accept(tokens.data(), static_cast<int64_t>(tokens.shape(0)), prompt);
          },
          "tokens"_a, "prompt"_a = false)
      .def("sample", &sample, "logits"_a, "logprobs"_a = -1, "mask"_a = nb::none(),
           "(token, logprob, [(token, logprob), ...]); mask: uint32 [ceil(V / 32)] or None.")
      .def("propose", &propose, "logits"_a, "A token drawn from the filtered distribution, with that distribution.")
      .def("verify", &verify, "logits"_a, "proposal"_a, "logprobs"_a = -1,
           "(accepted, token, logprob, [(token, logprob), ...])");
  nb::class_<Proposal>(module, "Proposal", "A token and the distribution it was drawn from.")
      .def(
          "__init__",
          [](Proposal* self, int32_t token, const std::vector<int32_t>& ids, const std::vector<float>& probabilities) {
            new (self) Proposal(make_proposal(token, ids, probabilities));
          },
          "token"_a, "ids"_a, "probabilities"_a)
      .def_ro("token", &Proposal::token)
      .def_prop_ro(
          "ids", [](const Proposal& self) { return copied(self.ids); }, "int32 [n], rising.")
      .def_prop_ro("probabilities", [](const Proposal& self) { return copied(self.probabilities); }, "float32 [n].");
  module.def(
      "sample_rows", &sample_rows, "model"_a, "samplers"_a, "logits"_a, "rows"_a, "logprobs"_a,
      "What each sampler makes of its row of logits [R, V], on the model's threads: as `Sampler.sample`, or None "
      "where that would raise.");
  module.def("score_rows", &score, "model"_a, "logits"_a, "tokens"_a, "logprobs"_a, "best"_a, "best_logprobs"_a,
             "What rows of logits [R, V] say of tokens int32 [R] (-1: of none): fills logprobs float32 [R], and best "
             "int32 and best_logprobs float32 [R, K], the most likely tokens first; on the model's threads.");
  module.def("uniform", &uniform, "seed"_a, "counter"_a, "The random number of a draw, in [0, 1).");
}

}  // namespace wf
