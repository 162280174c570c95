// SPDX-License-Identifier: Apache-2.0
// XXH3-64 of many leaves at once, one thread block a leaf. Eight warps take the sums of 32 blocks of 1 KiB while a
// ninth runs the chain of scrambles over the 32 before: 1,023 scrambles of some 30 cycles are the shortest that a 1 MiB
// leaf can take, so leaves must run side by side, and their bytes must be under way long before they are needed.
#include <algorithm>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/base/xxh3_lanes.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/cuda.h"
#include "firstlight/io/leaf_hasher.h"

namespace firstlight {

namespace {

constexpr int kSummers = 8;      // warps
constexpr int kBlocksAWarp = 4;  // of 1 KiB: eight loads of 16 bytes a lane are in flight
constexpr int kRound = kSummers * kBlocksAWarp;
constexpr int kThreads = 32 * (kSummers + 1);
constexpr size_t kLeavesALaunch = 128;  // 2 KiB of parameters, of the 4 that any driver takes

struct LeafList {
  LeafBytes leaves[kLeavesALaunch];
};

__device__ uint64_t from_lane_xor(uint64_t value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

/// Adds up what the eight lanes of each column pair have; lanes 0 to 3 write the eight columns.
__device__ void reduce_to(xxh3::Pair sum, int lane, uint64_t* columns) {
  for (int mask = 4; mask < 32; mask *= 2) {
    sum.even += from_lane_xor(sum.even, mask);
    sum.odd += from_lane_xor(sum.odd, mask);
  }
  if (lane < 4) {
    columns[2 * lane] = sum.even;
    columns[2 * lane + 1] = sum.odd;
  }
}

/// The sums of up to kBlocksAWarp blocks of which the first is `data`.
__device__ void sum_blocks(const std::byte* data, uint64_t n_blocks, const xxh3::Lane& of, int lane,
                           uint64_t (*sums)[xxh3::kColumns]) {
  xxh3::Pair words[kBlocksAWarp][2];
#pragma unroll
  for (int i = 0; i < kBlocksAWarp; ++i) {
    if (static_cast<uint64_t>(i) >= n_blocks) continue;
    const std::byte* at = data + xxh3::kBlockBytes * i + of.offset();
    words[i][0] = xxh3::load_pair(at);
    words[i][1] = xxh3::load_pair(at + xxh3::kBlockBytes / 2);
  }
#pragma unroll
  for (int i = 0; i < kBlocksAWarp; ++i) {
    if (static_cast<uint64_t>(i) < n_blocks) reduce_to(of.sum(words[i][0], words[i][1]), lane, sums[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    hash_leaves_kernel(const __grid_constant__ LeafList list, uint64_t* hashes) {
  __shared__ uint64_t sums[2][kRound][xxh3::kColumns];
  __shared__ uint64_t end[xxh3::kColumns];
  const LeafBytes leaf = list.leaves[blockIdx.x];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint64_t n_blocks = (leaf.size - 1) / xxh3::kBlockBytes;
  const uint64_t n_rounds = (n_blocks + kRound - 1) / kRound;
  const xxh3::Lane of(lane);
  const int column = lane % xxh3::kColumns;
  uint64_t accumulator = xxh3::initial(column);  // of the chain's warp
  const uint64_t key = xxh3::scramble_key(column);
  if (warp == 0) reduce_to(of.sum_of_end(leaf.data, leaf.size), lane, end);
  for (uint64_t round = 0; round <= n_rounds; ++round) {  // in the last the chain runs alone
    if (warp < kSummers) {
      const uint64_t first = round * kRound + warp * kBlocksAWarp;
      if (first < n_blocks) {
        sum_blocks(leaf.data + first * xxh3::kBlockBytes, n_blocks - first, of, lane,
                   &sums[round % 2][warp * kBlocksAWarp]);
      }
    } else if (round > 0) {
      const uint64_t left = n_blocks - (round - 1) * kRound;
      const int n = left < kRound ? static_cast<int>(left) : kRound;
      for (int i = 0; i < n; ++i) {
        accumulator = xxh3::scramble(accumulator + sums[(round - 1) % 2][i][column], key);
      }
    }
    __syncthreads();
  }
  if (warp != kSummers) return;
  uint64_t all[xxh3::kColumns];
  accumulator += end[column];
  for (int i = 0; i < xxh3::kColumns; ++i) all[i] = __shfl_sync(0xffffffffu, accumulator, i);
  if (lane == 0) hashes[blockIdx.x] = xxh3::finish(all, leaf.size);
}

class CudaLeafHasher final : public LeafHasher {
 public:
  explicit CudaLeafHasher(Device device) : device_(device) {
    cuda::use(device);
    cudaFuncAttributes attributes{};  // asking loads the kernel, which would otherwise happen before the first leaf
    cuda::check(cudaFuncGetAttributes(&attributes, hash_leaves_kernel), "kernel of the leaf hasher");
    cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream of the leaf hasher");
    // Pinned memory that the kernel writes to: a few hundred bytes need no copy of their own.
    const cudaError_t code = cudaHostAlloc(&found_, kLeavesALaunch * sizeof *found_, cudaHostAllocPortable);
    if (code != cudaSuccess) cudaStreamDestroy(stream_);
    cuda::check(code, "pinned memory of the leaf hasher");
  }
  ~CudaLeafHasher() override {
    cudaStreamSynchronize(stream_);
    cudaFreeHost(found_);
    cudaStreamDestroy(stream_);
  }
  CudaLeafHasher(const CudaLeafHasher&) = delete;
  CudaLeafHasher& operator=(const CudaLeafHasher&) = delete;

  void hash(std::span<const LeafBytes> leaves, std::span<uint64_t> hashes) override {
    cuda::use(device_);
    LeafList list{};
    size_t place[kLeavesALaunch];  // whose hash each launched block gives
    size_t n = 0;
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (reinterpret_cast<uintptr_t>(leaves[i].data) % 16 != 0)
        throw Error(ErrorKind::bug, "a leaf at an odd address");
      if (leaves[i].size < xxh3::kBlockBytes) {
        hashes[i] = hash_on_host(leaves[i]);
        continue;
      }
      place[n] = i;
      list.leaves[n++] = leaves[i];
      if (n == kLeavesALaunch) launch(list, place, std::exchange(n, 0), hashes);
    }
    if (n > 0) launch(list, place, n, hashes);
  }

 private:
  void launch(const LeafList& list, const size_t* place, size_t n, std::span<uint64_t> hashes) {
    hash_leaves_kernel<<<static_cast<unsigned>(n), kThreads, 0, stream_>>>(list, found_);
    cuda::check(cudaGetLastError(), str("launch of the hash of ", n, " leaves"));
    cuda::check(cudaStreamSynchronize(stream_), str("hash of ", n, " leaves"));
    for (size_t i = 0; i < n; ++i) hashes[place[i]] = found_[i];
  }

  /// Short inputs are hashed in other ways, which are not worth a kernel.
  uint64_t hash_on_host(LeafBytes leaf) {
    std::vector<std::byte> bytes(leaf.size);
    copy(bytes.data(), {}, leaf.data, device_, leaf.size);
    return xxh3_64(bytes);
  }

  Device device_;
  cudaStream_t stream_ = nullptr;
  uint64_t* found_ = nullptr;
};

}  // namespace

std::unique_ptr<LeafHasher> make_cuda_leaf_hasher(Device device) { return std::make_unique<CudaLeafHasher>(device); }

}  // namespace firstlight
