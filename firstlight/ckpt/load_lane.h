// SPDX-License-Identifier: Apache-2.0
// What each device of a load has for itself, so that all of them are filled at once.
#pragma once
#include <future>
#include <memory>
#include <span>
#include <vector>

#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/manifest.h"
#include "firstlight/io/read_lane.h"

namespace firstlight {

/// With no `checks` where nothing is to be verified.
struct LoadLane : ReadLane {
  std::vector<size_t> ranks;          ///< whose bytes go there, counted among those that are loaded
  std::shared_ptr<double> started_s;  ///< since exec: when the device stood; to be read when `on_device` is ready
  double ready_s = 0;                 ///< the same, but not before the load began
};

/// How many ranks are loaded here, and which the i-th of them is.
inline size_t n_loaded_ranks(const LoadOptions& options) { return options.rank ? 1 : static_cast<size_t>(options.tp); }
inline int loaded_rank(const LoadOptions& options, size_t i) {
  return options.rank ? *options.rank : static_cast<int>(i);
}

/// The device of the i-th rank that is loaded: of `options.devices`, else `options.device`.
Device device_of(const LoadOptions& options, size_t i);

/// One lane for each different device, in the order of the ranks; threads are divided among them. On the way to a GPU
/// its context and the ring are begun on a thread of the lane. `options` outlive the lanes. Throws Error{bug} if
/// `options.devices` are neither none nor one a rank, or there is no such rank.
std::vector<LoadLane> make_lanes(const LoadOptions& options);

/// Reader::set_deadline() of all: `seconds` behind `begin`. None where they are 0.
void set_deadline(std::span<LoadLane> lanes, Reader::Clock::time_point begin, double seconds);

/// The hasher of a lane that ends on `device`.
std::unique_ptr<LeafChecks> make_leaf_checks(const LoadOptions& options, Device device);

/// Memory for the arenas of the lane's ranks, as soon as its device stands; sets lane.ready_s, which is not before
/// `begin_s`. `reserve` is LoadOptions::reserve over all ranks. Throws Error{out_of_memory}, and why there is no
/// device.
std::vector<Buffer> make_arenas(LoadLane& lane, const LoadOptions& options, const Manifest& manifest,
                                const ManifestTp& tp, const std::shared_future<uint64_t>& reserve, double begin_s);

}  // namespace firstlight
