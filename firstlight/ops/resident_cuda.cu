// SPDX-License-Identifier: Apache-2.0
// The kernel that runs a resident program. Between the operations of a decoding step lie barriers of all blocks; but
// weights are nobody's output, so one warp a block asks for them ahead of all barriers, as far as its ring reaches:
// memory goes on working while the others meet and attend. Eight warps multiply, three make results of their sums.
#include <algorithm>
#include <utility>

#include "firstlight/ops/resident_attend_cuda.cuh"
#include "firstlight/ops/resident_fetch_cuda.cuh"
#include "firstlight/ops/resident_finish_cuda.cuh"

namespace firstlight::cuda {

namespace {

/// Attention borrows as many: a crew's keys fill one.
constexpr int kLeastStages = 2 * kCrewStages;
/// Two warpgroups of consumers, and one of a producer and three finishers. Registers are given away by warpgroups, and
/// with the 168 that each would have the consumers spill, which costs 10 % of a step.
constexpr int kThreads = kResidentWarps * 32 + 128;
constexpr int kConsumersRegisters = 232, kOthersRegisters = 40;
static_assert(2 * kConsumersRegisters + kOthersRegisters <= 3 * 168);

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

__device__ void produce(const ResidentInstruction* program, int n, Ring ring, unsigned* counters) {
  const uint64_t policy = policy_read_once();
  ResidentInstruction& now = ring.shared.fetched;
  InstructionOnItsWay next;
  next.ask(program);
  for (int i = 0; i < n; ++i) {
    next.put(now);
    if (i + 1 < n) next.ask(program + i + 1);
    if (now.kind == ResidentInstruction::Kind::product) {
      fetch_product(now.product, ring, counters + i, policy);
    } else if (now.kind == ResidentInstruction::Kind::attend) {
      lend_stages(now.attend, ring);
    }
  }
}

template <int kDim, bool kFew>
__device__ __forceinline__ void consume(const ResidentInstruction* program, int n, Ring ring, unsigned* counter) {
  GridBarrier barrier{counter};
  bool wrote = false;
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    const ResidentInstruction& now = ring.shared.instructions[i % kInstructionSlots];
    if (i > 0) {
      barrier.next();
      sync_consumers();
      if (wrote && threadIdx.x == 0) barrier.arrive();
    }
    wrote = now.kind != ResidentInstruction::Kind::product;
    // The next instruction's barrier makes it everyone's.
    if (i + 1 < n && threadIdx.x / 32 == kResidentWarps - 1) {
      InstructionOnItsWay next;
      next.ask(program + i + 1);
      next.put(ring.shared.instructions[(i + 1) % kInstructionSlots]);
    }
    if (now.kind == ResidentInstruction::Kind::product) {
      run_product<kFew>(now.product, ring, barrier);
    } else if (now.kind == ResidentInstruction::Kind::attend) {
      run_attend<kDim>(now.attend, ring, barrier);
    } else {
      barrier.wait_all();
      run_split(now.split);
    }
  }
}

__device__ __forceinline__ void finish(const ResidentInstruction* program, int n, Ring ring, unsigned* counter) {
  GridBarrier barrier{counter};
  for (int i = 0; i < n; ++i) {
    const ResidentInstruction& now = ring.shared.finishing[i % 2];
    if (i > 0) barrier.next();
    InstructionOnItsWay next;
    const bool fetches = i + 1 < n && finisher_number() == kFinishers - 1;
    if (fetches) next.ask(program + i + 1);
    if (fetches) next.put(ring.shared.finishing[(i + 1) % 2]);
    const bool writes = now.kind == ResidentInstruction::Kind::product;
    if (writes) finish_product(now.product, ring, barrier);
    sync_finishers();
    if (writes && finisher_number() == 0 && threadIdx.x % 32 == 0) barrier.arrive();
  }
}

/// kFew: no product has more than four rows of x. (Both in one kernel spill registers, and its code is longer.)
template <int kDim, bool kFew>
__global__ void __launch_bounds__(kThreads, 1)
    resident_kernel(const ResidentInstruction* program, int n, unsigned* counters, int n_stages) {
  extern __shared__ __align__(128) std::byte stages[];
  __shared__ alignas(128) std::byte memory[sizeof(ResidentShared)];
  ResidentShared& shared = *reinterpret_cast<ResidentShared*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp == 0 || warp == kResidentWarps) {
    InstructionOnItsWay first;
    first.ask(program);
    first.put(warp == 0 ? shared.instructions[0] : shared.finishing[0]);
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < n_stages; ++s) {
      shared.full[s].init(1);
      shared.empty[s].init(kResidentWarps * 32);
    }
    for (int s = 0; s < kUnitSlots; ++s) {
      shared.unit_full[s].init(1);
      shared.unit_empty[s].init((kResidentWarps + kFinishers) * 32);
    }
    for (int s = 0; s < kSumsSlots; ++s) {
      shared.sums_full[s].init(kResidentWarps * 32);
      shared.sums_empty[s].init(kFinishers * 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  const Ring ring{stages, stages + n_stages * kStageBytes, shared, n_stages, {}, {}, {}};
  if (warp < kResidentWarps) {
    take_registers<kConsumersRegisters>();
    consume<kDim, kFew>(program, n, ring, counters);
  } else {
    give_registers<kOthersRegisters>();
    if (warp == kResidentWarps) {
      produce(program, n, ring, counters + 1);
    } else {
      finish(program, n, ring, counters);
    }
  }
}

auto kernel_for(int head_dim, bool few) {
  return few              ? head_dim == 64 ? resident_kernel<64, true> : resident_kernel<128, true>
                      : head_dim == 64 ? resident_kernel<64, false>
                          : resident_kernel<128, false>;
}

}  // namespace

/// The kernel's own shared memory, rounded up.
constexpr int kStaticBytes = static_cast<int>((sizeof(ResidentShared) + 1024 + 127) / 128 * 128);

bool ResidentProgram::fits(const GpuShape& gpu) {
  for (const auto& [head_dim, few] : {std::pair{64, true}, {64, false}, {128, true}, {128, false}}) {
    const auto kernel = kernel_for(head_dim, few);
    const int bytes = gpu.shared_bytes - kStaticBytes;
    int n_blocks = 0;
    if (bytes < kLeastStages * kStageBytes + std::max(kSumsBytes, meeting_bytes(kHeadsAtOnce, head_dim)) ||
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

/// As many stages as leave room for warps to meet.
int ResidentProgram::n_stages() const {
  int meeting = kSumsBytes;
  for (const ResidentInstruction& i : list_) {
    if (i.kind != ResidentInstruction::Kind::attend) continue;
    const AttendParams& a = i.attend.attend;
    meeting = std::max(meeting, meeting_bytes(std::min(kHeadsAtOnce, a.n_heads / a.kv.n_kv_heads), a.kv.head_dim));
  }
  return std::min(kMostStages, (gpu_.shared_bytes - kStaticBytes - meeting) / kStageBytes);
}

bool ResidentProgram::has_few_rows() const {
  return std::all_of(list_.begin(), list_.end(), [](const ResidentInstruction& i) {
    return i.kind != ResidentInstruction::Kind::product || i.product.rows <= 4;
  });
}

void ResidentProgram::launch(unsigned* counters, cudaStream_t stream) {
  launched_ = true;
  check(cudaMemsetAsync(counters, 0, (1 + list_.size()) * sizeof(unsigned), stream), "clear a program's counters");
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
  check(cudaLaunchKernelEx(&config, kernel_for(head_dim_, has_few_rows()), memory_.as<const ResidentInstruction>(),
                           static_cast<int>(list_.size()), counters, n_stages()),
        "a resident program");
}

void ResidentProgram::send(cudaStream_t stream) {
  check(cudaMemcpyAsync(memory_.as<std::byte>(), list_.data(), list_.size() * sizeof(ResidentInstruction),
                        cudaMemcpyHostToDevice, stream),
        "send a program");
}

}  // namespace firstlight::cuda
