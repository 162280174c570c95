// SPDX-License-Identifier: Apache-2.0
// What benches of one GPU share: the plain read rate, which is their floor, and medians.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <string_view>
#include <vector>

#include "firstlight/device/buffer.h"
#include "firstlight/device/cuda.h"

namespace firstlight::bench {

using Clock = std::chrono::steady_clock;
inline constexpr Device kGpu{Device::Kind::cuda, 0};

/// Seconds of a call, median of `times`.
inline double median_seconds(int times, const std::function<void()>& fn) {
  std::vector<double> seconds;
  for (int i = 0; i < times; ++i) {
    const auto start = Clock::now();
    fn();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

__global__ static void read_kernel(const uint4* data, int64_t n, uint32_t* out) {
  uint32_t x = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += 8 * stride) {
    uint4 v[8] = {};
#pragma unroll
    for (int u = 0; u < 8; ++u) {
      if (i + u * stride < n) v[u] = __ldcs(data + i + u * stride);
    }
#pragma unroll
    for (int u = 0; u < 8; ++u) x ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (x == 0x12345678) *out = x;
}

/// GB/s at which the first `bytes` of `memory` are read plainly: the better of two grids, median of `times` each.
inline double plain_read_rate(const Buffer& memory, uint64_t bytes, int times = 9) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, 0), "properties");
  Buffer out(kGpu, 256);
  double best = 0;
  for (const int blocks : {8, 16}) {
    const double s = median_seconds(times, [&] {
      read_kernel<<<static_cast<unsigned>(blocks * properties.multiProcessorCount), 512>>>(
          reinterpret_cast<const uint4*>(memory.data()), static_cast<int64_t>(bytes / 16),
          reinterpret_cast<uint32_t*>(out.data()));
      cuda::check(cudaDeviceSynchronize(), "plain read");
    });
    best = std::max(best, static_cast<double>(bytes) / s / 1e9);
  }
  return best;
}

/// Whether the command line names a part, or none at all.
inline bool wanted(int argc, char** argv, std::string_view part) {
  return argc < 2 || std::find(argv + 1, argv + argc, part) != argv + argc;
}

/// What main() returns: 1, and one line, where the bench throws.
inline int run(const std::function<void()>& measure) {
  try {
    measure();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace firstlight::bench
