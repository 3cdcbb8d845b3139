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

ThreadPool::ThreadPool(int threads)
    : size_(threads),
      owner_(::getpid()),
      active_(threads),
      starts_(static_cast<size_t>(threads)),
      shares_(static_cast<size_t>(threads)) {
  try {
    for (int i = 1; i < size_; ++i) threads_.emplace_back([this, i] { worker_loop(i); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (::getpid() == owner_) {
    stop();
  } else {
    for (std::thread& thread : threads_) thread.detach();  // they do not exist in this process
  }
}

void ThreadPool::stop() noexcept {
  stopping_.store(true, std::memory_order_relaxed);
  for (Start& start : starts_) {
    start.job.fetch_add(1, std::memory_order_release);
    start.job.notify_one();
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run_erased(int active, Job job, void* context) {
  if (::getpid() != owner_) {
    throw InputError("this model was loaded before the process forked; load it in the process that uses it");
  }
  // No thread reads these now: the last job ended behind a barrier of all that joined it.
  job_ = job;
  context_ = context;
  active_ = active;
  for (int i = 1; i < active; ++i) {
    std::atomic<int>& start = starts_[static_cast<size_t>(i)].job;
    start.fetch_add(1, std::memory_order_release);
    start.notify_one();
  }
  Worker worker(*this, 0);
  job(context, worker);
  worker.barrier();
}

void ThreadPool::worker_loop(int index) noexcept {
  Worker worker(*this, index);
  std::atomic<int>& start = starts_[static_cast<size_t>(index)].job;
  for (int seen = 0;; ++seen) {  // never behind by more than one: a job ends only after every thread that joined it
    wait_for_change(start, seen, kIdleSpins);
    if (stopping_.load(std::memory_order_relaxed)) return;
    job_(context_, worker);
    worker.barrier();
  }
}

bool ThreadPool::wait_for_change(std::atomic<int>& value, int old, int spins) noexcept {
  for (int i = 0; i < spins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return false;
    relax();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
  return true;
}

void Worker::barrier() noexcept {
  if (profile_ == nullptr) {
    wait_at_barrier();
    return;
  }
  const Profile::Clock::time_point start = Profile::Clock::now();
  wait_at_barrier();
  profile_->add_wait(start);
}

void Worker::wait_at_barrier() noexcept {
  ThreadPool& pool = pool_;
  // Both are read before arriving: once all have arrived, the caller may return and set up the next job.
  const int active = pool.active_;
  const int epoch = pool.epoch_.load(std::memory_order_relaxed);
  if (active == 1) return;
  if (pool.arrived_.fetch_add(1, std::memory_order_acq_rel) == active - 1) {
    pool.arrived_.store(0, std::memory_order_relaxed);
    pool.next_.store(0, std::memory_order_relaxed);
    for (int i = 0; i < active; ++i) pool.shares_[static_cast<size_t>(i)].taken.store(0, std::memory_order_relaxed);
    pool.epoch_.store(epoch + 1, std::memory_order_release);
    pool.epoch_.notify_all();
  } else if (ThreadPool::wait_for_change(pool.epoch_, epoch, kBarrierSpins)) {
    pool.stalls_.fetch_add(1, std::memory_order_relaxed);
  }
}

}  // namespace wf
