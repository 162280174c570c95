// SPDX-License-Identifier: Apache-2.0
// What tensor-parallel ranks say to each other. On the CPU ranks are threads of one process that sleep at barriers.
#pragma once
#include <exception>
#include <memory>
#include <span>
#include <vector>

namespace firstlight {

/// One rank's end. All ranks call the same sequence of collectives. When a rank fails (fail()), every call on every
/// rank throws its cause.
class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// data[i] = Σ over ranks of data[i], added in rank order: the same bits on every rank and every run.
  virtual void all_reduce_sum(std::span<float> data) = 0;
  /// out[r * mine.size() …] = rank r's `mine`; sizes equal on all ranks.
  virtual void all_gather(std::span<const float> mine, std::span<float> out) = 0;
  virtual void barrier() = 0;
  /// Ends all ranks' calls with this cause; the first stays.
  virtual void fail(std::exception_ptr cause) = 0;
};

/// [n] ends of one group of threads; barriers block in the kernel (never spin: ranks may outnumber cores).
std::vector<std::unique_ptr<Comm>> make_thread_comms(int n);

}  // namespace firstlight
