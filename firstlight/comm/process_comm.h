// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes of one host, started by a launcher: what they say to each other through shared memory, and
// how all of them end when one does.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/comm/comm.h"
#include "firstlight/comm/rendezvous.h"

namespace firstlight {

struct ProcessCommOptions {
  double timeout_s = 60;      ///< for all ranks to come: launchers start them within seconds of each other
  std::stop_token stop = {};  ///< while they come
  /// Told once, on a thread of the comm's own, that a rank has failed or is gone, this process's too: whatever a
  /// process is doing then, it does for nothing, and who frees memory of a GPU that waits for another waits with it.
  std::function<void(const std::exception_ptr& cause)> on_failure = {};
};

/// This process's end of the group, on the CPU; of ranks on GPUs cuda_process_comm.h is built on it. Sums are added in
/// rank order, as threads of one process add them: the same bits. Collectives sleep at their barriers (set_spin()).
/// Memory: (size + 1) * 4 MiB, shared; larger collectives go through it piece by piece.
///
/// Each process keeps a connection to rank 0. One whose process ends without leave() (killed, crashed) is a failure of
/// that rank, which its peers see at once. A failed group stays failed: reset() does nothing.
class ProcessComm : public Comm {
 public:
  /// Blocks until all ranks have come. Throws as meet() does, Error{unsupported} for more than 64 ranks.
  static std::unique_ptr<ProcessComm> join(const ProcessRank& me, const ProcessCommOptions& options);

  /// All ranks get rank 0's bytes, as many as they are.
  virtual void broadcast(std::vector<std::byte>& bytes) = 0;
  /// All ranks get all ranks' bytes, in rank order: all[r * mine.size() …]. Sizes equal on all ranks.
  virtual void exchange(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  /// Rank 0 gets all ranks' bytes, in rank order: all[r * mine.size() …]. Sizes equal on all ranks; `all` is empty on
  /// the others.
  virtual void gather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  /// For devices that wait for each other: a word in the memory of all ranks, 0 until the group has failed, from then
  /// on not. Whoever has waited in vain writes there. stop_page() is the page it lies on, of the group's alone.
  virtual uint32_t* stop_word() = 0;
  virtual std::span<std::byte> stop_page() = 0;
  /// Polls of this process before it sleeps where ranks meet; 0 at first. For ranks that do not compute on cores.
  virtual void set_spin(int polls) = 0;
  /// The good end: blocks until all ranks are here. From then on this process may end and nobody fails.
  virtual void leave() = 0;
};

}  // namespace firstlight
