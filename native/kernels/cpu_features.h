// What this processor can do and what the operating system lets it do.
#pragma once

namespace wf {

struct CpuFeatures {
  bool avx2_fma_f16c;  // AVX2, FMA and F16C, and the system saves the 256-bit registers
  bool avx_vnni;       // the above and AVX-VNNI: vpdpbusd on 256-bit registers without AVX-512
  bool avx512_vnni;    // AVX-512 F, BW, DQ, VL and VNNI, and the system saves the 512-bit and mask registers
  bool neon_dotprod;   // aarch64: SDOT and half-precision arithmetic
};

// Asked of the processor once; the answer never changes.
const CpuFeatures& cpu_features();

// The processor's own name for itself, for example "AMD EPYC"; "unknown" where it has none.
const char* cpu_name();

}  // namespace wf
