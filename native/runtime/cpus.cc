// How many threads are worth starting. Two threads on one physical core slow ternary products down.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>

#include "threads.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace wf {

namespace {

#if defined(__linux__)

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The CPUs of cgroup version 2 quota "max 100000" or "150000 100000", rounded up; 0 when there is none.
int quota_cpus(const std::string& line) {
  const size_t space = line.find(' ');
  if (space == std::string::npos || line.compare(0, 3, "max") == 0) return 0;
  try {
    const double quota = std::stod(line.substr(0, space));
    const double period = std::stod(line.substr(space + 1));
    return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period))) : 0;
  } catch (const std::exception&) {
    return 0;
  }
}

// The smallest quota of this process's control group and its parents.
int control_group_cpus() {
  std::ifstream membership("/proc/self/cgroup");
  std::string line, group;
  while (std::getline(membership, line)) {
    if (line.compare(0, 3, "0::") == 0) group = line.substr(3);
  }
  int least = 0;
  while (true) {
    const int cpus = quota_cpus(first_line("/sys/fs/cgroup" + group + "/cpu.max"));
    if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
    if (group.empty() || group == "/") return least;
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
}

int affinity_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 0;
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string siblings =
        first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? "cpu" + std::to_string(cpu) : siblings);
  }
  return static_cast<int>(cores.size());
}

#endif

}  // namespace

int available_cores() {
  int cores = 0;
#if defined(__linux__)
  cores = affinity_cores();
  const int quota = control_group_cpus();
  if (cores > 0 && quota > 0) cores = std::min(cores, quota);
#endif
  if (cores <= 0) cores = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(cores, 1, 256);
}

}  // namespace wf
