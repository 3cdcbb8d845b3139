// wrinklefree._native.training: the passes of training/training.h on tensors of a processor's memory (DLPack), sizes
// checked. What is computed is said in training.h; the arguments are its fields, results are written into tensors that
// the caller made.
#include "bindings/training_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "training/parallel.h"
#include "training/training.h"

namespace wf {
struct Narrow16 {
  uint16_t bits;
};
}  // namespace wf

template <>
struct nanobind::detail::dtype_traits<wf::Narrow16> {
  static constexpr dlpack::dtype value{static_cast<uint8_t>(dlpack::dtype_code::Bfloat), 16, 1};
  static constexpr auto name = const_name("bfloat16");
};

namespace nb = nanobind;
using namespace nb::literals;

namespace wf {
namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using Floats = Array<float>;
using Narrows = Array<Narrow16>;
template <class T>
using Maybe = std::optional<T>;

Bf16* bits(const Narrows& x) { return reinterpret_cast<Bf16*>(x.data()); }
Bf16* bits(const Maybe<Narrows>& x) { return x ? bits(*x) : nullptr; }

int64_t size_of(const Narrows& x) { return static_cast<int64_t>(x.size()); }
int64_t size_of(const Floats& x) { return static_cast<int64_t>(x.size()); }

void need(bool good, const char* message) {
  if (!good) throw nb::value_error(message);
}

// Rows and columns of a tensor whose last dimension is the columns.
template <class T>
std::pair<int64_t, int64_t> matrix(const T& x) {
  need(x.ndim() >= 2 && x.size() > 0, "a tensor [..., columns] that is not empty is needed");
  const auto columns = static_cast<int64_t>(x.shape(x.ndim() - 1));
  return {static_cast<int64_t>(x.size()) / columns, columns};
}

class Training {
 public:
  Training(const std::string& name) : kernels_(training_kernels(name.c_str())) {
    need(kernels_ != nullptr, "training kernels: none of that name runs here; auto takes the best");
  }

  std::string name() const { return kernels_->name; }

  void norm_quantize(const Floats& x, const Maybe<Narrows>& add, const Floats& weight, float eps,
                     const Maybe<Floats>& sum, const Narrows& q, const Maybe<Narrows>& q_columns, const Floats& factor,
                     int threads) const {
    const auto [rows, columns] = matrix(x);
    need(size_of(weight) == columns && size_of(q) == size_of(x) && size_of(factor) == rows, "norm_quantize: sizes");
    need(add.has_value() == sum.has_value() && (!add || size_of(*add) == size_of(x)), "norm_quantize: add");
    need((!sum || size_of(*sum) == size_of(x)) && (!q_columns || size_of(*q_columns) == size_of(x)),
         "norm_quantize: sum, q_columns");
    const NormQuantize task{x.data(), bits(add),       weight.data(), eps, rows, columns, sum ? sum->data() : nullptr,
                            bits(q),  bits(q_columns), factor.data()};
    over(rows, threads, [&](int64_t b, int64_t e, int) { kernels_->norm_quantize(task, b, e); });
  }

  void quantize(const Narrows& x, bool gated, const Narrows& q, const Maybe<Narrows>& q_columns, int threads) const {
    const auto [rows, columns] = matrix(q);
    need(size_of(x) == size_of(q) * (gated ? 2 : 1), "quantize: x [N, D] (gated: [N, 2 D]) and q [N, D] differ");
    need(!q_columns || size_of(*q_columns) == size_of(q), "quantize: q_columns");
    const Quantize task{bits(x), gated, rows, columns, bits(q), bits(q_columns)};
    over(rows, threads, [&](int64_t b, int64_t e, int) { kernels_->quantize(task, b, e); });
  }

  void gate_gradient(const Narrows& x, const Narrows& upstream, const Narrows& out, int threads) const {
    const auto [rows, columns] = matrix(upstream);
    need(size_of(x) == 2 * size_of(upstream) && size_of(out) == size_of(x), "gate_gradient: sizes");
    const GateGradient task{bits(x), bits(upstream), rows, columns, bits(out)};
    over(rows, threads, [&](int64_t b, int64_t e, int) { kernels_->gate_gradient(task, b, e); });
  }

  void norm_gradient(const Floats& y, const Floats& factor, const Floats& weight, const Narrows& gradient,
                     const Floats& upstream, const Floats& out, const Maybe<Narrows>& narrow, const Floats& for_weight,
                     int threads) const {
    const auto [rows, columns] = matrix(y);
    need(size_of(factor) == rows && size_of(weight) == columns && size_of(for_weight) == columns,
         "norm_gradient: sizes");
    need(size_of(gradient) == size_of(y) && size_of(upstream) == size_of(y) && size_of(out) == size_of(y),
         "norm_gradient: gradients");
    need(!narrow || size_of(*narrow) == size_of(y), "norm_gradient: narrow");
    const NormGradient task{y.data(), factor.data(), weight.data(), bits(gradient), upstream.data(),
                            rows,     columns,       out.data(),    bits(narrow),   for_weight.data()};
    std::vector<std::vector<float>> sums(static_cast<size_t>(threads > 0 ? threads : 1));
    over(rows, threads, [&](int64_t b, int64_t e, int thread) {
      std::vector<float>& own = sums[static_cast<size_t>(thread)];
      own.assign(static_cast<size_t>(columns), 0.0f);
      kernels_->norm_gradient(task, b, e, own.data());
    });
    for (const std::vector<float>& part : sums)
      for (size_t i = 0; i < part.size(); ++i) task.for_weight[i] += part[i];
  }

  void add(const Floats& x, const Narrows& other, const Floats& out, int threads) const {
    const auto [rows, columns] = matrix(x);
    need(size_of(other) == size_of(x) && size_of(out) == size_of(x), "add: sizes");
    const Add task{x.data(), bits(other), rows, columns, out.data()};
    over(rows, threads, [&](int64_t b, int64_t e, int) { kernels_->add(task, b, e); });
  }

  void rotary(bool back, const Floats& cosines, const Floats& sines, const Narrows& joined, const Narrows& q,
              const Narrows& k, const Narrows& v, int threads) const {
    need(q.ndim() == 4 && k.ndim() == 4 && cosines.ndim() == 3 && cosines.size() == sines.size(), "rotary: dimensions");
    Rotary task{};
    task.batch = static_cast<int64_t>(q.shape(0)), task.heads = static_cast<int64_t>(q.shape(1));
    task.length = static_cast<int64_t>(q.shape(2)), task.size = static_cast<int64_t>(q.shape(3));
    task.key_heads = static_cast<int64_t>(k.shape(1));
    task.shared = cosines.shape(0) == 1;
    const int64_t line = task.length * task.size;
    need(task.size % 2 == 0 && size_of(k) == task.batch * task.key_heads * line && size_of(v) == size_of(k) &&
             size_of(cosines) == (task.shared ? 1 : task.batch) * line &&
             size_of(joined) == task.batch * (task.heads + 2 * task.key_heads) * line,
         "rotary: sizes");
    task.cosines = cosines.data(), task.sines = sines.data();
    task.joined = bits(joined), task.q = bits(q), task.k = bits(k), task.v = bits(v);
    over(task.batch * task.length, threads,
         [&](int64_t b, int64_t e, int) { (back ? kernels_->join : kernels_->split)(task, b, e); });
  }

  void attention_gradient(const Narrows& scores, const Narrows& products, const Array<bool>& mask,
                          const Floats& log_sum, float scale, int threads) const {
    need(log_sum.ndim() == 3, "attention_gradient: log_sum [B, T, H]");
    AttentionGradient task{};
    task.batch = static_cast<int64_t>(log_sum.shape(0)), task.length = static_cast<int64_t>(log_sum.shape(1));
    task.heads = static_cast<int64_t>(log_sum.shape(2));
    const int64_t rows = task.batch * task.heads * task.length;
    need(size_of(scores) == rows * task.length && size_of(products) == size_of(scores) &&
             static_cast<int64_t>(mask.size()) == task.batch * task.length * task.length,
         "attention_gradient: sizes");
    task.scores = bits(scores), task.products = bits(products), task.mask = mask.data();
    task.log_sum = log_sum.data(), task.scale = scale;
    over(rows, threads, [&](int64_t b, int64_t e, int) { kernels_->attention_gradient(task, b, e); });
  }

  void weight_quantize(const Floats& latent, const Floats& scale, int64_t group, const Narrows& out,
                       const Maybe<nb::ndarray<Narrow16, nb::ndim<2>, nb::device::cpu>>& columns_, int threads) const {
    const auto [rows, columns] = matrix(latent);
    check_weight(latent, scale, group, "weight_quantize: scale");
    need(size_of(out) == size_of(latent), "weight_quantize: out");
    WeightQuantize task{latent.data(), scale.data(), rows, columns, group, bits(out), nullptr, 0};
    if (columns_) {
      need(static_cast<int64_t>(columns_->shape(0)) == columns && static_cast<int64_t>(columns_->shape(1)) == rows &&
               columns_->stride(1) == 1,
           "weight_quantize: columns");
      task.columns_ = reinterpret_cast<Bf16*>(columns_->data());
      task.stride = columns_->stride(0);
    }
    over(rows, threads, [&](int64_t b, int64_t e, int) { kernels_->weight_quantize(task, b, e); });
  }

  void weight_gradient(const nb::ndarray<Narrow16, nb::ndim<2>, nb::device::cpu>& gradient, const Floats& latent,
                       const Floats& scale, int64_t group, float clip, const Floats& out,
                       const Maybe<Floats>& for_scale, int threads) const {
    const auto [rows, columns] = matrix(latent);
    check_weight(latent, scale, group, "weight_gradient: scale");
    need(static_cast<int64_t>(gradient.shape(0)) == rows && static_cast<int64_t>(gradient.shape(1)) == columns &&
             (gradient.stride(0) == 1 || (gradient.stride(1) == 1 && gradient.stride(0) == columns)),
         "weight_gradient: gradient");
    need(size_of(out) == size_of(latent) && (!for_scale || size_of(*for_scale) == size_of(scale)),
         "weight_gradient: out, for_scale");
    const bool transposed = gradient.stride(1) != 1;
    const WeightGradient task{reinterpret_cast<Bf16*>(gradient.data()),
                              transposed ? gradient.stride(1) : 0,
                              latent.data(),
                              scale.data(),
                              rows,
                              columns,
                              group,
                              clip,
                              out.data(),
                              for_scale ? for_scale->data() : nullptr};
    over(rows, threads, [&](int64_t b, int64_t e, int) { kernels_->weight_gradient(task, b, e); });
  }

  void distill(const Narrows& student, const Narrows& teacher, const Array<int64_t>& targets, float temperature,
               float step, float target_step, const Floats& divergence, const Floats& cross_entropy,
               const Array<bool>& agreed, int threads) const {
    const auto [rows, columns] = matrix(student);
    need(size_of(teacher) == size_of(student) && static_cast<int64_t>(targets.size()) == rows &&
             size_of(divergence) == rows && size_of(cross_entropy) == rows &&
             static_cast<int64_t>(agreed.size()) == rows,
         "distill: sizes");
    for (int64_t i = 0; i < rows; ++i)
      need(targets.data()[i] >= 0 && targets.data()[i] < columns, "distill: a target is not in the vocabulary");
    const Distill task{bits(student),     bits(teacher),        targets.data(), rows,
                       columns,           1.0f / temperature,   step,           target_step,
                       divergence.data(), cross_entropy.data(), agreed.data()};
    over(rows, threads, [&](int64_t b, int64_t e, int) { kernels_->distill(task, b, e); }, 1);
  }

 private:
  template <class F>
  void over(int64_t rows, int threads, const F& f, int64_t grain = kTrainingRows) const {
    const nb::gil_scoped_release release;
    over_rows(rows, grain, threads, f);
  }

  static void check_weight(const Floats& latent, const Floats& scale, int64_t group, const char* message) {
    const auto [rows, columns] = matrix(latent);
    need(group > 0 && size_of(scale) == rows * ((columns + group - 1) / group), message);
  }

  const TrainingKernels* kernels_;
};

}  // namespace

void bind_training(nb::module_& module) {
  // Raised with every change of an argument; quant/passes.py asks for its own.
  module.attr("training_version") = 1;
  nb::class_<Training>(module, "Training",
                       "The element-wise passes of a training step; see native/training/training.h.")
      .def(nb::init<const std::string&>(), "kernels"_a = "auto")
      .def_prop_ro("name", &Training::name)
      .def("norm_quantize", &Training::norm_quantize, "x"_a.noconvert(), "add"_a.noconvert().none(),
           "weight"_a.noconvert(), "eps"_a, "sum"_a.noconvert().none(), "q"_a.noconvert(),
           "q_columns"_a.noconvert().none(), "factor"_a.noconvert(), "threads"_a)
      .def("quantize", &Training::quantize, "x"_a.noconvert(), "gated"_a, "q"_a.noconvert(),
           "q_columns"_a.noconvert().none(), "threads"_a)
      .def("gate_gradient", &Training::gate_gradient, "x"_a.noconvert(), "upstream"_a.noconvert(), "out"_a.noconvert(),
           "threads"_a)
      .def("norm_gradient", &Training::norm_gradient, "y"_a.noconvert(), "factor"_a.noconvert(), "weight"_a.noconvert(),
           "gradient"_a.noconvert(), "upstream"_a.noconvert(), "out"_a.noconvert(), "narrow"_a.noconvert().none(),
           "for_weight"_a.noconvert(), "threads"_a)
      .def("add", &Training::add, "x"_a.noconvert(), "other"_a.noconvert(), "out"_a.noconvert(), "threads"_a)
      .def("rotary", &Training::rotary, "back"_a, "cosines"_a.noconvert(), "sines"_a.noconvert(),
           "joined"_a.noconvert(), "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(), "threads"_a)
      .def("attention_gradient", &Training::attention_gradient, "scores"_a.noconvert(), "products"_a.noconvert(),
           "mask"_a.noconvert(), "log_sum"_a.noconvert(), "scale"_a, "threads"_a)
      .def("weight_quantize", &Training::weight_quantize, "latent"_a.noconvert(), "scale"_a.noconvert(), "group"_a,
           "out"_a.noconvert(), "columns"_a.noconvert().none(), "threads"_a)
      .def("weight_gradient", &Training::weight_gradient, "gradient"_a.noconvert(), "latent"_a.noconvert(),
           "scale"_a.noconvert(), "group"_a, "clip"_a, "out"_a.noconvert(), "for_scale"_a.noconvert().none(),
           "threads"_a)
      .def("distill", &Training::distill, "student"_a.noconvert(), "teacher"_a.noconvert(), "targets"_a.noconvert(),
           "temperature"_a, "step"_a, "target_step"_a, "divergence"_a.noconvert(), "cross_entropy"_a.noconvert(),
           "agreed"_a.noconvert(), "threads"_a);
}

}  // namespace wf
