// SPDX-License-Identifier: Apache-2.0
// Storage that misbehaves on purpose, below the queue of PreadReader: for tests of everything that reads.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "firstlight/io/pread_reader.h"

namespace firstlight {

/// One misbehaviour. It applies to calls [first_call, first_call + n_calls), counted from 0 over the calls that `file`
/// admits.
struct Fault {
  enum class Kind {
    short_read,   ///< at most `amount` bytes are given (at least 1)
    error,        ///< −1 with errno `amount`
    stall,        ///< the call waits for FaultyRead::release(), then goes on
    flip,         ///< the byte at file offset `amount` comes with its lowest bit flipped
    end_of_file,  ///< the file seems to end at offset `amount`
  };
  Kind kind = Kind::error;
  uint64_t amount = 0;
  uint64_t first_call = 0;
  uint64_t n_calls = UINT64_MAX;
  std::string file = {};  ///< end of the file's path; empty: every file
};

class FaultyRead : public RawRead {
 public:
  explicit FaultyRead(std::vector<Fault> faults, std::shared_ptr<RawRead> below = std::make_shared<RawRead>());
  ssize_t pread(int fd, void* into, size_t size, off_t offset) override;
  /// Lets stalled calls go on, now and from now on.
  void release();
  uint64_t n_calls() const;
  uint64_t n_stalled() const;  ///< calls that wait at this moment

 private:
  struct Armed {
    Fault fault;
    uint64_t seen = 0;
  };
  std::vector<Fault> strike(int fd);  // counts the call; what applies to it

  std::shared_ptr<RawRead> below_;
  mutable std::mutex mutex_;
  std::condition_variable released_changed_;
  std::vector<Armed> faults_;
  bool released_ = false;
  uint64_t n_calls_ = 0, n_stalled_ = 0;
};

/// A Reader named "faulty".
std::unique_ptr<Reader> make_faulty_reader(std::shared_ptr<FaultyRead> faulty, int n_threads);

}  // namespace firstlight
