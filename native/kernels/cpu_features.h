// What this processor can do and what the operating system lets it do.
#pragma once

namespace wf {

struct CpuFeatures {
  bool avx2_fma_f16c;  // AVX2, FMA and F16C, and the system saves the 256-bit registers
  bool avx_vnni;       // the above and AVX-VNNI: vpdpbusd on 256-bit registers without AVX-512
  bool avx512_vnni;    // AVX-512 F, BW, DQ, VL and VNNI, and the system saves the 512-bit and mask registers
  bool amx_int8;       // the above, GFNI, and AMX-TILE, AMX-INT8, whose registers the system lets this process use
  bool neon_dotprod;   // aarch64: SDOT and half-precision arithmetic
  bool neon_i8mm;      // the above and SMMLA
};

// Asked of the processor once; the answer never changes.
const CpuFeatures& cpu_features();

// The processor's own name for itself, for example "AMD EPYC"; "unknown" where it has none.
const char* cpu_name();

// Bytes ahead of what is being read that a stream of weights should ask for, 0 for none; `reason` (static text) says
// why. Intel's hardware prefetcher does not cross a 4 KiB page and starts anew in each: with 2 KiB, 16 GB/s
// became 20 on one core of a Xeon and 28 became 34 on two. On AMD (Zen 4) the same requests cost time.
int preferred_prefetch_bytes(const char** reason);

}  // namespace wf
