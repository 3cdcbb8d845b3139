#include <string.h>

#include "kernels/cpu_features.h"
#include "training/training.h"

namespace wf {

const TrainingKernels* training_kernels(const char* name) {
  const bool any = strcmp(name, "auto") == 0;
#if defined(__x86_64__)
  if (cpu_features().avx512_vnni && (any || strcmp(name, kAvx512Training.name) == 0)) return &kAvx512Training;
  if (cpu_features().avx2_fma_f16c && (any || strcmp(name, kAvx2Training.name) == 0)) return &kAvx2Training;
#endif
  return any || strcmp(name, kPlainTraining.name) == 0 ? &kPlainTraining : nullptr;
}

}  // namespace wf
