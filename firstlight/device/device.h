// SPDX-License-Identifier: Apache-2.0
// Where memory is and work runs.
#pragma once
#include <string>

namespace firstlight {

struct Device {
  enum class Kind { cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;  ///< of a GPU; 0 for the CPU
  friend bool operator==(const Device&, const Device&) = default;
};
std::string to_string(Device device);  ///< "cpu", "cuda:1"

}  // namespace firstlight
