// SPDX-License-Identifier: Apache-2.0
// Any text is either refused, or layouts whose extents follow each other and whose bytes lie on listed targets.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "firstlight/base/error.h"
#include "firstlight/io/stripe_layout.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace firstlight;
  try {
    for (const auto& [path, layout] : parse_getstripe({reinterpret_cast<const char*>(data), size})) {
      uint64_t end = 0;
      for (const StripedExtent& extent : layout.extents) {
        if (extent.begin != end || extent.end <= extent.begin || extent.stripe_bytes == 0) std::abort();
        end = extent.end;
        const int target = layout.target_of(extent.begin);
        const auto& all = extent.targets;
        if (all.empty() ? target != -1 : std::find(all.begin(), all.end(), target) == all.end()) std::abort();
      }
      if (path.empty() || layout.extents.empty()) std::abort();
    }
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::unsupported) std::abort();
  }
  return 0;
}
