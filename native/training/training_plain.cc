// The training kernels in vectors of 4 floats, which every processor of the build has; see CMakeLists.txt for the
// flags.
#include "training/training.h"

#if 1
namespace wf {
namespace {
constexpr int kLanes = 4;
#include "training/vector-inl.h"
// clang-format off: needs the types of the first
#include "training/training-inl.h"
// clang-format on
}  // namespace

const TrainingKernels kPlainTraining = {
    "plain",       norm_quantize, quantize,           gate_gradient,   norm_gradient,   add,
    rotary<false>, rotary<true>,  attention_gradient, weight_quantize, weight_gradient, distill,
};

}  // namespace wf
#endif
