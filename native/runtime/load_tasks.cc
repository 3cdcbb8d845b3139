#include "load_tasks.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace wf {

void LoadTasks::run(int threads) {
  const std::vector<std::function<void()>> tasks = std::move(tasks_);
  tasks_.clear();
  std::atomic<size_t> next{0};
  std::mutex mutex;
  size_t failed = tasks.size();
  std::exception_ptr error;
  const auto work = [&] {
    for (size_t i = next++; i < tasks.size(); i = next++) {
      try {
        tasks[i]();
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (i < failed) error = std::current_exception();
        failed = std::min(failed, i);
        next = tasks.size();
      }
    }
  };
  std::vector<std::thread> others;
  const int most = static_cast<int>(std::min<size_t>(static_cast<size_t>(threads), tasks.size()));
  try {
    for (int i = 1; i < most; ++i) others.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had: those there are do it
  }
  work();
  for (std::thread& other : others) other.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace wf
