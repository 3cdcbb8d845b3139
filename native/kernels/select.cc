// The one door where hardware is chosen. A new kernel file adds a line to `kTables`.
#include <string.h>

#include "kernels/cpu_features.h"
#include "kernels/kernels.h"

namespace wf {
namespace {

struct Table {
  const Kernels* kernels;
  bool (*runs)(const CpuFeatures&);
  const char* reason;
};

// Best first. The reference runs everywhere and is last, so that "auto" always finds something.
const Table kTables[] = {
#if defined(__x86_64__) && !defined(WF_PORTABLE_KERNELS)
    {&kAmxKernels, [](const CpuFeatures& cpu) { return cpu.amx_int8; },
     "the processor has AMX-INT8, AVX-512 VNNI and GFNI and the system lets this process use the tile registers"},
    {&kAvx512VnniKernels, [](const CpuFeatures& cpu) { return cpu.avx512_vnni; },
     "the processor has AVX-512 F, BW, DQ, VL and VNNI and the system saves the 512-bit registers"},
    {&kAvxVnniKernels, [](const CpuFeatures& cpu) { return cpu.avx_vnni; },
     "the processor has AVX-VNNI, AVX2, FMA and F16C and the system saves the 256-bit registers"},
    {&kAvx2Kernels, [](const CpuFeatures& cpu) { return cpu.avx2_fma_f16c; },
     "the processor has AVX2, FMA and F16C and the system saves the 256-bit registers"},
#endif
#if defined(__aarch64__) && !defined(WF_PORTABLE_KERNELS)
    {&kNeonI8mmKernels, [](const CpuFeatures& cpu) { return cpu.neon_i8mm; },
     "the processor has NEON with the int8 matrix product, the dot product and half-precision instructions"},
    {&kNeonDotprodKernels, [](const CpuFeatures& cpu) { return cpu.neon_dotprod; },
     "the processor has NEON with the dot product and half-precision instructions"},
#endif
    {&kReferenceKernels, [](const CpuFeatures&) { return true; },
     "no faster kernels run on this processor: plain C++, many times slower"},
};

}  // namespace

int runnable_kernels(const Kernels** out, int capacity) {
  int count = 0;
  for (const Table& table : kTables)
    if (table.runs(cpu_features()) && count < capacity) out[count++] = table.kernels;
  return count;
}

const Kernels* select_kernels(const char* name, const char** reason) {
  const bool any = strcmp(name, "auto") == 0;
  for (const Table& table : kTables) {
    if (!any && strcmp(name, table.kernels->name) != 0) continue;
    if (!table.runs(cpu_features())) {
      if (any) continue;
      *reason = "this processor or its operating system lacks the instructions";
      return nullptr;
    }
    *reason = any ? table.reason : "asked for by name";
    return table.kernels;
  }
  *reason = "this build has no kernels of that name";
  return nullptr;
}

}  // namespace wf
