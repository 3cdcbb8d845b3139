// How many threads are worth starting. Two threads on one physical core slow ternary products down.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

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

// "0-3,8,10-11": whether `cpu` is in such a list.
bool in_list(const std::string& list, int cpu) {
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) {
    int first = -1, last = -1;
    const int found = std::sscanf(part.c_str(), "%d-%d", &first, &last);
    if (found >= 1 && cpu >= first && cpu <= (found == 2 ? last : first)) return true;
  }
  return false;
}

void count_affinity(CoreChoice& choice) {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  std::vector<std::string> nodes;
  for (int node = 0; node < 64; ++node) {
    const std::string list = first_line("/sys/devices/system/node/node" + std::to_string(node) + "/cpulist");
    if (!list.empty()) nodes.push_back(list);
  }
  std::set<std::string> cores, used;
  choice.cpus = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    ++choice.cpus;
    const std::string siblings =
        first_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? "cpu" + std::to_string(cpu) : siblings);
    for (const std::string& node : nodes) {
      if (in_list(node, cpu)) used.insert(node);
    }
  }
  choice.cores = static_cast<int>(cores.size());
  choice.numa_nodes = std::max(1, static_cast<int>(used.size()));
  choice.quota = control_group_cpus();
}

#endif

std::string explain(const CoreChoice& choice, bool limited) {
  std::string text = std::to_string(choice.chosen) + (choice.chosen == 1 ? " thread: " : " threads: ");
  if (limited) {
    text += "the control group's quota is " + std::to_string(choice.quota) + " CPUs";
  } else {
    text += "one for each physical core";
    if (choice.cpus > choice.cores) text += ", not for each of the " + std::to_string(choice.cpus) + " logical ones";
  }
  if (choice.numa_nodes > 1) {
    text += "; the cores belong to " + std::to_string(choice.numa_nodes) +
            " NUMA nodes, and a model that fits into one may be faster with `numactl --cpunodebind=0 --membind=0`";
  }
  return text;
}

}  // namespace

CoreChoice choose_cores() {
  CoreChoice choice;
  choice.cpus = choice.cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
#if defined(__linux__)
  count_affinity(choice);
#endif
  const bool limited = choice.quota > 0 && choice.quota < choice.cores;
  if (choice.quota > 0) choice.cpus = std::min(choice.cpus, choice.quota);
  choice.cpus = std::clamp(choice.cpus, 1, 256);
  choice.chosen = std::clamp(limited ? choice.quota : choice.cores, 1, 256);
  choice.why = explain(choice, limited);
  return choice;
}

int available_cores() { return choose_cores().chosen; }

}  // namespace wf
