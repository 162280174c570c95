// SPDX-License-Identifier: Apache-2.0
// The kernel that runs a resident program. Between the operations of a decoding step lie barriers of all blocks; but
// weights are nobody's output, so one warp a block asks for them ahead of all barriers, as far as its ring reaches:
// memory goes on working while the others meet, norm and attend.
#include "firstlight/ops/resident_attend_cuda.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kThreads = (kResidentWarps + 1) * 32;
constexpr int kSharedBytes = kRingStages * kStageBytes + 128;

/// A warp's copy of an instruction into shared memory.
__device__ __forceinline__ void fetch_instruction(const ResidentInstruction* from, ResidentInstruction& to) {
  const uint4* pieces = reinterpret_cast<const uint4*>(from);
  for (unsigned i = threadIdx.x % 32; i < sizeof(ResidentInstruction) / 16; i += 32) {
    reinterpret_cast<uint4*>(&to)[i] = __ldg(pieces + i);
  }
  __syncwarp();
}

__device__ void produce(const ResidentInstruction* program, int n, Ring ring) {
  const uint64_t policy = policy_read_once();
  ResidentInstruction& now = ring.shared.fetched;
  for (int i = 0; i < n; ++i) {
    __syncwarp();
    fetch_instruction(program + i, now);
    if (now.kind == ResidentInstruction::Kind::product) {
      fetch_product(now.product, ring, policy);
    } else {
      lend_stages(now.attend, ring);
    }
  }
}

template <int kDim>
__device__ void consume(const ResidentInstruction* program, int n, Ring ring, unsigned* counter) {
  GridBarrier barrier{counter};
  for (int i = 0; i < n; ++i) {
    const ResidentInstruction& now = ring.shared.instructions[i % 2];
    if (i > 0) barrier.arrive();
    // The other place was the instruction's before this; the next barrier's first half makes it everyone's.
    if (i + 1 < n && threadIdx.x / 32 == kResidentWarps - 1) {
      fetch_instruction(program + i + 1, ring.shared.instructions[(i + 1) % 2]);
    }
    if (now.kind == ResidentInstruction::Kind::attend) {
      run_attend<kDim>(now.attend, ring, barrier);
      continue;
    }
    barrier.wait_all();
    run_product(now.product, ring);
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    resident_kernel(const ResidentInstruction* program, int n, unsigned* counter) {
  extern __shared__ __align__(128) std::byte stages[];
  __shared__ alignas(128) std::byte memory[sizeof(ResidentShared)];
  ResidentShared& shared = *reinterpret_cast<ResidentShared*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp == 0) fetch_instruction(program, shared.instructions[0]);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kRingStages; ++s) {
      shared.full[s].init(1);
      shared.empty[s].init(kResidentWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  const Ring ring{stages, shared, {}};
  if (warp == kResidentWarps) {
    produce(program, n, ring);
  } else {
    consume<kDim>(program, n, ring, counter);
  }
}

auto kernel_for(int head_dim) { return head_dim == 64 ? resident_kernel<64> : resident_kernel<128>; }

}  // namespace

bool ResidentProgram::fits(const GpuShape& gpu) {
  for (const int head_dim : {64, 128}) {
    const auto kernel = kernel_for(head_dim);
    int n_blocks = 0;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_blocks, kernel, kThreads, kSharedBytes) != cudaSuccess ||
        n_blocks < 1) {
      cudaGetLastError();
      return false;
    }
  }
  return gpu.n_sms > 0;
}

void ResidentProgram::launch(unsigned* counter, cudaStream_t stream) {
  launched_ = true;
  check(cudaMemsetAsync(counter, 0, sizeof(unsigned), stream), "clear a program's counter");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;  // blocks wait for one another: all or none
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(gpu_.n_sms));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel_for(head_dim_), memory_.as<const ResidentInstruction>(),
                           static_cast<int>(list_.size()), counter),
        "a resident program");
}

void ResidentProgram::send(cudaStream_t stream) {
  check(cudaMemcpyAsync(memory_.as<std::byte>(), list_.data(), list_.size() * sizeof(ResidentInstruction),
                        cudaMemcpyHostToDevice, stream),
        "send a program");
}

}  // namespace firstlight::cuda
