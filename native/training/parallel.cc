#include "training/parallel.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

#include <algorithm>
#include <thread>
#include <vector>

namespace wf {
namespace {

struct Job {
  int64_t count, piece;
  const std::function<void(int64_t, int64_t, int)>* f;

  void run(int thread) const {
    const int64_t begin = thread * piece, end = std::min(count, begin + piece);
    if (begin < end) (*f)(begin, end, thread);
  }
};

// The entry that GCC's compiled `#pragma omp parallel` calls; LLVM's and Intel's runtimes have it, too.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using Number = int (*)();

template <class T>
T find(const char* name) {
#if defined(__unix__) || defined(__APPLE__)
  return reinterpret_cast<T>(dlsym(RTLD_DEFAULT, name));
#else
  return nullptr;
#endif
}

const Parallel g_parallel = find<Parallel>("GOMP_parallel");
const Number g_number = find<Number>("omp_get_thread_num");
const Number g_threads = find<Number>("omp_get_num_threads");

void run_all(void* data) {
  const Job& job = *static_cast<const Job*>(data);
  // A runtime may give fewer threads than were asked for.
  const int pieces = static_cast<int>((job.count + job.piece - 1) / job.piece);
  for (int i = g_number(); i < pieces; i += g_threads()) job.run(i);
}

}  // namespace

void over_rows(int64_t count, int64_t grain, int threads, const std::function<void(int64_t, int64_t, int)>& f) {
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t used = std::max<int64_t>(1, std::min<int64_t>(threads, grains));
  Job job{count, (grains + used - 1) / used * grain, &f};
  if (used == 1) return job.run(0);
  if (g_parallel && g_number && g_threads) return g_parallel(run_all, &job, static_cast<unsigned>(used), 0);
  std::vector<std::thread> others;
  for (int i = 1; i < used; ++i) others.emplace_back([&job, i] { job.run(i); });
  job.run(0);
  for (std::thread& other : others) other.join();
}

}  // namespace wf
