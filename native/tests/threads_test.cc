// The thread pool under load: every chunk is handed out once, a barrier orders all memory, idle threads wake up.
// Meant for the thread sanitizer too.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "runtime/active_threads.h"
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
        const auto add = [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            next[static_cast<size_t>(i)] += last[static_cast<size_t>(i)] + last[static_cast<size_t>(size - 1 - i)];
          }
        };
        if (job % 4 < 2) {
          worker.shares(size, grain, add);
        } else {
          worker.chunks(size, grain, job % 2 == 0 ? size : grain, add);
        }
      }
    });
    // the sum of mirrored elements is constant and doubles with every layer
    const int64_t sum = (size - 1 + 2 * job) << (layers - 1);
    for (const int64_t value : values.back()) require(value == sum, "a chunk was lost, doubled or read too early");
  }
}

// How often each number of threads is used in `jobs` jobs, when a job of n threads takes seconds(n) and waits long
// `stalls` times if n is more than 1.
template <typename Seconds>
std::vector<int> use(wf::ActiveThreads& chooser, int threads, int jobs, int64_t stalls, Seconds seconds) {
  std::vector<int> used(static_cast<size_t>(threads) + 1);
  for (int i = 0; i < jobs; ++i) {
    const int count = chooser.count();
    ++used[static_cast<size_t>(count)];
    chooser.record(seconds(count), count > 1 ? stalls : 0);
  }
  return used;
}

void check_active_threads() {
  wf::ActiveThreads chooser(8);
  const auto quiet = [](int n) { return 1.0 / n; };
  const auto crowded = [](int n) { return n > 4 ? 1.0 : 1.0 / n; };  // more than four wait for a stolen core
  require(use(chooser, 8, 500, 0, quiet)[8] == 500, "all threads without stalls");
  const std::vector<int> used = use(chooser, 8, 2000, 50, crowded);
  require(used[4] > 1800, "the fastest number while cores are taken");
  use(chooser, 8, 600, 0, quiet);  // as long as one decision may stand
  require(use(chooser, 8, 500, 0, quiet)[8] == 500, "all threads again afterwards");
  require(use(chooser, 8, 1000, 50, quiet)[8] > 600, "stalls alone do not matter, times do");
  wf::ActiveThreads single(1);
  require(use(single, 1, 10, 50, quiet)[1] == 10, "one thread");
}

}  // namespace

int main() {
  check_active_threads();
  const wf::CoreChoice choice = wf::choose_cores();
  require(choice.chosen == wf::available_cores() && choice.chosen >= 1 && choice.chosen <= choice.cores,
          "chosen cores");
  require(choice.cpus >= 1 && choice.numa_nodes >= 1 && !choice.why.empty(), "what is known of the processors");
  std::puts(choice.why.c_str());
  for (const int threads : {1, 2, 3, 8}) {
    check(threads, 1, 1, 10);
    check(threads, 37, 4, 40);
    check(threads, 1000, 16, 20);
  }
  std::puts("threads_test: ok");
  return 0;
}
