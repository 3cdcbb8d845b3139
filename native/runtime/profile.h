// Where the time of a pass goes, as the first thread sees it: its own work by part, and its waiting for the others.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace wf {

enum class Part : uint8_t { kEmbed, kNorm, kQkv, kRotate, kAttend, kO, kGateUp, kDown, kHead, kWait };
constexpr size_t kParts = 10;
constexpr std::array<const char*, kParts> kPartNames = {
    "embedding", "norm and quantise", "q, k, v", "rotate and store", "attention", "o", "gate, up", "down", "head",
    "waiting"};

struct Profile {
  using Clock = std::chrono::steady_clock;

  std::array<double, kParts> seconds{};
  int64_t waits = 0;  // barriers

  void start() { last_ = Clock::now(); }
  // Ends a part: what has passed since the last call belongs to it, but for the waiting.
  void mark(Part part) {
    const Clock::time_point now = Clock::now();
    seconds[static_cast<size_t>(part)] += std::chrono::duration<double>(now - last_).count() - waited_;
    seconds[static_cast<size_t>(Part::kWait)] += waited_;
    waited_ = 0;
    last_ = now;
  }
  void add_wait(Clock::time_point since) {
    waited_ += std::chrono::duration<double>(Clock::now() - since).count();
    ++waits;
  }

 private:
  Clock::time_point last_{};
  double waited_ = 0;
};

}  // namespace wf
