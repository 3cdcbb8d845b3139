#include "kernels/cpu_features.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace wf {
namespace {

#if defined(__x86_64__)

// XCR0, the register sets the operating system saves on a task switch. Without them a processor that has the
// instructions still faults on them (or, worse, loses registers).
unsigned long long saved_register_sets() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

bool has_avx_vnni() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return false;  // a: the last subleaf
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4));
}

// The 8 KiB of tile data are given to processes that ask for them.
// Source: Linux, Documentation/arch/x86/xstate.rst.
bool tiles_allowed() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures found{};
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
  if (!osxsave) return found;
  const unsigned long long saved = saved_register_sets();
  const bool ymm_saved = (saved & 0x06) == 0x06;  // bits 1 (xmm) and 2 (upper ymm)
  const bool zmm_saved = (saved & 0xE6) == 0xE6;  // and 5 (masks), 6 (upper zmm 0-15), 7 (zmm 16-31)
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  const bool avx2 = b & (1u << 5);
  const bool f = b & (1u << 16), dq = b & (1u << 17), bw = b & (1u << 30), vl = b & (1u << 31);
  const bool vnni = c & (1u << 11);
  found.avx2_fma_f16c = avx2 && fma && f16c && ymm_saved;
  found.avx_vnni = found.avx2_fma_f16c && has_avx_vnni();
  found.avx512_vnni = found.avx2_fma_f16c && f && dq && bw && vl && vnni && zmm_saved;
  const bool amx_tile = d & (1u << 24), amx_int8 = d & (1u << 25), gfni = c & (1u << 8);
  const bool tiles_saved = (saved & 0x60000) == 0x60000;  // bits 17 (shapes) and 18 (data)
  found.amx_int8 = found.avx512_vnni && amx_tile && amx_int8 && gfni && tiles_saved && tiles_allowed();
  return found;
}

bool made_by_intel() {
  unsigned a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) && b == 0x756E6547 && d == 0x49656E69 && c == 0x6C65746E;  // GenuineIntel
}

void read_name(char* out) {
  unsigned words[12] = {};
  unsigned a, b, c, d;
  if (!__get_cpuid(0x80000000u, &a, &b, &c, &d) || a < 0x80000004u) {
    strcpy(out, "unknown");
    return;
  }
  for (unsigned i = 0; i < 3; ++i)
    __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
  const char* text = reinterpret_cast<const char*>(words);
  while (*text == ' ') ++text;
  const size_t used = static_cast<size_t>(text - reinterpret_cast<const char*>(words));
  memcpy(out, text, sizeof(words) - used);
  out[sizeof(words) - used] = '\0';
  for (size_t end = strlen(out); end > 0 && out[end - 1] == ' '; --end) out[end - 1] = '\0';
}

#elif defined(__aarch64__) && defined(__linux__)

bool made_by_intel() { return false; }

CpuFeatures detect() {
  CpuFeatures found{};
  const unsigned long capabilities = getauxval(AT_HWCAP);
  const bool half_arithmetic = capabilities & (1ul << 10);  // HWCAP_ASIMDHP
  const bool dotprod = capabilities & (1ul << 20);          // HWCAP_ASIMDDP
  const bool i8mm = getauxval(AT_HWCAP2) & (1ul << 13);     // HWCAP2_I8MM
  found.neon_dotprod = half_arithmetic && dotprod;
  found.neon_i8mm = found.neon_dotprod && i8mm;
  return found;
}

void read_name(char* out) { strcpy(out, "aarch64"); }

#elif defined(__aarch64__) && defined(__APPLE__)

bool made_by_intel() { return false; }

CpuFeatures detect() {
  CpuFeatures found{};
  int dotprod = 0, half = 0, i8mm = 0;
  size_t size = sizeof(int);
  sysctlbyname("hw.optional.arm.FEAT_DotProd", &dotprod, &size, nullptr, 0);
  size = sizeof(int);
  sysctlbyname("hw.optional.arm.FEAT_FP16", &half, &size, nullptr, 0);
  size = sizeof(int);
  sysctlbyname("hw.optional.arm.FEAT_I8MM", &i8mm, &size, nullptr, 0);
  found.neon_dotprod = dotprod && half;
  found.neon_i8mm = found.neon_dotprod && i8mm;
  return found;
}

void read_name(char* out) {
  size_t size = 64;
  if (sysctlbyname("machdep.cpu.brand_string", out, &size, nullptr, 0) != 0) strcpy(out, "unknown");
}

#else

bool made_by_intel() { return false; }

CpuFeatures detect() { return CpuFeatures{}; }

void read_name(char* out) { strcpy(out, "unknown"); }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect();
  return found;
}

int preferred_prefetch_bytes(const char** reason) {
  static const bool intel = made_by_intel();
  *reason = intel ? "an Intel processor: its prefetcher stops at every 4 KiB page"
                  : "no Intel processor: the hardware keeps up by itself";
  return intel ? 2048 : 0;
}

const char* cpu_name() {
  struct Name {
    char text[64];
    Name() { read_name(text); }
  };
  static const Name name;
  return name.text;
}

}  // namespace wf
