// SPDX-License-Identifier: Apache-2.0
// How the processes of a group find each other on one host, and the connections by which they notice that one is gone.
#pragma once
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

namespace firstlight {

/// A descriptor with an owner: a connected socket of messages (SOCK_SEQPACKET), or shared memory.
class Handle {
 public:
  Handle() = default;
  explicit Handle(int fd) : fd_(fd) {}  ///< may be −1
  ~Handle() { close(); }
  Handle(Handle&& other) noexcept : fd_(other.release()) {}
  Handle& operator=(Handle&& other) noexcept;
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release();
  void close();

 private:
  int fd_ = -1;
};

/// Whom to meet, and where.
struct ProcessRank {
  int rank = 0, size = 1;
  /// The group's, equal on all its ranks and no other group's of this user on this host: "127.0.0.1:29500". It is a
  /// name, no address: the launcher's own agent may listen on that port. What meets there is a Unix socket, which only
  /// processes of this host and user reach, and which vanishes with rank 0.
  std::string group;
};

/// What a process has when all have come.
struct Met {
  Handle memory;              ///< shared, of the size that rank 0 asked for, zeroed by it
  std::vector<Handle> ranks;  ///< rank 0: [size], a connection to each other rank; other ranks: [1], to rank 0
  int rank_of(size_t i) const { return ranks.size() > 1 ? static_cast<int>(i) : 0; }
};

/// Blocks until all ranks of the group have come (rank 0), or until rank 0 has taken this one in. Throws Error{io}
/// after `timeout_s`, naming who is missing, or when rank 0 goes away; Error{bad_input} if the ranks disagree (size,
/// version, a rank twice, a group of this name that stands already); Interrupted.
Met meet(const ProcessRank& me, uint64_t memory_bytes, double timeout_s, const std::stop_token& stop);

}  // namespace firstlight
