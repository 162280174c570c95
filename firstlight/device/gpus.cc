// SPDX-License-Identifier: Apache-2.0
#include "firstlight/device/gpus.h"

#include <charconv>

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

void start_device(Device device) {
  if (device.kind == Device::Kind::cuda) gpu::start(device);
}

}  // namespace firstlight
