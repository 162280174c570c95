// SPDX-License-Identifier: Apache-2.0
// Attention of single rows as a kernel of its own: two blocks a multiprocessor, so that 192 KB are on their way to it
// at any time.
#include <algorithm>

#include "firstlight/ops/attend_item_cuda.cuh"

namespace firstlight::cuda {

namespace {

template <int kDim>
constexpr int kStages = 384 / kDim;
template <int kDim>
using Ring = KeyRing<kDim, kStages<kDim>>;

template <int kDim>
__global__ void __launch_bounds__(kSinglesWarps * 32, kSinglesAtOnce)
    attend_singles_kernel(const __grid_constant__ SinglesParams p) {
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ float maxima[kSinglesWarps][kHeadsAtOnce], divisors[kSinglesWarps][kHeadsAtOnce];
  let_successor_start();
  const int heads = p.heads;
  const Meeting<kDim> meeting{reinterpret_cast<float*>(shared + kSinglesWarps * Ring<kDim>::kBytes), maxima, divisors,
                              heads};
  const SinglesPlan plan = *p.plan;
#pragma unroll 1
  for (int number = static_cast<int>(blockIdx.x);; number += static_cast<int>(gridDim.x)) {
    const int of_row = quotient(number, p.head_blocks);
    const ReadyItem& ready = p.items[min(of_row, p.n_rows * p.n_chunks - 1)];  // beside the plan, which may have less
    Item item = ready.item;
    const int32_t first_held = ready.pages[threadIdx.x % 32];
    if (number >= plan.n_items) break;
    set_heads(p, number - of_row * p.head_blocks, item);
    attend_item<kDim, kStages<kDim>>(p, item, first_held, static_cast<uint32_t>(__cvta_generic_to_shared(shared)),
                                     meeting, [] { wait_for_predecessor(); });
  }
  if (!plan.splits_rows) return;
  wait_for_predecessor();  // its merges may still be under way, in the same memory
  merge_items<kDim>(p, plan);
}

constexpr int kPlanThreads = 256;

/// A warp an item.
__global__ void plan_singles_kernel(const __grid_constant__ SinglesParams p) {
  wait_for_predecessor();  // which may read the last plan; no successor starts before this ends: layers read it unasked
  const AttendPlan plan(p);
  const int lane = static_cast<int>(threadIdx.x) % 32, n_warps = static_cast<int>(gridDim.x) * (kPlanThreads / 32);
  const int warp = static_cast<int>(blockIdx.x * (kPlanThreads / 32) + threadIdx.x / 32);
  for (int i = warp; i < quotient(plan.n_items, p.head_blocks); i += n_warps) {
    Item item;
    find_item(p, plan.each, i * p.head_blocks, item);
    if (lane == 0) p.items[i].item = item;
    p.items[i].pages[lane] = item.begin + lane < item.end ? p.attend.pages[item.row.pages + item.begin + lane] : 0;
  }
  if (warp == 0 && lane == 0) *p.plan = plan;
}

/// Blocks that the GPU holds at a time, asked once a thread: those that merge wait for the others' items, so no more
/// are launched.
template <int kDim>
int n_held(int heads, size_t bytes) {
  static thread_local int of_heads[kHeadsAtOnce + 1] = {};
  if (of_heads[heads] == 0) {
    const auto kernel = attend_singles_kernel<kDim>;
    int of_sm = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_sm, kernel, kSinglesWarps * 32, bytes),
          "how many blocks of attention fit");
    const int n_sms = facts_of(reinterpret_cast<const void*>(kernel), "attention of single rows").n_sms;
    of_heads[heads] = std::max(1, std::min(of_sm, kSinglesAtOnce) * n_sms);
  }
  return of_heads[heads];
}

template <int kDim>
void start(const SinglesParams& p, cudaStream_t stream) {
  const int heads = p.heads;
  const size_t bytes = static_cast<size_t>(kSinglesWarps * Ring<kDim>::kBytes) +
                       static_cast<size_t>(kSinglesWarps * heads * Meeting<kDim>::kStride) * sizeof(float);
  check(cudaFuncSetAttribute(attend_singles_kernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "allow attention its shared memory");
  // An item and a merge for each block, if there are as many.
  const int n_merges = p.n_chunks > 1 ? heads * (kDim / 4) / kMergedAtOnce : 0;
  const int64_t most = int64_t{p.n_rows} * p.head_blocks * (p.n_chunks + n_merges);
  const int held = std::max(1, n_held<kDim>(heads, bytes) / p.n_sharing);
  launch("attention of single rows", attend_singles_kernel<kDim>,
         dim3(static_cast<unsigned>(std::min<int64_t>(held, most))), kSinglesWarps * 32, bytes, stream, p);
}

}  // namespace

static_assert(sizeof(SinglesPlan) % alignof(ReadyItem) == 0);  // items lie behind the plan

int64_t items_bytes(int64_t n_rows, int n_chunks) {
  return n_rows * n_chunks * static_cast<int64_t>(sizeof(ReadyItem));
}

void plan_singles(const SinglesParams& params, cudaStream_t stream) {
  const int most = params.n_rows * params.n_chunks;
  launch("plan of single rows' attention", plan_singles_kernel,
         dim3(static_cast<unsigned>(std::min(64, ceil_div(most, kPlanThreads / 32)))), kPlanThreads, 0, stream, params);
}

void attend_singles(const SinglesParams& params, cudaStream_t stream) {
  params.attend.kv.head_dim == 64 ? start<64>(params, stream) : start<128>(params, stream);
}

}  // namespace firstlight::cuda
