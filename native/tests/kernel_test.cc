// Every kernel table this machine can run: kernel_test [repeats [seed]].
//
// Integer products are exact, so equality is demanded of them on odd sizes, unaligned pointers and extreme values.
// Float results differ by the order of additions only; every tolerance is the textbook bound of that (a sum of n
// terms in float32 is off by at most n * 2^-24 * sum |term| to first order), doubled where both sides have it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu_features.h"
#include "tests/checks.h"

namespace wf::checks {

std::mt19937 random_bits;
int failures = 0;

void fail(const Kernels& kernels, const std::string& what) {
  if (++failures <= 20) printf("FAIL %s: %s\n", kernels.name, what.c_str());
}

void check_close(const Kernels& kernels, const char* what, const float* got, const float* expected, int n,
                 double relative, double absolute) {
  for (int i = 0; i < n; ++i)
    if (!(fabs(double(got[i]) - expected[i]) <= relative * fabs(expected[i]) + absolute))
      return fail(kernels, std::string(what) + " of " + std::to_string(n) + " at " + std::to_string(i) + ": " +
                               std::to_string(got[i]) + " for " + std::to_string(expected[i]));
}

}  // namespace wf::checks

namespace {

using wf::Kernels;
using wf::checks::fail;

void test_select() {
  const Kernels* tables[8];
  const char* reason = nullptr;
  const int count = wf::runnable_kernels(tables, 8);
  if (count < 1 || tables[count - 1] != &wf::kReferenceKernels)
    fail(wf::kReferenceKernels, "the reference must be last");
  if (wf::select_kernels("auto", &reason) != tables[0] || !reason) fail(*tables[0], "auto must be the first table");
  for (int i = 0; i < count; ++i)
    if (wf::select_kernels(tables[i]->name, &reason) != tables[i]) fail(*tables[i], "must be found by name");
  if (wf::select_kernels("mmx", &reason) || !strstr(reason, "no kernels of that name"))
    fail(wf::kReferenceKernels, "an unknown name must be refused");
}

}  // namespace

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? atoi(argv[1]) : 200;
  const unsigned long seed = argc > 2 ? strtoul(argv[2], nullptr, 10) : std::random_device()() % 1'000'000;
  printf("kernel_test %d %lu\n", repeats, seed);
  test_select();
  const Kernels* tables[8];
  const int count = wf::runnable_kernels(tables, 8);
  for (int i = 0; i < count; ++i) {
    wf::checks::random_bits.seed(static_cast<uint32_t>(seed));  // a table's cases do not depend on the others
    const bool slow = tables[i] == &wf::kReferenceKernels;
    wf::checks::check_ternary(*tables[i], slow ? std::min(repeats, 20) : repeats);
    wf::checks::check_tables(*tables[i], slow ? std::min(repeats, 20) : repeats);
    wf::checks::check_elementwise(*tables[i]);
    wf::checks::check_attention(*tables[i]);
    printf("%s: run on %s\n", tables[i]->name, wf::cpu_name());
    fflush(stdout);
  }
  if (wf::checks::failures) printf("%d failures\n", wf::checks::failures);
  return wf::checks::failures ? 1 : 0;
}
