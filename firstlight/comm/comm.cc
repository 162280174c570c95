// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/comm.h"

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"

namespace firstlight {

std::vector<std::unique_ptr<Comm>> make_comms(std::span<const Device> devices) {
  if (devices.empty()) throw Error(ErrorKind::bug, "a group of 0 ranks");
  for (const Device device : devices) {
    if (device.kind != devices[0].kind)
      throw Error(ErrorKind::bug, str("ranks on ", to_string(devices[0]), " and ", to_string(device)));
  }
  const int n = static_cast<int>(devices.size());
  // One rank on a GPU says nothing to anyone: no pinned memory for it, which takes 1.6 ms.
  if (devices[0].kind == Device::Kind::cpu || n == 1) return make_thread_comms(n);
  constexpr int kSpin = 4000;  // as a thread pool's
  return make_cuda_comms(devices, {.spin = usable_cores() > n ? kSpin : 0});
}

}  // namespace firstlight
