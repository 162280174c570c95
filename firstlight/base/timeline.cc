// SPDX-License-Identifier: Apache-2.0
#include "firstlight/base/timeline.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>

namespace firstlight {

namespace {

double clock_seconds(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// CLOCK_BOOTTIME at exec. The kernel keeps it in ticks of 10 ms, cut off; within that tick the true moment is now −
/// CPU time used so far (the loader's work before main() hardly waits when the program is in the page cache).
double exec_time() {
  const double now = clock_seconds(CLOCK_BOOTTIME);
  const double by_cpu = now - clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
  std::ifstream stat("/proc/self/stat");
  std::string text;
  std::getline(stat, text);
  const size_t name_end = text.rfind(')');  // the name may hold spaces and parentheses
  if (name_end == std::string::npos) return by_cpu;
  const char* field = text.c_str() + name_end + 1;  // before field 3
  for (int i = 3; i <= 22 && field != nullptr; ++i) field = std::strchr(field + 1, ' ');
  unsigned long long ticks = 0;
  // After the loop `field` stands at the space that ends field 22; the number is between the two last spaces.
  if (field == nullptr) return by_cpu;
  const char* begin = field;
  while (begin > text.c_str() && begin[-1] != ' ') --begin;
  if (std::sscanf(begin, "%llu", &ticks) != 1) return by_cpu;
  const double tick = 1.0 / static_cast<double>(sysconf(_SC_CLK_TCK));
  const double earliest = static_cast<double>(ticks) * tick;
  return std::clamp(by_cpu, earliest, earliest + tick);
}

}  // namespace

double thread_cpu_seconds() { return clock_seconds(CLOCK_THREAD_CPUTIME_ID); }

double seconds_since_exec() {
  static const double exec = exec_time();
  return clock_seconds(CLOCK_BOOTTIME) - exec;
}

void Timeline::add(std::string_view name, double start_s, double end_s) {
  const std::lock_guard lock(mutex_);
  phases_.push_back({std::string(name), start_s, end_s});
}

std::vector<Phase> Timeline::phases() const {
  const std::lock_guard lock(mutex_);
  std::vector<Phase> sorted = phases_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Phase& a, const Phase& b) { return a.start_s < b.start_s; });
  return sorted;
}

Timeline::Scope::Scope(Timeline* timeline, std::string_view name)
    : timeline_(timeline), name_(name), start_s_(seconds_since_exec()) {}
Timeline::Scope::~Scope() { end(); }
void Timeline::Scope::end() {
  if (timeline_ != nullptr) timeline_->add(name_, start_s_, seconds_since_exec());
  timeline_ = nullptr;
}

}  // namespace firstlight
