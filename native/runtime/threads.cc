#include "threads.h"

#include <unistd.h>

#include "errors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace wf {

namespace {

// About 20 microseconds at a barrier, 100 between tokens: longer than a chunk or the sampler takes, and short
// enough to leave the core to another process soon.
constexpr int kBarrierSpins = 1500;
constexpr int kIdleSpins = 8000;

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : size_(threads), owner_(::getpid()) {
  try {
    for (int i = 1; i < size_; ++i) threads_.emplace_back([this, i] { worker_loop(i); });
  } catch (...) {
    stopping_.store(true);
    started_.fetch_add(1);
    started_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (::getpid() != owner_) {
    for (std::thread& thread : threads_) thread.detach();  // they do not exist in this process
    return;
  }
  stopping_.store(true, std::memory_order_relaxed);
  started_.fetch_add(1, std::memory_order_release);
  started_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_erased(Job job, void* context) {
  if (::getpid() != owner_) {
    throw InputError("this model was loaded before the process forked; load it in the process that uses it");
  }
  Worker worker(*this, 0);
  if (size_ > 1) {
    job_ = job;
    context_ = context;
    started_.fetch_add(1, std::memory_order_release);
    started_.notify_all();
  }
  job(context, worker);
  worker.barrier();
}

void ThreadPool::worker_loop(int index) noexcept {
  Worker worker(*this, index);
  int seen = 0;
  while (true) {
    wait_for_change(started_, seen, kIdleSpins);
    ++seen;  // never behind by more than one: run() returns only after every worker passed the last barrier
    if (stopping_.load(std::memory_order_relaxed)) return;
    job_(context_, worker);
    worker.barrier();
  }
}

void ThreadPool::wait_for_change(std::atomic<int>& value, int old, int spins) noexcept {
  for (int i = 0; i < spins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void Worker::barrier() noexcept {
  ThreadPool& pool = pool_;
  if (pool.size_ == 1) return;
  const int epoch = pool.epoch_.load(std::memory_order_relaxed);
  if (pool.arrived_.fetch_add(1, std::memory_order_acq_rel) == pool.size_ - 1) {
    pool.arrived_.store(0, std::memory_order_relaxed);
    pool.next_.store(0, std::memory_order_relaxed);
    pool.epoch_.store(epoch + 1, std::memory_order_release);
    pool.epoch_.notify_all();
  } else {
    pool.wait_for_change(pool.epoch_, epoch, kBarrierSpins);
  }
}

}  // namespace wf
