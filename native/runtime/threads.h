// The thread pool of the engine: one job at a time, run by all threads together, with barriers inside the job.
//
// Jobs are short (a token is about 200 barriers), so waiting threads spin for some microseconds before they sleep,
// and rows are handed out in chunks, so that a core taken away by another process stalls one chunk, not half a layer.
#pragma once
#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "profile.h"

namespace wf {

// The processors this process may use, and how many threads to start by default.
struct CoreChoice {
  int cpus = 1;        // logical ones in the affinity mask, at most the quota
  int cores = 1;       // physical ones among them
  int quota = 0;       // CPUs of the control group's quota, rounded up; 0: none
  int numa_nodes = 1;  // that have CPUs of the mask
  int chosen = 1;      // threads by default
  std::string why;     // one line for people
};
CoreChoice choose_cores();

// Physical cores this process may use: the affinity mask, one thread a core, at most the control group's CPU quota.
int available_cores();

class ThreadPool;

// A thread inside a job.
class Worker {
 public:
  Worker(ThreadPool& pool, int index) : pool_(pool), index_(index) {}
  int index() const { return index_; }
  int count() const;

  // Returns when every thread of the job has called it; orders all memory between them.
  void barrier() noexcept;

  // Calls f(begin, end) for pieces of [0, total), each piece once over the threads of the job, then waits at a barrier.
  // Pieces are multiples of `grain` and begin large, at most `most`, and end small: few of them, and little to wait for
  // when one thread is slower. A thread's pieces rise. All threads must call it with the same numbers.
  template <typename F>
  void chunks(int64_t total, int64_t grain, int64_t most, F&& f) noexcept;

  // The same for passes of some rows, whose results other threads read: each thread has a range of its own, which a
  // call with the same total finds in its cache again, and takes it in a few pieces; what a slower one has not begun,
  // those who are done take over.
  template <typename F>
  void shares(int64_t total, int64_t grain, F&& f) noexcept;

  // From now on `profile` counts what this worker waits; null: nobody.
  void watch(Profile* profile) { profile_ = profile; }

 private:
  void wait_at_barrier() noexcept;

  ThreadPool& pool_;
  int index_;
  Profile* profile_ = nullptr;
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs job(Worker&) on `active` threads, the caller included, and returns when all are done; the others sleep on.
  // The job must not throw. Throws InputError in a process forked after the pool was made: fork copies no threads.
  template <typename F>
  void run(int active, F job) {
    run_erased(active, [](void* context, Worker& worker) { (*static_cast<F*>(context))(worker); }, &job);
  }

  // How often a thread waited for longer than a chunk of work takes. Grows fast when cores are taken away.
  int64_t stalls() const { return stalls_.load(std::memory_order_relaxed); }

 private:
  friend class Worker;
  using Job = void (*)(void* context, Worker& worker);

  // Of one thread, on a cache line of its own.
  struct alignas(64) Start {
    std::atomic<int> job{0};  // the number of the last one it was asked to join
  };
  struct alignas(64) Share {
    std::atomic<int> taken{0};  // pieces of its range
  };

  void run_erased(int active, Job job, void* context);
  void worker_loop(int index) noexcept;
  void stop() noexcept;
  // Spins, then sleeps, until value is not old; true when it slept.
  static bool wait_for_change(std::atomic<int>& value, int old, int spins) noexcept;

  const int size_;
  const pid_t owner_;
  int active_;  // threads of the present job
  Job job_ = nullptr;
  void* context_ = nullptr;
  std::vector<Start> starts_;  // by thread; the caller's is not used
  std::vector<Share> shares_;  // by thread
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> stalls_{0};
  // Each on its own cache line: they are written at different times by different threads.
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> epoch_{0};
  alignas(64) std::atomic<int64_t> next_{0};
};

inline int Worker::count() const { return pool_.active_; }

template <typename F>
void Worker::chunks(int64_t total, int64_t grain, int64_t most, F&& f) noexcept {
  const int active = pool_.active_;
  if (active == 1) {
    if (total > 0) f(int64_t{0}, total);
    return;
  }
  // A thread draws numbers; where the piece of a number lies is a matter of counting, the same for all.
  int64_t begin = 0, piece = 0;
  for (int64_t counted = 0;; ++counted) {
    const int64_t mine = pool_.next_.fetch_add(1, std::memory_order_relaxed);
    const auto measure = [&] {
      const int64_t share = std::min(most, (total - begin) / (2 * active));
      piece = std::max(grain, share / grain * grain);
    };
    for (measure(); counted < mine && begin < total; ++counted, measure()) begin += piece;
    if (begin >= total) break;
    f(begin, std::min(begin + piece, total));
    begin += piece;
  }
  barrier();
}

template <typename F>
void Worker::shares(int64_t total, int64_t grain, F&& f) noexcept {
  constexpr int kPieces = 3;  // a half and two quarters of a range
  const int active = pool_.active_;
  if (active == 1) {
    if (total > 0) f(int64_t{0}, total);
    return;
  }
  const auto place = [&](int64_t quarter) {  // of the ranges one behind the other
    const int64_t grains = (total + grain - 1) / grain;
    return std::min(total, grains * quarter / (4 * active) * grain);
  };
  for (int turn = 0; turn < active; ++turn) {
    const int owner = (index_ + turn) % active;
    std::atomic<int>& taken = pool_.shares_[static_cast<size_t>(owner)].taken;
    while (taken.load(std::memory_order_relaxed) < kPieces) {
      const int piece = taken.fetch_add(1, std::memory_order_relaxed);
      if (piece >= kPieces) break;
      const int64_t begin = place(4 * owner + (piece == 0 ? 0 : piece + 1)), end = place(4 * owner + piece + 2);
      if (begin < end) f(begin, end);
    }
  }
  barrier();
}

}  // namespace wf
