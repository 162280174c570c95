// SPDX-License-Identifier: Apache-2.0
// From storage to memory: all ranks at once, each its own slice, every leaf checked.
#pragma once
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/base/timeline.h"
#include "firstlight/ckpt/manifest.h"
#include "firstlight/ckpt/source.h"
#include "firstlight/ckpt/weights.h"
#include "firstlight/device/device.h"
#include "firstlight/io/read_lane.h"
#include "firstlight/io/staging.h"
#include "firstlight/io/stripe_layout.h"

namespace firstlight {

/// sample: leaf 0 of each part and each kSampledLeaf-th after it, and the leaves in which small tensors stand. It finds
/// a file that is another one, and storage that is broken throughout; a single wrong byte it mostly does not.
enum class Verify { full, sample, off };
inline constexpr uint64_t kSampledLeaf = 16;

struct RankReport {
  int rank = 0;
  Device device;
  uint64_t bytes = 0;  ///< read from storage
  double seconds = 0;  ///< as LoadReport says, of the rank's own device and leaves
  uint64_t leaves_checked = 0;
};

struct LoadReport {
  uint64_t bytes = 0;
  /// From the call, or from when the first device's context stood if that was later, to the end. A ring full of bytes
  /// may have been read before.
  double seconds = 0;
  double begin_s = 0;  ///< since exec: what `seconds` count from
  std::string reader;  ///< the path that ran: "pread", "traditional"
  std::string why;
  std::string verify;  ///< "full", "sample: …", "off", on the traditional path what it was told, else "none: …"
  double verify_cpu_seconds = 0;     ///< time spent hashing, summed over threads
  double verify_device_seconds = 0;  ///< time in which a device hashed, beside reading and copying
  std::vector<RankReport> ranks;
};

struct LoadOptions {
  int tp = 1;
  /// Rank checkpoints only: what read_manifest() gave, where that has been called; null: the load calls it.
  std::shared_ptr<const Manifest> manifest;
  /// Rank checkpoints only: this one of the tp ranks and no other, where each rank is a process. weights() then has
  /// one.
  std::optional<int> rank;
  int n_processes = 1;  ///< that load on this host at once, each to devices of its own, and share its cores and caches
  Device device;        ///< of all ranks, …
  std::vector<Device>
      devices;  ///< … or of each rank that is loaded: all are filled at once, each by threads of its own
  Verify verify = Verify::full;
  int n_threads = 0;      ///< reader threads over all ranks; 0: usable cores
  double deadline_s = 0;  ///< for the whole load; 0: none
  /// KV and activations over all ranks that are loaded here, which must fit beside the weights; checked before a byte
  /// gets to the devices.
  uint64_t reserve_bytes = 0;
  std::function<uint64_t()> reserve;  ///< if set, asked instead, once, when the first device stands; may block
  std::optional<DType> dtype;         ///< traditional path only: f32 or bf16; default as `shard`
  std::string checked_before;  ///< traditional path only: what the report says of verification (default: nothing was)
  int in_flight = 32;          ///< requests under way over all ranks, for their order on a parallel file system
  /// Asked for the layouts of all parts that are loaded, by path; default find_stripe_layouts(), which asks on Lustre.
  std::function<FoundLayouts(const std::vector<std::string>&)> find_layouts;
  std::stop_token stop;
  Timeline* timeline = nullptr;
  std::function<void(uint64_t done, uint64_t total)> progress;        ///< from any thread, maybe often
  std::function<std::unique_ptr<Reader>(int n_threads)> make_reader;  ///< default: pread
  /// How bytes get to a device and are hashed there. Default: a pinned ring and a kernel on a GPU, neither on the CPU,
  /// where bytes are read to their places and hashed by the thread that read them.
  std::function<std::unique_ptr<Staging>(Device)> make_staging;
  std::function<std::unique_ptr<LeafHasher>(Device)> make_hasher;
  /// In place of the ring, for what ends on a device; `host` is make_reader's, `start` makes the device stand (0.2 s,
  /// on a thread of the reader or on that of wait_until_ready()).
  std::function<std::unique_ptr<DeviceReader>(Device, std::unique_ptr<Reader> host, std::function<void()> start)>
      make_device_reader;
};

/// A load in flight. weights() may be used at once, behind their gates.
class Load {
 public:
  virtual ~Load() = default;  ///< cancels and waits
  virtual const ModelConfig& config() const = 0;
  /// [tp], or the one of LoadOptions::rank; valid as long as this object.
  virtual std::vector<RankWeights>& weights() = 0;
  /// Blocks until all bytes of all ranks are there and checked; throws what went wrong first.
  virtual LoadReport wait() = 0;
  /// Of each rank of weights(), where more can be read, behind what is still to come: each with a hasher where it ends
  /// on a device; two may be the same. Valid as long as this object. A load that fails or is destroyed cancels what
  /// waits there, and who cancels it there cancels the load. None on the traditional path, which has read by then. For
  /// one thread.
  virtual std::vector<ReadLane*> lanes() = 0;
  /// Throws what went wrong first, if anything has so far.
  virtual void rethrow_failure() = 0;
};

/// Starts loading a rank checkpoint (`out` has READY). Reads the manifest, checks that weights + reserve_bytes fit
/// before a byte gets to a device, reads the headers (on the way to a GPU beside the first copies), then returns while
/// bytes arrive. Throws Error{not_found} for a tp or rank that is not stored,
/// {damaged}, {out_of_memory}, …
std::unique_ptr<Load> load_rank_checkpoint(const fs::path& out, const LoadOptions& options);

/// The traditional path: reads the source through host memory, converts, slices, and fills one rank after another;
/// returns when done.
std::unique_ptr<Load> load_traditionally(const Source& source, const LoadOptions& options);

}  // namespace firstlight
