// Prints what docs/kernels.md tabulates: cmake -DWF_BUILD_TESTS=ON, then
//   kernel_bench [table [threads [t2|t1.6 [tokens, 1 or all]]]]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "bench/machine.h"
#include "kernels/cpu_features.h"

namespace {

constexpr int64_t kMemory = 512ll << 20;  // visited before the same byte comes again: above the caches of a server
constexpr wf::ProductShape kShapes[] = {{576, 576, 64},  {192, 576, 64},  {1536, 576, 64},
                                        {576, 1536, 64}, {576, 1536, 0},  {2560, 2560, 0},
                                        {6912, 2560, 0}, {2560, 6912, 0}, {2560, 2560, 128}};

void bench_products(const wf::Kernels& kernels, wf::TernaryLayout layout, int threads, bool one_token) {
  printf("%6s %6s %6s %5s | GB/s at 1 token | GMAC/s at", "rows", "cols", "group", "bits");
  const int32_t counts[] = {2, 4, 8, 16, 32, 128};
  for (int32_t tokens : counts) printf(" %7d", tokens);
  printf("\n");
  for (wf::ProductShape shape : kShapes) {
    shape.layout = layout;
    const int64_t bytes = static_cast<int64_t>(shape.rows) * shape.columns / 5;
    const int32_t copies = static_cast<int32_t>(kMemory / bytes) + 1;
    const auto decode = wf::ternary_speed(kernels, shape, 1, copies, threads, 0.5);
    const auto cached = wf::ternary_speed(kernels, shape, 1, 1, 1, 0.05);
    printf("%6d %6d %6d %5s | %5.1f (%5.1f hot) |          ", shape.rows, shape.columns, shape.group_size,
           layout == wf::TernaryLayout::kTwoBit ? "2.0" : "1.6", decode.gb_per_second, cached.gb_per_second);
    for (int32_t tokens : counts) {
      if (one_token) continue;
      const auto speed = wf::ternary_speed(kernels, shape, tokens, tokens > 8 ? 1 : copies, threads, 0.2);
      printf(" %7.1f", speed.gmac_per_second);
    }
    printf("\n");
    fflush(stdout);
  }
}

void bench_heads(const wf::Kernels& kernels, int threads, bool one_token) {
  struct Head {
    const char* name;
    wf::TableFormat format;
  };
  for (const Head& head :
       {Head{"q8", wf::TableFormat::kQ8}, Head{"q6", wf::TableFormat::kQ6}, Head{"q4", wf::TableFormat::kQ4}}) {
    for (const auto& [rows, columns] : {std::pair{49152, 576}, std::pair{128256, 2560}}) {
      printf("head %6d x %4d %s: %5.1f GB/s at 1 token", rows, columns, head.name,
             wf::head_speed(kernels, head.format, rows, columns, 1, threads, 0.5).gb_per_second);
      if (!one_token) printf("; GMAC/s at 2, 8, 64 tokens:");
      for (int32_t tokens : {2, 8, 64})
        if (!one_token)
          printf(" %.1f", wf::head_speed(kernels, head.format, rows, columns, tokens, threads, 0.1).gmac_per_second);
      printf("\n");
    }
  }
}

void bench(const wf::Kernels& kernels, int threads, const char* layout, bool one_token) {
  printf("%s, %d threads: read %.1f GB/s, int8 peak %.0f GMAC/s\n", kernels.name, threads,
         wf::read_gb_per_second(threads, kMemory, 0.5), wf::int8_gmac_per_second(kernels, threads, 0.3));
  if (!layout || strcmp(layout, "t2") == 0) {
    bench_products(kernels, wf::TernaryLayout::kTwoBit, threads, one_token);
  }
  if (!layout || strcmp(layout, "t1.6") == 0) {
    bench_products(kernels, wf::TernaryLayout::kFiveTrits, threads, one_token);
  }
  bench_heads(kernels, threads, one_token);
}

}  // namespace

int main(int argc, char** argv) {
  const wf::Kernels* tables[8];
  const int count = wf::runnable_kernels(tables, 8);
  const char* reason;
  const int prefetch = wf::preferred_prefetch_bytes(&reason);
  printf("%s, prefetching %d bytes ahead (%s)\n", wf::cpu_name(), prefetch, reason);
  for (int i = 0; i < count; ++i) {
    if (argc > 1 ? strcmp(argv[1], tables[i]->name) != 0 : i + 1 == count) continue;  // the reference takes minutes
    for (int threads = 1; threads <= 2; ++threads)
      if (argc <= 2 || atoi(argv[2]) == threads)
        bench(*tables[i], threads, argc > 3 ? argv[3] : nullptr, argc > 4 && strcmp(argv[4], "1") == 0);
  }
  return 0;
}
