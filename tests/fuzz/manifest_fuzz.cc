// SPDX-License-Identifier: Apache-2.0
// Any text is either refused with one of two kinds of error, or a manifest that is written as it was understood.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "firstlight/base/error.h"
#include "firstlight/ckpt/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace firstlight;
  try {
    const Manifest manifest = parse_manifest({reinterpret_cast<const char*>(data), size}, "manifest.json");
    const std::string json = to_json(manifest);
    if (to_json(parse_manifest(json, "manifest.json")) != json) std::abort();
    for (const ManifestTp& tp : manifest.tps) {
      for (const ManifestRank& rank : tp.ranks) {
        if (rank.parts.empty() || rank.total_bytes() == 0) std::abort();
      }
    }
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::bad_input && e.kind() != ErrorKind::unsupported) std::abort();
  }
  return 0;
}
