#include "bench/machine.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/cpu_features.h"
#include "runtime/huge_memory.h"
#include "runtime/line_vector.h"
#include "runtime/packed_codes.h"

namespace wf {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Seconds this thread has been running: what other processes take of the core does not count.
double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Runs body(thread) on every thread at once; returns the seconds from the common start to the last end. One thread
// alone is timed by its own running time; several are not, since what they do together (share the memory) they only do
// while they run at the same time.
double run_together(int threads, const std::function<void(int)>& body) {
  if (threads == 1) {
    const double start = thread_seconds();
    body(0);
    return thread_seconds() - start;
  }
  std::atomic<int> waiting{threads};
  std::vector<Clock::time_point> starts(threads), ends(threads);
  auto worker = [&](int thread) {
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    starts[thread] = Clock::now();
    body(thread);
    ends[thread] = Clock::now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(worker, thread);
  worker(0);
  for (std::thread& other : others) other.join();
  const auto first = *std::min_element(starts.begin(), starts.end());
  return std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) - first).count();
}

// The least seconds of one repetition among those that fit in `seconds`, at least three.
double best_of(double seconds, const std::function<double()>& once) {
  double best = once();
  const Clock::time_point start = Clock::now();
  for (int repeats = 1; repeats < 3 || since(start) < seconds; ++repeats) best = std::min(best, once());
  return best;
}

uint64_t sum_words(const uint64_t* words, int64_t count) {
  uint64_t sums[8] = {};
  for (int64_t i = 0; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
  uint64_t sum = 0;
  for (uint64_t part : sums) sum += part;
  return sum;
}

// Cheap random words: speed does not depend on the values, but all-equal pages could be merged.
void fill_random(uint8_t* out, int64_t bytes) {
  uint64_t state = 0x9E3779B97F4A7C15ull;
  for (int64_t i = 0; i + 8 <= bytes; i += 8) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    std::memcpy(out + i, &state, 8);
  }
}

int32_t engines_prefetch() {
  const char* reason;
  return preferred_prefetch_bytes(&reason);
}

struct Activations {
  Activations(const Kernels& kernels, int32_t columns, int32_t tokens)
      : blocks((columns + kColumnsPerBlock - 1) / kColumnsPerBlock),
        q(static_cast<size_t>(tokens) * blocks * kColumnsPerBlock),
        block_sums(static_cast<size_t>(tokens) * blocks),
        scales(tokens) {
    std::vector<float> x(columns);
    for (int32_t t = 0; t < tokens; ++t) {
      for (int32_t i = 0; i < columns; ++i) x[i] = std::sin(0.7f * i + t);
      kernels.quantize(x.data(), columns, &q[static_cast<size_t>(t) * blocks * kColumnsPerBlock],
                       &block_sums[static_cast<size_t>(t) * blocks], &scales[t]);
    }
  }
  int32_t blocks;
  LineVector<int8_t> q;
  LineVector<int32_t> block_sums;
  LineVector<float> scales;
};

}  // namespace

double read_gb_per_second(int threads, int64_t bytes, double seconds) {
  const int64_t words = bytes / 8 / threads;
  HugeMemory pages(static_cast<size_t>(words * threads * 8));
  std::memset(pages.data(), 1, static_cast<size_t>(words * threads * 8));
  const auto* memory = reinterpret_cast<const uint64_t*>(pages.data());
  std::atomic<uint64_t> sink{0};
  const double best = best_of(seconds, [&] {
    return run_together(threads, [&](int thread) { sink += sum_words(memory + thread * words, words); });
  });
  return static_cast<double>(words) * threads * 8 / best * 1e-9;
}

double int8_gmac_per_second(const Kernels& kernels, int threads, double seconds) {
  constexpr int64_t kRounds = 200'000;
  int64_t done = 0;
  const double best = best_of(seconds, [&] {
    return run_together(threads, [&](int thread) {
      const int64_t count = kernels.burn_int8(kRounds);
      if (thread == 0) done = count;
    });
  });
  return static_cast<double>(done) * threads / best * 1e-9;
}

ProductSpeed ternary_speed(const Kernels& kernels, const ProductShape& shape, int32_t tokens, int32_t copies,
                           int threads, double seconds) {
  const Activations x(kernels, shape.columns, tokens);
  const int32_t prefetch = engines_prefetch();
  const int32_t row_blocks = (shape.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const int32_t groups = shape.group_size ? (shape.columns + shape.group_size - 1) / shape.group_size : 0;
  const int64_t code_bytes = row_blocks * row_block_bytes(shape.layout, x.blocks);
  const int64_t group_count = static_cast<int64_t>(row_blocks) * groups * kRowsPerBlock;
  HugeMemory codes(static_cast<size_t>(code_bytes * copies));
  fill_random(codes.data(), code_bytes * copies);
  make_codes_valid(codes.data(), {row_blocks, x.blocks, shape.layout}, row_blocks * copies);
  HugeMemory scale_pages(static_cast<size_t>(group_count * copies * 2));
  auto* group_scales = reinterpret_cast<uint16_t*>(scale_pages.data());
  std::fill(group_scales, group_scales + group_count * copies, uint16_t{0x3C00});  // 1.0
  LineVector<float> row_scales(static_cast<size_t>(row_blocks) * kRowsPerBlock, 1.0f);
  LineVector<float> y(static_cast<size_t>(tokens) * shape.rows);
  const auto passes = static_cast<int32_t>((1 << 20) / (code_bytes * copies * tokens) + 1);  // long enough to time
  const double best = best_of(seconds, [&] {
    return run_together(threads, [&](int thread) {
      const int32_t begin = row_blocks * thread / threads, end = row_blocks * (thread + 1) / threads;
      for (int32_t visit = 0; visit < copies * passes; ++visit) {
        const int32_t copy = visit % copies;
        const TernaryMatrix w{codes.data() + copy * code_bytes,
                              groups ? group_scales + copy * group_count : nullptr,
                              groups ? nullptr : row_scales.data(),
                              shape.rows,
                              shape.columns,
                              row_blocks,
                              x.blocks,
                              shape.group_size / kColumnsPerBlock,
                              shape.layout,
                              prefetch};
        kernels.ternary_gemm(&w, x.q.data(), x.block_sums.data(), x.scales.data(), tokens, begin, end, y.data(),
                             shape.rows);
      }
    });
  });
  const double one = best / copies / passes;
  const double scale_bytes = groups ? 2.0 * static_cast<double>(group_count) : 4.0 * row_blocks * kRowsPerBlock;
  return {one, (static_cast<double>(code_bytes) + scale_bytes) / one * 1e-9,
          static_cast<double>(shape.rows) * shape.columns * tokens / one * 1e-9};
}

ProductSpeed head_speed(const Kernels& kernels, TableFormat format, int32_t rows, int32_t columns, int32_t tokens,
                        int threads, double seconds) {
  const int32_t row_blocks = (rows + kRowsPerBlock - 1) / kRowsPerBlock;
  const int32_t column_blocks = (columns + kColumnsPerBlock - 1) / kColumnsPerBlock;
  const int64_t code_bytes = static_cast<int64_t>(row_blocks) * column_blocks * table_block_bytes(format);
  const int64_t group_count = format == TableFormat::kQ8 ? 0
                                                         : int64_t{row_blocks} * kRowsPerBlock * column_blocks *
                                                               (format == TableFormat::kQ6 ? 1 : 2);
  HugeMemory pages(static_cast<size_t>(code_bytes)), scale_pages(static_cast<size_t>(group_count) * 2);
  fill_random(pages.data(), code_bytes);
  auto* group_scales = reinterpret_cast<uint16_t*>(scale_pages.data());
  std::fill(group_scales, group_scales + group_count, uint16_t{0x3C00});  // 1.0
  LineVector<float> row_scales(static_cast<size_t>(row_blocks) * kRowsPerBlock, 0.01f);
  const size_t width = static_cast<size_t>(column_blocks) * kColumnsPerBlock;
  LineVector<int8_t> high(width * tokens), low(width * tokens);
  LineVector<int32_t> half_sums(static_cast<size_t>(column_blocks) * 2 * tokens);
  LineVector<float> scales(tokens), x(columns), y(static_cast<size_t>(tokens) * rows);
  for (int32_t t = 0; t < tokens; ++t) {
    for (int32_t i = 0; i < columns; ++i) x[i] = std::sin(0.7f * i + t);
    kernels.quantize_wide(x.data(), columns, &high[t * width], &low[t * width],
                          &half_sums[static_cast<size_t>(t) * column_blocks * 2], &scales[t]);
  }
  const WideActivations wide{high.data(), low.data(), half_sums.data(), scales.data()};
  const TableMatrix w{pages.data(),
                      group_count ? nullptr : row_scales.data(),
                      group_count ? group_scales : nullptr,
                      rows,
                      columns,
                      row_blocks,
                      column_blocks,
                      format,
                      engines_prefetch()};
  const double best = best_of(seconds, [&] {
    return run_together(threads, [&](int thread) {
      const auto begin = static_cast<int32_t>(int64_t{row_blocks} * thread / threads);
      const auto end = static_cast<int32_t>(int64_t{row_blocks} * (thread + 1) / threads);
      kernels.table_gemm(&w, &wide, tokens, begin, end, y.data(), rows);
    });
  });
  const double scale_bytes = group_count ? 2.0 * static_cast<double>(group_count) : 4.0 * row_blocks * kRowsPerBlock;
  return {best, (static_cast<double>(code_bytes) + scale_bytes) / best * 1e-9,
          static_cast<double>(rows) * columns * tokens / best * 1e-9};
}

}  // namespace wf
