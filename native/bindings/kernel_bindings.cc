// wrinklefree._native.kernels: each kernel table by name on NumPy arrays, for tests, and the machine's measured limits,
// for `wf bench`. The engine does not come through here.
#include "bindings/kernel_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "kernels/cpu_features.h"
#include "kernels/kernels.h"
#include "runtime/packed_codes.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wf {
namespace {

template <class T, int kDimensions>
using In = nb::ndarray<const T, nb::ndim<kDimensions>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T>;

// An uninitialised NumPy array that owns its memory.
template <class T>
Out<T> make(std::initializer_list<size_t> shape) {
  size_t count = 1;
  for (size_t size : shape) count *= size;
  T* memory = new T[count]();
  nb::capsule owner(memory, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Out<T>(memory, shape, owner);
}

void require(bool good, const char* message) {
  if (!good) throw nb::value_error(message);
}

const Kernels& table(const std::string& name) {
  const char* reason = "";
  const Kernels* found = select_kernels(name.c_str(), &reason);
  if (!found) throw nb::value_error(("kernels: found \"" + name + "\": " + reason).c_str());
  return *found;
}

std::vector<std::string> runnable() {
  const Kernels* tables[8];
  std::vector<std::string> names;
  for (int i = 0, count = runnable_kernels(tables, 8); i < count; ++i) names.push_back(tables[i]->name);
  return names;
}

std::pair<std::string, std::string> select(const std::string& name) {
  const char* reason = "";
  const Kernels* found = select_kernels(name.c_str(), &reason);
  if (!found) throw nb::value_error(("kernels: found \"" + name + "\": " + reason).c_str());
  return {found->name, reason};
}

std::tuple<Out<int8_t>, Out<int32_t>, Out<float>> quantize(const std::string& name, In<float, 2> x) {
  const size_t tokens = x.shape(0), blocks = (x.shape(1) + kColumnsPerBlock - 1) / kColumnsPerBlock;
  auto q = make<int8_t>({tokens, blocks * kColumnsPerBlock});
  auto sums = make<int32_t>({tokens, blocks});
  auto scales = make<float>({tokens});
  for (size_t t = 0; t < tokens; ++t)
    table(name).quantize(x.data() + t * x.shape(1), static_cast<int32_t>(x.shape(1)),
                         q.data() + t * blocks * kColumnsPerBlock, sums.data() + t * blocks, scales.data() + t);
  return {q, sums, scales};
}

using Codes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;  // PackedShape.codes of packing.py

TernaryLayout layout_of(const std::string& name) {
  require(name == "t2-r16c64" || name == "t1.6-r16c64", "layout must be t2-r16c64 or t1.6-r16c64");
  return name == "t2-r16c64" ? TernaryLayout::kTwoBit : TernaryLayout::kFiveTrits;
}

void require_codes(const Codes& codes, const CodesShape& shape) {
  const std::vector<uint64_t> wanted = shape.dimensions();
  bool good = codes.ndim() == wanted.size();
  for (size_t i = 0; good && i < wanted.size(); ++i) good = codes.shape(i) == wanted[i];
  require(good,
          "codes must have the shape PackedShape.codes of packing.py: [ceil(rows / 16), ceil(columns / 64), 256] "
          "or, in t1.6-r16c64, [ceil(rows / 16), bytes of a row of blocks]");
}

int32_t blocks_of(int64_t size, int32_t block) { return static_cast<int32_t>((size + block - 1) / block); }

// Views of the arrays of one product, sizes checked: a wrong one would read behind the memory.
TernaryMatrix matrix_of(const Codes& codes, int32_t rows, int32_t columns, const In<int8_t, 2>& q,
                        const In<int32_t, 2>& block_sums, const std::string& layout, int32_t prefetch) {
  require(rows > 0 && columns > 0, "a matrix needs rows and columns");
  TernaryMatrix w{};
  w.codes = codes.data();
  w.rows = rows;
  w.columns = columns;
  w.row_blocks = blocks_of(rows, kRowsPerBlock);
  w.column_blocks = blocks_of(columns, kColumnsPerBlock);
  w.layout = layout_of(layout);
  w.prefetch = prefetch;
  require_codes(codes, {w.row_blocks, w.column_blocks, w.layout});
  const auto blocks = static_cast<size_t>(w.column_blocks);
  require(q.shape(1) == blocks * kColumnsPerBlock, "q must have the shape [tokens, ceil(columns / 64) * 64]");
  require(block_sums.shape(0) == q.shape(0) && block_sums.shape(1) == blocks,
          "block_sums must have the shape [tokens, ceil(columns / 64)]");
  return w;
}

std::vector<float> padded(const float* values, int32_t count, int32_t blocks) {
  std::vector<float> out(static_cast<size_t>(blocks) * kRowsPerBlock, 0.0f);
  std::copy(values, values + count, out.begin());
  return out;
}

// The codes in the other layout, as one dimension; ValueError when a byte stands for no codes.
Out<uint8_t> converted(Codes codes, int32_t rows, int32_t columns, const std::string& layout) {
  require(rows > 0 && columns > 0, "a matrix needs rows and columns");
  const CodesShape from{blocks_of(rows, kRowsPerBlock), blocks_of(columns, kColumnsPerBlock), layout_of(layout)};
  const CodesShape to{from.row_blocks, from.column_blocks, other_layout(from.layout)};
  require_codes(codes, from);
  const char* fault = codes_fault(codes.data(), from, from.row_blocks);
  require(fault == nullptr, fault);
  auto out = make<uint8_t>({static_cast<size_t>(to.bytes())});
  convert_codes(codes.data(), from, from.row_blocks, out.data());
  return out;
}

Out<int32_t> ternary_dots(const std::string& name, Codes codes, int32_t rows, int32_t columns, In<int8_t, 2> q,
                          In<int32_t, 2> block_sums, const std::string& layout, int32_t prefetch) {
  TernaryMatrix w = matrix_of(codes, rows, columns, q, block_sums, layout, prefetch);
  const std::vector<float> ones(static_cast<size_t>(w.row_blocks) * kRowsPerBlock, 1.0f);
  w.row_scales = ones.data();
  auto dots = make<int32_t>({q.shape(0), static_cast<size_t>(rows)});
  table(name).ternary_dots(&w, q.data(), block_sums.data(), static_cast<int32_t>(q.shape(0)), 0, w.row_blocks,
                           dots.data(), rows);
  return dots;
}

Out<float> scaled(const std::string& name, const TernaryMatrix& w, const In<int8_t, 2>& q,
                  const In<int32_t, 2>& block_sums, const In<float, 1>& token_scales) {
  require(token_scales.shape(0) == q.shape(0), "token_scales must have the shape [tokens]");
  auto y = make<float>({q.shape(0), static_cast<size_t>(w.rows)});
  table(name).ternary_gemm(&w, q.data(), block_sums.data(), token_scales.data(), static_cast<int32_t>(q.shape(0)), 0,
                           w.row_blocks, y.data(), w.rows);
  return y;
}

Out<float> ternary_gemm_rows(const std::string& name, Codes codes, int32_t rows, int32_t columns,
                             In<float, 1> row_scales, In<int8_t, 2> q, In<int32_t, 2> block_sums,
                             In<float, 1> token_scales, const std::string& layout, int32_t prefetch) {
  TernaryMatrix w = matrix_of(codes, rows, columns, q, block_sums, layout, prefetch);
  require(row_scales.shape(0) == static_cast<size_t>(rows), "row_scales must have the shape [rows]");
  const std::vector<float> scales = padded(row_scales.data(), rows, w.row_blocks);
  w.row_scales = scales.data();
  return scaled(name, w, q, block_sums, token_scales);
}

Out<float> ternary_gemm_groups(const std::string& name, Codes codes, int32_t rows, int32_t columns,
                               In<uint16_t, 3> group_scales, int32_t group_size, In<int8_t, 2> q,
                               In<int32_t, 2> block_sums, In<float, 1> token_scales, const std::string& layout,
                               int32_t prefetch) {
  require(group_size == 64 || group_size == 128 || group_size == 256, "group_size must be 64, 128 or 256");
  TernaryMatrix w = matrix_of(codes, rows, columns, q, block_sums, layout, prefetch);
  w.group_blocks = group_size / kColumnsPerBlock;
  w.group_scales = group_scales.data();
  require(group_scales.shape(0) == static_cast<size_t>(w.row_blocks) && group_scales.shape(2) == kRowsPerBlock &&
              group_scales.shape(1) == static_cast<size_t>(blocks_of(columns, group_size)),
          "group_scales must have the shape [ceil(rows / 16), ceil(columns / group_size), 16]");
  return scaled(name, w, q, block_sums, token_scales);
}

std::tuple<Out<int8_t>, Out<int8_t>, Out<int32_t>, Out<float>> quantize_wide(const std::string& name, In<float, 2> x) {
  const size_t tokens = x.shape(0), blocks = (x.shape(1) + kColumnsPerBlock - 1) / kColumnsPerBlock;
  auto high = make<int8_t>({tokens, blocks * kColumnsPerBlock});
  auto low = make<int8_t>({tokens, blocks * kColumnsPerBlock});
  auto sums = make<int32_t>({tokens, blocks * 2});
  auto scales = make<float>({tokens});
  for (size_t t = 0; t < tokens; ++t) {
    table(name).quantize_wide(x.data() + t * x.shape(1), static_cast<int32_t>(x.shape(1)),
                              high.data() + t * blocks * kColumnsPerBlock, low.data() + t * blocks * kColumnsPerBlock,
                              sums.data() + t * blocks * 2, scales.data() + t);
  }
  return {high, low, sums, scales};
}

Out<float> table_product(const std::string& name, TableMatrix& w, In<uint8_t, 3> codes, int32_t rows, In<float, 2> x,
                         int32_t prefetch) {
  require(rows > 0 && x.shape(0) > 0 && x.shape(1) > 0, "a product needs rows, columns and tokens");
  w.codes = codes.data();
  w.rows = rows;
  w.columns = static_cast<int32_t>(x.shape(1));
  w.row_blocks = blocks_of(rows, kRowsPerBlock);
  w.column_blocks = blocks_of(w.columns, kColumnsPerBlock);
  w.prefetch = prefetch;
  require(codes.shape(0) == static_cast<size_t>(w.row_blocks) &&
              codes.shape(1) == static_cast<size_t>(w.column_blocks) &&
              codes.shape(2) == static_cast<size_t>(table_block_bytes(w.format)),
          "codes must have the shape [ceil(rows / 16), ceil(columns / 64), 1024, 768 or 512]");
  const auto [high, low, sums, scales] = quantize_wide(name, x);
  const WideActivations wide{high.data(), low.data(), sums.data(), scales.data()};
  auto y = make<float>({x.shape(0), static_cast<size_t>(rows)});
  table(name).table_gemm(&w, &wide, static_cast<int32_t>(x.shape(0)), 0, w.row_blocks, y.data(), rows);
  return y;
}

Out<float> table_gemm_rows(const std::string& name, In<uint8_t, 3> codes, int32_t rows, In<float, 1> row_scales,
                           In<float, 2> x, int32_t prefetch) {
  require(row_scales.shape(0) == static_cast<size_t>(rows), "row_scales must have the shape [rows]");
  const std::vector<float> scales = padded(row_scales.data(), rows, blocks_of(rows, kRowsPerBlock));
  TableMatrix w{};
  w.format = TableFormat::kQ8;
  w.row_scales = scales.data();
  return table_product(name, w, codes, rows, x, prefetch);
}

Out<float> table_gemm_groups(const std::string& name, In<uint8_t, 3> codes, int32_t rows, In<uint16_t, 3> group_scales,
                             In<float, 2> x, int32_t prefetch) {
  TableMatrix w{};
  w.format =
      codes.shape(2) == static_cast<size_t>(table_block_bytes(TableFormat::kQ6)) ? TableFormat::kQ6 : TableFormat::kQ4;
  const size_t groups = codes.shape(1) * (w.format == TableFormat::kQ6 ? 1 : 2);
  require(group_scales.shape(0) == codes.shape(0) && group_scales.shape(1) == groups &&
              group_scales.shape(2) == kRowsPerBlock,
          "group_scales must have the shape [ceil(rows / 16), groups, 16], a group for 64 (q6) or 32 (q4) columns");
  w.group_scales = group_scales.data();
  return table_product(name, w, codes, rows, x, prefetch);
}

// All heads of one key-value head at one position.
Out<float> attend_view(const std::string& name, const In<float, 2>& q, const KvView& view, size_t keys, float scale) {
  const auto heads = static_cast<int32_t>(q.shape(0)), dim = static_cast<int32_t>(q.shape(1));
  auto out = make<float>({q.shape(0), q.shape(1)});
  std::vector<float> peaks(q.shape(0)), totals(q.shape(0));
  table(name).attend(q.data(), heads, &view, dim, 0, static_cast<int32_t>(keys), scale, peaks.data(), totals.data(),
                     out.data());
  for (size_t i = 0; i < q.shape(0) * q.shape(1); ++i) out.data()[i] /= totals[i / q.shape(1)];
  return out;
}

template <class Cache>
KvView view_of(const In<float, 2>& q, const In<Cache, 2>& k, const In<Cache, 2>& v, KvType type) {
  require(k.shape(1) == q.shape(1) && v.shape(0) == k.shape(0) && v.shape(1) == k.shape(1) && k.shape(0) > 0,
          "q [H, D], k [T, D] and v [T, D] differ");
  return {k.data(), v.data(), nullptr, nullptr, static_cast<int64_t>(k.shape(1)), type};
}

template <class Cache>
Out<float> attend(const std::string& name, In<float, 2> q, In<Cache, 2> k, In<Cache, 2> v, float scale) {
  const KvView view = view_of(q, k, v, sizeof(Cache) == 2 ? KvType::kF16 : KvType::kF32);
  return attend_view(name, q, view, k.shape(0), scale);
}

Out<float> attend_i8(const std::string& name, In<float, 2> q, In<int8_t, 2> k, In<int8_t, 2> v, In<float, 1> k_scales,
                     In<float, 1> v_scales, float scale) {
  KvView view = view_of(q, k, v, KvType::kI8);
  require(k_scales.shape(0) == k.shape(0) && v_scales.shape(0) == k.shape(0), "k_scales and v_scales must be [T]");
  view.k_scales = k_scales.data();
  view.v_scales = v_scales.data();
  return attend_view(name, q, view, k.shape(0), scale);
}

std::pair<Out<int8_t>, Out<float>> store_i8(const std::string& name, In<float, 2> x) {
  auto out = make<int8_t>({x.shape(0), x.shape(1)});
  auto scales = make<float>({x.shape(0)});
  for (size_t t = 0; t < x.shape(0); ++t)
    table(name).store_i8(x.data() + t * x.shape(1), static_cast<int32_t>(x.shape(1)), out.data() + t * x.shape(1),
                         scales.data() + t);
  return {out, scales};
}

Out<uint16_t> store_f16(const std::string& name, In<float, 1> x) {
  auto out = make<uint16_t>({x.shape(0)});
  table(name).store_f16(x.data(), static_cast<int32_t>(x.shape(0)), out.data());
  return out;
}

Out<float> rms_norm(const std::string& name, In<float, 1> x, In<float, 1> weight, float eps) {
  require(x.shape(0) == weight.shape(0), "x [D] and weight [D] differ");
  auto out = make<float>({x.shape(0)});
  table(name).rms_norm(x.data(), weight.data(), eps, static_cast<int32_t>(x.shape(0)), out.data());
  return out;
}

Out<float> silu_mul(const std::string& name, In<float, 1> gate, In<float, 1> up) {
  require(gate.shape(0) == up.shape(0), "gate [N] and up [N] differ");
  auto out = make<float>({gate.shape(0)});
  table(name).silu_mul(gate.data(), up.data(), static_cast<int32_t>(gate.shape(0)), out.data());
  return out;
}

std::tuple<double, double, double> as_tuple(const ProductSpeed& speed) {
  return {speed.seconds, speed.gb_per_second, speed.gmac_per_second};
}

void bind_products(nb::module_& module) {
  module.def("quantize", &quantize, "kernels"_a, "x"_a, "q [T, C * 64], block sums [T, C], scales [T] of x [T, I]");
  module.def("converted", &converted, "codes"_a, "rows"_a, "columns"_a, "layout"_a,
             "The bytes of these codes in the other layout.");
  module.def("ternary_dots", &ternary_dots, "kernels"_a, "codes"_a, "rows"_a, "columns"_a, "q"_a, "block_sums"_a,
             "layout"_a = "t2-r16c64", "prefetch"_a = 0);
  module.def("ternary_gemm_rows", &ternary_gemm_rows, "kernels"_a, "codes"_a, "rows"_a, "columns"_a, "row_scales"_a,
             "q"_a, "block_sums"_a, "token_scales"_a, "layout"_a = "t2-r16c64", "prefetch"_a = 0);
  module.def("ternary_gemm_groups", &ternary_gemm_groups, "kernels"_a, "codes"_a, "rows"_a, "columns"_a,
             "group_scales"_a, "group_size"_a, "q"_a, "block_sums"_a, "token_scales"_a, "layout"_a = "t2-r16c64",
             "prefetch"_a = 0, "group_scales: float16 bits as uint16 [R, G, 16]");
  module.def("quantize_wide", &quantize_wide, "kernels"_a, "x"_a,
             "high and low [T, C * 64], sums of 32 columns [T, C * 2], scales [T] of x [T, I]");
  module.def("table_gemm_rows", &table_gemm_rows, "kernels"_a, "codes"_a, "rows"_a, "row_scales"_a, "x"_a,
             "prefetch"_a = 0, "A q8 table [R, C, 1024] times x [T, D], quantised by quantize_wide");
  module.def("table_gemm_groups", &table_gemm_groups, "kernels"_a, "codes"_a, "rows"_a, "group_scales"_a, "x"_a,
             "prefetch"_a = 0, "The same for q6 [R, C, 768] or q4 [R, C, 512]; group_scales: float16 bits [R, G, 16]");
  module.def("attend", &attend<uint16_t>, "kernels"_a, "q"_a, "k"_a, "v"_a, "scale"_a,
             "q [H, D]; k, v: float16 bits [T, D]");
  module.def("attend_f32", &attend<float>, "kernels"_a, "q"_a, "k"_a, "v"_a, "scale"_a);
  module.def("attend_i8", &attend_i8, "kernels"_a, "q"_a, "k"_a, "v"_a, "k_scales"_a, "v_scales"_a, "scale"_a);
  module.def("store_i8", &store_i8, "kernels"_a, "x"_a, "int8 codes [T, D] and scales [T] of x [T, D]");
  module.def("store_f16", &store_f16, "kernels"_a, "x"_a);
  module.def("rms_norm", &rms_norm, "kernels"_a, "x"_a, "weight"_a, "eps"_a);
  module.def("silu_mul", &silu_mul, "kernels"_a, "gate"_a, "up"_a);
}

void bind_speeds(nb::module_& module) {
  module.def("read_gb_per_second", &read_gb_per_second, "threads"_a, "bytes"_a, "seconds"_a,
             nb::call_guard<nb::gil_scoped_release>(), "Read bandwidth of all threads together, best pass.");
  module.def(
      "int8_gmac_per_second",
      [](const std::string& name, int threads, double seconds) {
        return int8_gmac_per_second(table(name), threads, seconds);
      },
      "kernels"_a, "threads"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>(),
      "Giga multiply-adds a second of the table's int8 instruction on registers alone.");
  module.def(
      "ternary_speed",
      [](const std::string& name, int32_t rows, int32_t columns, int32_t group_size, int32_t tokens, int32_t copies,
         int threads, double seconds, const std::string& layout) {
        require(layout == "t2-r16c64" || layout == "t1.6-r16c64", "layout must be t2-r16c64 or t1.6-r16c64");
        const auto kind = layout == "t2-r16c64" ? TernaryLayout::kTwoBit : TernaryLayout::kFiveTrits;
        return as_tuple(
            ternary_speed(table(name), {rows, columns, group_size, kind}, tokens, copies, threads, seconds));
      },
      "kernels"_a, "rows"_a, "columns"_a, "group_size"_a, "tokens"_a, "copies"_a, "threads"_a, "seconds"_a,
      "layout"_a = "t2-r16c64", nb::call_guard<nb::gil_scoped_release>(),
      "(seconds of one product, GB/s of weights, GMAC/s)");
  module.def(
      "head_speed",
      [](const std::string& name, int32_t rows, int32_t columns, int32_t tokens, int threads, double seconds,
         const std::string& format) {
        require(format == "q8" || format == "q6" || format == "q4", "format must be q8, q6 or q4");
        const auto kind = format == "q8" ? TableFormat::kQ8 : format == "q6" ? TableFormat::kQ6 : TableFormat::kQ4;
        return as_tuple(head_speed(table(name), kind, rows, columns, tokens, threads, seconds));
      },
      "kernels"_a, "rows"_a, "columns"_a, "tokens"_a, "threads"_a, "seconds"_a, "format"_a = "q8",
      nb::call_guard<nb::gil_scoped_release>(), "(seconds of one product, GB/s of weights, GMAC/s)");
}

}  // namespace

void bind_kernels(nb::module_& module) {
  nb::module_ kernels = module.def_submodule("kernels", "Single kernels on NumPy arrays, and this machine's limits.");
  kernels.def("cpu_name", [] { return std::string(cpu_name()); });
  kernels.def("runnable", &runnable, "Names of the kernel tables this machine can run, best first.");
  kernels.def("select", &select, "name"_a, "(table's name, why it was chosen); ValueError when it cannot run here.");
  kernels.def(
      "preferred_prefetch",
      [] {
        const char* reason = "";
        const int bytes = preferred_prefetch_bytes(&reason);
        return std::pair(bytes, std::string(reason));
      },
      "(bytes asked for ahead of the weights being read, why).");
  bind_products(kernels);
  bind_speeds(kernels);
}

}  // namespace wf
