// How many of a pool's threads decode a token. On a quiet machine all of them; when other processes take cores away,
// a token that needs every thread at 200 barriers waits for the slowest, and fewer threads are faster.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace wf {

// Watches the time of jobs and says how many threads the next one should use. Results do not depend on the answer:
// each output row is computed by one thread in the same order whatever their number.
class ActiveThreads {
 public:
  explicit ActiveThreads(int threads);

  int count() const { return choices_[choice_].threads; }

  // Tells what the last job of count() threads took and how often one of them had to wait long (ThreadPool::stalls).
  void record(double seconds, int64_t stalls);

 private:
  struct Choice {
    int threads;
    double seconds;  // of its jobs in the present trial
  };

  void start_trial();
  void end_trial();

  std::vector<Choice> choices_;  // all threads first
  size_t choice_ = 0;
  bool trying_ = false;
  int jobs_left_ = 0;     // of the trial's present choice, or before the next trial may start
  int stalled_jobs_ = 0;  // recently, while all threads are used
  int hold_jobs_;         // how long the result of a trial stands
};

}  // namespace wf
