// The table of a kernel file, from the functions of these names in its anonymous namespace; included last.
#pragma once
#include "kernels/kernels.h"

namespace wf {
namespace {

constexpr Kernels table_named(const char* name) {
  return {
      .name = name,
      .quantize = quantize,
      .ternary_gemm = ternary_gemm,
      .ternary_dots = ternary_dots,
      .quantize_wide = quantize_wide,
      .table_gemm = table_gemm,
      .f16_gemm = f16_gemm,
      .rms_norm = rms_norm,
      .norm_quantize = norm_quantize,
      .silu_mul = silu_mul,
      .relu2_mul = relu2_mul,
      .add = add,
      .attend = attend,
      .store_f16 = store_f16,
      .store_i8 = store_i8,
      .burn_int8 = burn_int8,
      .attend_block = attend_block,
      .softmax_sums = softmax_sums,
  };
}

}  // namespace
}  // namespace wf
