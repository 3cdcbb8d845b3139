// The long work of loading (reading, checking, converting, drawing weights), collected and then done by all threads.
#pragma once
#include <functional>
#include <vector>

namespace wf {

class LoadTasks {
 public:
  void add(std::function<void()> task) { tasks_.push_back(std::move(task)); }
  // Runs all tasks on up to `threads` threads and forgets them. The error of the first task that failed is thrown.
  void run(int threads);

 private:
  std::vector<std::function<void()>> tasks_;
};

}  // namespace wf
