// SPDX-License-Identifier: Apache-2.0
// When things happened, in seconds since the process was executed. Phases may overlap: that is what they are for.
#pragma once
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace firstlight {

/// Seconds since exec of this process: CLOCK_MONOTONIC against the kernel's start time of the process, refined to below
/// its 10 ms tick by the CPU time used before main() (call it once, early, from main()).
double seconds_since_exec();

/// CPU time that the calling thread has used, in seconds.
double thread_cpu_seconds();

struct Phase {
  std::string name;
  double start_s = 0;  ///< since exec
  double end_s = 0;
};

/// Collects phases from any thread.
class Timeline {
 public:
  void add(std::string_view name, double start_s, double end_s);
  /// Ordered by start.
  std::vector<Phase> phases() const;

  /// Adds a phase from construction to destruction (or end()).
  class Scope {
   public:
    Scope(Timeline* timeline, std::string_view name);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    void end();

   private:
    Timeline* timeline_;
    std::string name_;
    double start_s_;
  };
  Scope scope(std::string_view name) { return Scope(this, name); }

 private:
  mutable std::mutex mutex_;
  std::vector<Phase> phases_;
};

}  // namespace firstlight
