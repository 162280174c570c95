// SPDX-License-Identifier: Apache-2.0
// Which GPUs this process can use, and why not. Exists in every build; without CUDA the answer is "this build has
// none".
#pragma once
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/device/device.h"

namespace firstlight {

struct Gpus {
  std::vector<std::string> names;  ///< by index: "NVIDIA H200"
  std::string why_none;            ///< one line if `names` is empty: "no driver", "no GPU", …
  bool in_build = true;            ///< false: compiled without CUDA
};

/// Asked of the driver once a process; makes no context. Thread-safe, never throws.
const Gpus& gpus();

using GpuUuid = std::array<std::byte, 16>;
/// By which other libraries name a GPU; zeros for the CPU, or if there is none. Makes no context.
GpuUuid gpu_uuid(Device device) noexcept;

struct DeviceChoice {
  Device device;
  std::string why;  ///< "" if nothing needs to be said
};

/// "auto" (the first GPU, else the CPU and why), "cpu", "cuda" (= "cuda:0") or "cuda:N". Throws Error{bad_input} for
/// other words, Error{unsupported} for a GPU where the build has no CUDA, Error{not_found} for one that is not there;
/// the message has the reason.
DeviceChoice choose_device(std::string_view wanted, const Gpus& found);

/// The devices of `tp` ranks: GPUs 0 to tp − 1, and from the first again if there are fewer, where `wanted` names none
/// ("auto", "cuda") and `chosen` is a GPU; else `chosen` for all.
std::vector<Device> rank_devices(std::string_view wanted, Device chosen, int tp, const Gpus& found);

/// What choose_device() and rank_devices() are likely to give, told from device files alone, as asking the driver takes
/// 0.1 s; none if there seems to be no GPU.
std::vector<Device> likely_devices(std::string_view wanted, int tp);
/// The same with so many device files, for tests.
std::vector<Device> likely_devices(std::string_view wanted, int tp, int n_files);

/// Hides all GPUs but `n`, `first` and those behind it, from this process: with two visible a context takes 0.33 s
/// instead of 0.23. Changes the environment, so to be called before there are other threads, and before gpus().
void show_gpus(int n, int first = 0);
/// Asks for two queues into each GPU instead of eight, unless the user has asked: 8 ms of a context for each (H200: all
/// of a start to the context 0.20 s instead of 0.27). Enough where a GPU has one rank: what it computes is one stream,
/// beside it leaves are hashed. As show_gpus().
void use_few_queues();

/// Makes the device's context, which takes 0.2 s on a GPU and nothing on the CPU; later calls return at once. Worth a
/// thread of its own beside everything that does not need the device yet. Throws Error{device}.
void start_device(Device device);

}  // namespace firstlight
