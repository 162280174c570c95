// SPDX-License-Identifier: Apache-2.0
// Which reader reads these files, and why not the others.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>

#include "firstlight/io/mount.h"
#include "firstlight/io/reader.h"
#include "firstlight/io/reader_speeds.h"
#include "firstlight/io/residency.h"

namespace firstlight {

/// pread_direct: pread(2) past the page cache (O_DIRECT), a thread for each request under way: what io_uring does
/// without them, and the faster of the two on some machines; io_uring is forbidden in most containers.
enum class ReaderKind { pread, io_uring, cufile, pread_direct };

struct ReaderChoice {
  ReaderKind kind = ReaderKind::pread;
  std::string why;  ///< one line: what was found and measured
  /// Requests under way in all, over all readers that are made of this choice; more behind a network, by Little's law
  /// from what was measured there.
  int in_flight = 32;
  bool cold = false;  ///< storage will be read, not the page cache: pread takes a thread for each request under way
};

/// pread, for whom no other reader will do: past the page cache where less than a third of the files is in it, unless
/// `buffered`.
ReaderChoice choose_pread(std::span<const std::shared_ptr<const File>> files, const std::string& why,
                          bool buffered = false);

struct ReaderChooser {
  int n_threads = 1;
  std::optional<DirectReads> direct;              ///< of a load into a GPU: cufile is a candidate
  fs::path memory = SpeedMemory::default_path();  ///< where speeds are remembered; empty: nowhere
  std::stop_token stop;
  /// What the choice rests on, as found on this machine; a test puts other findings there.
  std::function<std::optional<Residency>()> residency;
  std::function<std::string()> why_no_uring;   ///< "", or why there is no io_uring
  std::function<std::string()> why_no_direct;  ///< "", or why the files cannot be read past the page cache
  std::function<std::optional<ReaderSpeeds>()> measure;

  /// Files that are nearly all in the page cache: pread, without a probe. Else the fastest by what was measured on
  /// their file system, now or before: pread through the page cache, pread past it, io_uring. Not measured, because
  /// there are too few bytes (below 1.5 GiB): past it if more than two thirds are cold, by io_uring where there is one;
  /// because there was no answer: pread. cufile is taken only where its speed was measured, and only if its driver
  /// opens now. Takes 0.1 ms without a probe, 0.1 s with one on a disk of 2 GB/s, at most 0.7 (1.1 behind a
  /// network), and with `direct` 0.2 more and as long as the device's start and the driver's take. `why` says what each
  /// candidate gave and why there are no others. Throws Interrupted.
  ReaderChoice choose(std::span<const std::shared_ptr<const File>> files) const;

 private:
  ReaderChoice choose_cold(std::span<const std::shared_ptr<const File>> files, double cached,
                           const std::string& found) const;
};

/// Under which speeds are remembered: the file system, on this machine, under this kernel (a home directory may be
/// shared, and an update changes speeds).
std::string speed_key(const Mount& mount);

/// One of `n_readers` that share choice.in_flight. With n_threads threads (io_uring: at most 8; pread of cold files:
/// one for each request under way, up to 64, which sleeps meanwhile; past the page cache requests of 256 KiB and more);
/// for cufile that of bytes which end in host
/// memory, pread. Throws Error{unsupported} for io_uring where it is not to be had.
std::unique_ptr<Reader> make_reader(const ReaderChoice& choice, int n_threads, int n_readers = 1);

}  // namespace firstlight
