// SPDX-License-Identifier: Apache-2.0
#include "firstlight/device/gpus.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/gpu_memory.h"

namespace firstlight {

namespace {

/// The N of "cuda" or "cuda:N", or −1.
int index_in(std::string_view wanted) {
  if (wanted == "cuda") return 0;
  constexpr std::string_view kPrefix = "cuda:";
  if (!wanted.starts_with(kPrefix)) return -1;
  const std::string_view digits = wanted.substr(kPrefix.size());
  int index = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
  return error == std::errc() && end == digits.data() + digits.size() && index >= 0 ? index : -1;
}

constexpr const char* kVisible = "CUDA_VISIBLE_DEVICES";

/// Entries first to first + n − 1 of a list such as "2,GPU-ab12,0".
std::string entries_of(std::string_view list, int first, int n) {
  for (int i = 0; i < first && !list.empty(); ++i) list.remove_prefix(std::min(list.find(','), list.size() - 1) + 1);
  size_t end = 0;
  for (int i = 0; i < n && end != std::string_view::npos; ++i) end = list.find(',', end + (i > 0 ? 1 : 0));
  return std::string(list.substr(0, end));
}

int n_device_files() {
  int n = 0;
  while (n < 1024 && ::access(str("/dev/nvidia", n).c_str(), F_OK) == 0) ++n;
  return n;
}

/// Of n_files GPUs, those that a list such as "2, 0" or "GPU-ab12" shows: CUDA stops at the first entry that names
/// none, or names it otherwise than the first one does; one that is named twice leaves none.
int n_shown(std::string_view list, int n_files) {
  std::vector<std::string_view> shown;
  std::string_view form;
  while (static_cast<int>(shown.size()) < n_files && !list.empty()) {
    std::string_view entry = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), entry.size() + 1));
    entry.remove_prefix(std::min(entry.find_first_not_of(' '), entry.size()));
    entry = entry.substr(0, entry.find_last_not_of(' ') + 1);
    int index = -1;
    const auto [end, error] = std::from_chars(entry.data(), entry.data() + entry.size(), index);
    const bool is_index = error == std::errc() && end == entry.data() + entry.size() && index >= 0 && index < n_files;
    const std::string_view own_form = is_index ? "index" : entry.substr(0, 4);
    if (!is_index && own_form != "GPU-" && own_form != "MIG-") break;
    if (form.empty()) form = own_form;
    if (own_form != form) break;
    if (std::find(shown.begin(), shown.end(), entry) != shown.end()) return 0;
    shown.push_back(entry);
  }
  return static_cast<int>(shown.size());
}

}  // namespace

DeviceChoice choose_device(std::string_view wanted, const Gpus& found) {
  if (wanted == "cpu") return {};
  if (wanted == "auto") {
    if (!found.names.empty()) return {{Device::Kind::cuda, 0}, found.names[0]};
    return {{}, found.why_none};
  }
  const int index = index_in(wanted);
  if (index < 0) {
    throw Error(ErrorKind::bad_input, str("--device ", wanted, ": expected auto, cpu, cuda or cuda:N"));
  }
  if (found.names.empty()) {
    throw Error(found.in_build ? ErrorKind::not_found : ErrorKind::unsupported,
                str("--device ", wanted, ": ", found.why_none, "; auto and cpu run on the CPU"));
  }
  if (index >= static_cast<int>(found.names.size())) {
    throw Error(ErrorKind::not_found,
                str("--device ", wanted, ": there is ",
                    found.names.size() == 1 ? "only cuda:0" : str("cuda:0 to cuda:", found.names.size() - 1)));
  }
  return {{Device::Kind::cuda, index}, found.names[static_cast<size_t>(index)]};
}

std::vector<Device> rank_devices(std::string_view wanted, Device chosen, int tp, const Gpus& found) {
  std::vector<Device> devices(static_cast<size_t>(tp), chosen);
  if (chosen.kind != Device::Kind::cuda || (wanted != "auto" && wanted != "cuda")) return devices;
  const size_t n = found.names.size();
  for (size_t rank = 0; n > 0 && rank < devices.size(); ++rank) devices[rank].index = static_cast<int>(rank % n);
  return devices;
}

std::vector<Device> likely_devices(std::string_view wanted, int tp) {
  return likely_devices(wanted, tp, n_device_files());
}

std::vector<Device> likely_devices(std::string_view wanted, int tp, int n_files) {
  const char* visible = std::getenv(kVisible);
  const int n = visible != nullptr ? n_shown(visible, n_files) : n_files;
  const int index = wanted == "auto" ? 0 : index_in(wanted);
  if (index < 0 || index >= n) return {};
  return rank_devices(wanted, {Device::Kind::cuda, index}, tp, {std::vector<std::string>(static_cast<size_t>(n)), ""});
}

void show_gpus(int n, int first) {
  const char* before = std::getenv(kVisible);
  std::string list;
  if (before != nullptr) {
    list = entries_of(before, first, n);
  } else {
    for (int i = first; i < first + n; ++i)
      list += str(i > first ? "," : "", i);  // CUDA stops at one that is not there
  }
  ::setenv(kVisible, list.c_str(), 1);
}

void use_few_queues() { ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "2", 0); }

void start_device(Device device) {
  if (device.kind == Device::Kind::cuda) gpu::start(device);
}

}  // namespace firstlight
