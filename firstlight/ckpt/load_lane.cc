// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ckpt/load_lane.h"

#include <algorithm>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/arena.h"
#include "firstlight/ckpt/load_jobs.h"
#include "firstlight/device/gpus.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/staged_reader.h"

namespace firstlight {

namespace {

/// The caller may have done it already; then the time line has it.
void start(Device device, Timeline* timeline) {
  constexpr double kWorthShowing = 0.001;
  const double begin = seconds_since_exec();
  start_device(device);
  const double end = seconds_since_exec();
  if (timeline != nullptr && end - begin > kWorthShowing) timeline->add(str("context ", to_string(device)), begin, end);
}

void fill(LoadLane& lane, const LoadOptions& options, int n_threads, int n_lanes) {
  const bool is_staged = lane.device.kind != Device::Kind::cpu || options.make_staging;
  // One more thread waits for copies, another for hashes. Nine cores read what a link takes (6.2 GB/s each). Two GPUs
  // and 32 cores, verified: 14 each 90.0 % of the floor, 13 90.8, 12 91.4.
  const int most_readers = n_lanes > 1 ? 13 : 14;
  if (is_staged && options.n_threads == 0) n_threads = std::clamp(n_threads - 2, 1, most_readers);
  lane.reader = options.make_reader ? options.make_reader(n_threads) : std::make_unique<PreadReader>(n_threads);
  if (!lane.reader) throw Error(ErrorKind::bug, "LoadOptions::make_reader made no reader");
  const Device device = lane.device;
  if (!is_staged) return;
  // Hooks outlive this call in the lane's threads, and the options in the load outlive the lanes.
  lane.started_s = std::make_shared<double>(0);
  const auto start_it = [&options, device, started_s = lane.started_s] {
    start(device, options.timeline);
    *started_s = seconds_since_exec();
  };
  const StagingSize size = staging_size(n_lanes);
  std::unique_ptr<DeviceReader> made;
  if (options.make_device_reader) {
    made = options.make_device_reader(device, std::move(lane.reader), start_it);
  } else {
    made = std::make_unique<StagedReader>(
        std::move(lane.reader),
        [&options, device, size] {
          return options.make_staging ? options.make_staging(device) : make_staging(device, size);
        },
        start_it);
  }
  lane.on_device = made.get();
  lane.reader = std::move(made);
  if (options.verify != Verify::off) lane.checks = make_leaf_checks(options, device);
}

}  // namespace

Device device_of(const LoadOptions& options, size_t i) {
  return options.devices.empty() ? options.device : options.devices[i];
}

std::unique_ptr<LeafChecks> make_leaf_checks(const LoadOptions& options, Device device) {
  return std::make_unique<LeafChecks>(
      [&options, device] { return options.make_hasher ? options.make_hasher(device) : make_leaf_hasher(device); });
}

std::vector<LoadLane> make_lanes(const LoadOptions& options) {
  const size_t n_ranks = n_loaded_ranks(options);
  if (!options.devices.empty() && options.devices.size() != n_ranks) {
    throw Error(ErrorKind::bug, str("LoadOptions::devices has ", options.devices.size(), " devices for ",
                                    options.rank ? "one rank of " : "", "tp ", options.tp));
  }
  if (options.rank && (*options.rank < 0 || *options.rank >= options.tp))
    throw Error(ErrorKind::bug, str("LoadOptions::rank is ", *options.rank, " of tp ", options.tp));
  std::vector<LoadLane> lanes;
  for (size_t rank = 0; rank < n_ranks; ++rank) {
    const Device device = device_of(options, rank);
    auto lane = std::find_if(lanes.begin(), lanes.end(), [&](const LoadLane& is) { return is.device == device; });
    if (lane == lanes.end()) {
      lanes.emplace_back().device = device;
      lane = lanes.end() - 1;
    }
    lane->ranks.push_back(rank);
  }
  const int n_threads = options.n_threads > 0 ? options.n_threads : usable_cores();
  const int n_lanes = static_cast<int>(lanes.size()) * options.n_processes;
  const int n = std::max(1, n_threads / n_lanes);
  for (LoadLane& lane : lanes) fill(lane, options, n, n_lanes);
  return lanes;
}

void set_deadline(std::span<LoadLane> lanes, Reader::Clock::time_point begin, double seconds) {
  if (seconds <= 0) return;
  const std::chrono::duration<double> bounded(std::min(seconds, 1e9));  // a time_point holds no more of nanoseconds
  const auto deadline = begin + std::chrono::duration_cast<Reader::Clock::duration>(bounded);
  for (LoadLane& lane : lanes) lane.reader->set_deadline(deadline);
}

std::vector<Buffer> make_arenas(LoadLane& lane, const LoadOptions& options, const Manifest& manifest,
                                const ManifestTp& tp, const std::shared_future<uint64_t>& reserve, double begin_s) {
  if (lane.on_device != nullptr) lane.on_device->wait_until_ready();
  lane.ready_s = std::max(begin_s, lane.started_s ? *lane.started_s : 0);
  const uint64_t reserved = reserve.get() / n_loaded_ranks(options) * lane.ranks.size();
  const Timeline::Scope phase(options.timeline,
                              options.devices.size() > 1 ? str("arena ", to_string(lane.device)) : "arena");
  std::vector<uint64_t> sizes;
  uint64_t needed = 0;
  const auto stored = [&](size_t i) -> const ManifestRank& {
    return tp.ranks[static_cast<size_t>(loaded_rank(options, i))];
  };
  for (const size_t rank : lane.ranks) {
    sizes.push_back(most_arena_bytes(stored(rank), manifest.tensors.size()) + tail_staging_bytes(stored(rank)));
    needed += sizes.back();
  }
  require_fits(needed, reserved, free_memory(lane.device), lane.device);
  // libcufile knows memory of cudaMalloc.
  const Reach reach = options.make_device_reader ? Reach::peers : Reach::own;
  std::vector<Buffer> arenas;
  for (const uint64_t size : sizes) arenas.emplace_back(lane.device, size, reach);
  return arenas;
}

}  // namespace firstlight
