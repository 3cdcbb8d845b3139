// The training kernels in vectors of 16 floats; see CMakeLists.txt for the flags.
#include "training/training.h"

#if defined(__x86_64__)
namespace wf {
namespace {
constexpr int kLanes = 16;
#include "training/vector-inl.h"
// clang-format off: needs the types of the first
#include "training/training-inl.h"
// clang-format on
}  // namespace

const TrainingKernels kAvx512Training = {
    "avx512",      norm_quantize, quantize,           gate_gradient,   norm_gradient,   add,
    rotary<false>, rotary<true>,  attention_gradient, weight_quantize, weight_gradient, distill,
};

}  // namespace wf
#endif
