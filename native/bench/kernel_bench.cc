// Prints what docs/kernels.md tabulates: cmake -DWF_BUILD_TESTS=ON, then kernel_bench [table [threads]].
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "bench/machine.h"
#include "kernels/cpu_features.h"

namespace {

constexpr wf::ProductShape kShapes[] = {{576, 576, 64},  {192, 576, 64},  {1536, 576, 64},
                                        {576, 1536, 64}, {576, 1536, 0},  {2560, 2560, 0},
                                        {6912, 2560, 0}, {2560, 6912, 0}, {2560, 2560, 128}};

void bench(const wf::Kernels& kernels, int threads) {
  printf("%s, %d threads: read %.1f GB/s, int8 peak %.0f GMAC/s\n", kernels.name, threads,
         wf::read_gb_per_second(threads, 512 << 20, 0.5), wf::int8_gmac_per_second(kernels, threads, 0.3));
  printf("%6s %6s %6s | GB/s at 1 token | GMAC/s at", "rows", "cols", "group");
  const int32_t counts[] = {2, 4, 8, 16, 32, 128};
  for (int32_t tokens : counts) printf(" %7d", tokens);
  printf("\n");
  for (const wf::ProductShape& shape : kShapes) {
    const int64_t bytes = static_cast<int64_t>(shape.rows) * shape.columns / 4;
    const int32_t copies = static_cast<int32_t>((96ll << 20) / bytes) + 1;  // three times a 32 MB cache
    const auto decode = wf::ternary_speed(kernels, shape, 1, copies, threads, 1.0);
    const auto cached = wf::ternary_speed(kernels, shape, 1, 1, 1, 0.05);
    printf("%6d %6d %6d | %5.1f (%5.1f hot) |          ", shape.rows, shape.columns, shape.group_size,
           decode.gb_per_second, cached.gb_per_second);
    for (int32_t tokens : counts)
      printf(" %7.1f",
             wf::ternary_speed(kernels, shape, tokens, tokens > 8 ? 1 : copies, threads, tokens > 8 ? 0.2 : 0.5)
                 .gmac_per_second);
    printf("\n");
  }
  printf("head 49152 x 576 int8: %.1f GB/s at 1 token; GMAC/s at 2, 8, 64 tokens:",
         wf::head_speed(kernels, wf::TableFormat::kQ8, 49152, 576, 1, threads, 1.0).gb_per_second);
  for (int32_t tokens : {2, 8, 64})
    printf(" %.1f", wf::head_speed(kernels, wf::TableFormat::kQ8, 49152, 576, tokens, threads, 0.2).gmac_per_second);
  printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  const wf::Kernels* tables[8];
  const int count = wf::runnable_kernels(tables, 8);
  printf("%s\n", wf::cpu_name());
  for (int i = 0; i < count; ++i) {
    if (argc > 1 ? strcmp(argv[1], tables[i]->name) != 0 : i + 1 == count) continue;  // the reference takes minutes
    for (int threads = 1; threads <= 2; ++threads)
      if (argc <= 2 || atoi(argv[2]) == threads) bench(*tables[i], threads);
  }
  return 0;
}
