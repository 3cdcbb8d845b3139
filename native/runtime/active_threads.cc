#include "active_threads.h"

#include <algorithm>

namespace wf {

namespace {
constexpr int kTrialJobs = 4;   // for each choice
constexpr int kFirstHold = 32;  // jobs between trials, doubled while all threads stay the worse choice
constexpr int kLongestHold = 512;
constexpr int64_t kStallsOfABadJob = 2;
constexpr int kBadJobs = 3;  // more bad than good ones by this many start a trial
}  // namespace

ActiveThreads::ActiveThreads(int threads) : hold_jobs_(kFirstHold) {
  for (const int count : {threads, threads - 1, threads / 2, 1}) {
    const auto same = [count](const Choice& choice) { return choice.threads == count; };
    const bool known = std::any_of(choices_.begin(), choices_.end(), same);
    if (count >= 1 && !known) choices_.push_back({count, 0});
  }
}

void ActiveThreads::record(double seconds, int64_t stalls) {
  if (choices_.size() == 1) return;
  if (trying_) {
    choices_[choice_].seconds += seconds;
    if (--jobs_left_ > 0) return;
    jobs_left_ = kTrialJobs;
    if (++choice_ == choices_.size()) end_trial();
    return;
  }
  jobs_left_ = std::max(0, jobs_left_ - 1);
  const int change = stalls >= kStallsOfABadJob ? 1 : -1;
  stalled_jobs_ = std::clamp(stalled_jobs_ + change, 0, kBadJobs);
  const bool doubtful = choice_ != 0 || stalled_jobs_ == kBadJobs;
  if (jobs_left_ == 0 && doubtful) start_trial();
}

void ActiveThreads::start_trial() {
  for (Choice& choice : choices_) choice.seconds = 0;
  trying_ = true;
  choice_ = 0;
  jobs_left_ = kTrialJobs;
}

void ActiveThreads::end_trial() {
  const auto best = std::min_element(choices_.begin(), choices_.end(),
                                     [](const Choice& a, const Choice& b) { return a.seconds < b.seconds; });
  choice_ = static_cast<size_t>(best - choices_.begin());
  trying_ = false;
  stalled_jobs_ = 0;
  hold_jobs_ = choice_ == 0 ? kFirstHold : std::min(hold_jobs_ * 2, kLongestHold);
  jobs_left_ = hold_jobs_;
}

}  // namespace wf
