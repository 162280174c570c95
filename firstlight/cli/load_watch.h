// SPDX-License-Identifier: Apache-2.0
// The last resort of --deadline: a system call that the kernel does not come back from (open, stat or the end of a
// read on a file system whose server is gone) is waited for by whoever tidies up, so somebody else must say so.
#pragma once
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace firstlight::cli {

/// From now until end(): if the deadline and kGraceSeconds pass, in which the load itself names file and range, a line
/// on stderr says that nothing comes from `model` (`json`: and the object on standard output), and the process ends
/// with the exit code for io (which takes until the kernel lets its threads go). No deadline (0): does nothing.
class LoadWatch {
 public:
  static constexpr double kGraceSeconds = 1;
  LoadWatch(std::string model, double deadline_s, bool json);
  ~LoadWatch();
  LoadWatch(const LoadWatch&) = delete;
  LoadWatch& operator=(const LoadWatch&) = delete;
  /// All has come, or what failed is being told. From any thread, more than once.
  void end();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::thread thread_;
};

}  // namespace firstlight::cli
