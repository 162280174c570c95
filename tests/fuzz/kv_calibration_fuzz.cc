// SPDX-License-Identifier: Apache-2.0
// A calibration of keys and values: it is refused with an Error, or what it holds is finite and written back the same.
#include <cmath>
#include <cstdlib>

#include "firstlight/base/error.h"
#include "firstlight/ckpt/kv_calibration.h"

using namespace firstlight;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const KvCalibration calibration = parse_kv_calibration({reinterpret_cast<const char*>(data), size}, "fuzz");
    const KvMeans& means = calibration.means;
    const size_t n = size_t{2} * static_cast<size_t>(means.n_layers) * static_cast<size_t>(means.n_kv_heads) *
                     static_cast<size_t>(means.head_dim);
    if (means.values.size() != n) std::abort();
    for (const float x : means.values) {
      if (!std::isfinite(x)) std::abort();
    }
    if (parse_kv_calibration(to_file(calibration), "again").means.values != means.values) std::abort();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::bug) std::abort();
  }
  return 0;
}
