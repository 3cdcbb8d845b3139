// The thread pool under load: every chunk is handed out once, a barrier orders all memory, idle threads wake up.
// Meant for the thread sanitizer too.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "runtime/threads.h"

namespace {

void require(bool fact, const char* what) {
  if (fact) return;
  std::fprintf(stderr, "threads_test: %s\n", what);
  std::exit(1);
}

// Layers of a toy network: each element of the next array needs two of the last one, written by other threads.
void check(int threads, int64_t size, int64_t grain, int layers) {
  wf::ThreadPool pool(threads);
  require(pool.size() == threads, "size");
  for (int job = 0; job < 60; ++job) {
    std::vector<std::vector<int64_t>> values(static_cast<size_t>(layers) + 1);
    for (auto& layer : values) layer.assign(static_cast<size_t>(size), 0);
    for (int64_t i = 0; i < size; ++i) values[0][static_cast<size_t>(i)] = i + job;
    const int active = job % 3 == 0 ? threads : 1 + job % threads;  // the others sleep through this job
    pool.run(active, [&](wf::Worker& worker) {
      if (worker.index() == 0) require(worker.count() == active, "count");
      for (int layer = 0; layer < layers; ++layer) {
        const auto& last = values[static_cast<size_t>(layer)];
        auto& next = values[static_cast<size_t>(layer) + 1];
        worker.chunks(size, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            next[static_cast<size_t>(i)] += last[static_cast<size_t>(i)] + last[static_cast<size_t>(size - 1 - i)];
          }
        });
      }
    });
    // the sum of mirrored elements is constant and doubles with every layer
    const int64_t sum = (size - 1 + 2 * job) << (layers - 1);
    for (const int64_t value : values.back()) require(value == sum, "a chunk was lost, doubled or read too early");
  }
}

}  // namespace

int main() {
  require(wf::available_cores() >= 1, "available_cores");
  for (const int threads : {1, 2, 3, 8}) {
    check(threads, 1, 1, 10);
    check(threads, 37, 4, 40);
    check(threads, 1000, 16, 20);
  }
  std::puts("threads_test: ok");
  return 0;
}
