// SPDX-License-Identifier: Apache-2.0
#include "firstlight/device/device.h"

namespace firstlight {

std::string to_string(Device device) {
  return device.kind == Device::Kind::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

}  // namespace firstlight
