// Tensors that lie in NumPy arrays: a whole model of them, and the rows of other formats turned into ours.
#include "bindings/tensor_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <utility>
#include <vector>

#include "runtime/errors.h"
#include "runtime/repack.h"
#include "runtime/threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wf {
namespace {

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Blocks = nb::ndarray<uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// As a safetensors file names the type of an array; "" for one that a packed model does not have.
std::string dtype_of(const Array& array) {
  if (array.dtype() == nb::dtype<uint8_t>()) return "U8";
  if (array.dtype() == nb::dtype<float>()) return "F32";
  const nb::dlpack::dtype half{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  return array.dtype() == half ? "F16" : "";
}

// Arrays that live until the last owner goes, whichever thread that is on.
std::shared_ptr<void> shared_owner(std::vector<Array>&& arrays) {
  return {new std::vector<Array>(std::move(arrays)), [](void* held) {
            const nb::gil_scoped_acquire python;
            delete static_cast<std::vector<Array>*>(held);
          }};
}

void repack(const std::string& type, const Bytes& data, const Blocks& out, int64_t rows, int64_t columns,
            const std::optional<Order>& order, const std::string& place, int32_t threads) {
  const RowType row_type = row_type_of(type);
  const uint64_t row_bytes = row_bytes_of(row_type, columns);
  if (rows < 1 || rows > (1 << 24)) throw InputError(message("rows: found ", rows, ", allowed are 1 to ", 1 << 24));
  const auto count = static_cast<uint64_t>(rows);
  if (data.shape(0) != count * row_bytes) {
    throw InputError(message(place, ": found ", data.shape(0), " bytes, ", rows, " rows of ", columns, " columns in ",
                             type, " have ", count * row_bytes));
  }
  const uint64_t row_blocks = (count + kRowsPerBlock - 1) / kRowsPerBlock;
  const uint64_t column_blocks = (static_cast<uint64_t>(columns) + kColumnsPerBlock - 1) / kColumnsPerBlock;
  if (out.shape(0) != row_blocks || out.shape(1) != column_blocks || out.shape(2) != kBytesPerBlock) {
    throw InputError(message("out: an array [", row_blocks, ", ", column_blocks, ", ", kBytesPerBlock, "] is needed"));
  }
  if (order.has_value() && order->shape(0) != count) {
    throw InputError(message("order: found ", order->shape(0), " indices for ", rows, " rows"));
  }
  if (threads < 0 || threads > 256) throw InputError(message("threads: found ", threads, ", allowed are 0 to 256"));
  const StoredRows stored{row_type, data.data(), static_cast<int32_t>(rows), static_cast<int32_t>(columns),
                          order.has_value() ? order->data() : nullptr};
  const nb::gil_scoped_release release;
  repack_rows(stored, out.data(), place, threads == 0 ? available_cores() : threads);
}

void pack_table(const Values& values, const Blocks& codes, const Numbers& scales, const std::string& place,
                int32_t threads) {
  const auto rows = static_cast<int64_t>(values.shape(0)), columns = static_cast<int64_t>(values.shape(1));
  constexpr int64_t kMost = 1 << 24;
  if (rows < 1 || columns < 1 || rows > kMost || columns > kMost) {
    throw InputError(message("values: found ", rows, " x ", columns, ", allowed are 1 to ", kMost, " of each"));
  }
  const int64_t row_blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const int64_t column_blocks = (columns + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const auto is = [](size_t found, int64_t wanted) { return static_cast<int64_t>(found) == wanted; };
  if (!is(codes.shape(0), row_blocks) || !is(codes.shape(1), column_blocks) || !is(codes.shape(2), 1024)) {
    throw InputError(message("codes: an array [", row_blocks, ", ", column_blocks, ", 1024] is needed"));
  }
  if (!is(scales.shape(0), rows)) throw InputError(message("scales: an array [", rows, "] is needed"));
  if (threads < 0 || threads > 256) throw InputError(message("threads: found ", threads, ", allowed are 0 to 256"));
  const nb::gil_scoped_release release;
  pack_q8(values.data(), rows, columns, codes.data(), scales.data(), place, threads == 0 ? available_cores() : threads);
}

}  // namespace

std::unique_ptr<Model> model_from_tensors(const std::string& config_json, const nb::dict& tensors,
                                          const std::string& generation_json, const std::string& place,
                                          const ModelOptions& options) {
  std::vector<HeldTensor> held;
  std::vector<Array> arrays;
  for (const auto& [key, value] : tensors) {
    std::string name;
    if (!nb::try_cast<std::string>(key, name)) throw InputError("tensors: a key is no text");
    Array array;
    if (!nb::isinstance(value, nb::module_::import_("numpy").attr("ndarray")) || !nb::try_cast(value, array, false)) {
      throw InputError(message("tensors: ", quoted(name), ": an array of NumPy, C-contiguous, is needed"));
    }
    const std::string dtype = dtype_of(array);
    if (dtype.empty()) {
      throw InputError(message("tensors: ", quoted(name), ": found another type than uint8, float16 and float32"));
    }
    std::vector<uint64_t> shape;
    for (size_t i = 0; i < array.ndim(); ++i) shape.push_back(array.shape(i));
    held.push_back({name, dtype, std::move(shape), static_cast<const std::byte*>(array.data())});
    arrays.push_back(std::move(array));
  }
  std::shared_ptr<void> owner = shared_owner(std::move(arrays));
  const nb::gil_scoped_release release;
  return Model::from_tensors(config_json, generation_json, held, std::move(owner), place, options);
}

void bind_repack(nb::module_& module) {
  module.def(
      "repack", &repack, "type"_a, "data"_a, "out"_a, "rows"_a, "columns"_a, "order"_a.none() = nb::none(),
      "place"_a = "repack", "threads"_a = 0,
      "Writes ternary rows uint8 [bytes] in the type I8, TQ1_0, TQ2_0, Q4_0 or I2_S (x86) to out uint8 [R, C, 256] in "
      "the layout t2-r16c64; order int32 [rows]: which stored row becomes row i.");
  module.def("pack_q8", &pack_table, "values"_a, "codes"_a, "scales"_a, "place"_a = "pack_q8", "threads"_a = 0,
             "Writes a table float32 [V, D] in q8: codes uint8 [R, C, 1024], scales float32 [V].");
}

}  // namespace wf
