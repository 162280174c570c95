// SPDX-License-Identifier: Apache-2.0
// The kernel that runs a resident program. Between the operations of a decoding step lie barriers of all blocks; but
// weights are nobody's output, so one warp a block asks for them ahead of all barriers, as far as its ring reaches:
// memory goes on working while the others meet, norm and attend.
#include <algorithm>

#include "firstlight/ops/resident_attend_cuda.cuh"

namespace firstlight::cuda {

namespace {

/// Attention borrows four.
constexpr int kLeastStages = 2 * kCrewStages;
/// Two warpgroups of consumers and one of which a warp works: registers are given away by warpgroups, and with the 168
/// that each would have the consumers spill, which costs 10 % of a step.
constexpr int kThreads = kResidentWarps * 32 + 128;

/// A warp's copy of an instruction into shared memory, first into registers: memory may be slow.
struct InstructionOnItsWay {
  static constexpr int kPieces = sizeof(ResidentInstruction) / 16;
  static_assert(kPieces <= 64);
  uint4 pieces[2];
  __device__ __forceinline__ void ask(const ResidentInstruction* from) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      if (i * 32 + lane < kPieces) pieces[i] = __ldg(reinterpret_cast<const uint4*>(from) + i * 32 + lane);
    }
  }
  __device__ __forceinline__ void put(ResidentInstruction& to) const {
    const unsigned lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      if (i * 32 + lane < kPieces) reinterpret_cast<uint4*>(&to)[i * 32 + lane] = pieces[i];
    }
    __syncwarp();
  }
};

__device__ void produce(const ResidentInstruction* program, int n, Ring ring) {
  const uint64_t policy = policy_read_once();
  ResidentInstruction& now = ring.shared.fetched;
  InstructionOnItsWay next;
  next.ask(program);
  for (int i = 0; i < n; ++i) {
    next.put(now);
    if (i + 1 < n) next.ask(program + i + 1);
    if (now.kind == ResidentInstruction::Kind::product) {
      fetch_product(now.product, ring, policy);
    } else {
      lend_stages(now.attend, ring);
    }
  }
}

template <int kDim>
__device__ __forceinline__ void consume(const ResidentInstruction* program, int n, Ring ring, unsigned* counter) {
  GridBarrier barrier{counter};
  for (int i = 0; i < n; ++i) {
    const ResidentInstruction& now = ring.shared.instructions[i % 2];
    if (i > 0) barrier.arrive();
    // The other place was the instruction's before this; the next barrier's first half makes it everyone's.
    if (i + 1 < n && threadIdx.x / 32 == kResidentWarps - 1) {
      InstructionOnItsWay next;
      next.ask(program + i + 1);
      next.put(ring.shared.instructions[(i + 1) % 2]);
    }
    if (now.kind == ResidentInstruction::Kind::attend) {
      ring.at = run_attend<kDim>(now.attend, ring, barrier);
      continue;
    }
    barrier.wait_all();
    ring.at = run_product(now.product, ring);
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    resident_kernel(const ResidentInstruction* program, int n, unsigned* counter, int n_stages) {
  extern __shared__ __align__(128) std::byte stages[];
  __shared__ alignas(128) std::byte memory[sizeof(ResidentShared)];
  ResidentShared& shared = *reinterpret_cast<ResidentShared*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp == 0) {
    InstructionOnItsWay first;
    first.ask(program);
    first.put(shared.instructions[0]);
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < n_stages; ++s) {
      shared.full[s].init(1);
      shared.empty[s].init(kResidentWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  const Ring ring{stages, stages + n_stages * kStageBytes, shared, n_stages, {}};
  if (warp < kResidentWarps) {
    take_registers<232>();
    consume<kDim>(program, n, ring, counter);
  } else {
    give_registers<40>();
    if (warp == kResidentWarps) produce(program, n, ring);
  }
}

auto kernel_for(int head_dim) { return head_dim == 64 ? resident_kernel<64> : resident_kernel<128>; }

}  // namespace

/// The kernel's own shared memory, rounded up.
constexpr int kStaticBytes = static_cast<int>((sizeof(ResidentShared) + 1024 + 127) / 128 * 128);

bool ResidentProgram::fits(const GpuShape& gpu) {
  for (const int head_dim : {64, 128}) {
    const auto kernel = kernel_for(head_dim);
    const int bytes = gpu.shared_bytes - kStaticBytes;
    int n_blocks = 0;
    if (bytes < kLeastStages * kStageBytes + meeting_bytes(kHeadsAtOnce, head_dim) ||
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n_blocks, kernel, kThreads, static_cast<size_t>(bytes)) !=
            cudaSuccess ||
        n_blocks < 1) {
      cudaGetLastError();
      return false;
    }
  }
  return gpu.n_sms > 0;
}

/// As many stages as leave room for attention's warps to meet.
int ResidentProgram::n_stages() const {
  int meeting = 0;
  for (const ResidentInstruction& i : list_) {
    if (i.kind != ResidentInstruction::Kind::attend) continue;
    const AttendParams& a = i.attend.attend;
    meeting = std::max(meeting, meeting_bytes(std::min(kHeadsAtOnce, a.n_heads / a.kv.n_kv_heads), a.kv.head_dim));
  }
  return std::min(kMostStages, (gpu_.shared_bytes - kStaticBytes - meeting) / kStageBytes);
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
  config.dynamicSmemBytes = static_cast<size_t>(gpu_.shared_bytes - kStaticBytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel_for(head_dim_), memory_.as<const ResidentInstruction>(),
                           static_cast<int>(list_.size()), counter, n_stages()),
        "a resident program");
}

void ResidentProgram::send(cudaStream_t stream) {
  check(cudaMemcpyAsync(memory_.as<std::byte>(), list_.data(), list_.size() * sizeof(ResidentInstruction),
                        cudaMemcpyHostToDevice, stream),
        "send a program");
}

}  // namespace firstlight::cuda
