// SPDX-License-Identifier: Apache-2.0
// Sampling where the logits are: 4 bytes a row go to the host, not 4 a token. A cluster of eight blocks a row; what
// they draw is draw_from()'s to the bit, since all of its sums are of whole numbers. Where ranks have a part of the
// vocabulary each, their logits are added up into whole rows (zeros elsewhere: 1 row of 128,256 is 0.5 MB), and every
// rank draws the same.
#include <algorithm>
#include <bit>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cuda_ops.cuh"
#include "firstlight/ops/draw_select_cuda.cuh"

namespace firstlight {

namespace cuda {

namespace {

namespace cg = cooperative_groups;

/// Not a number beats all, so that it is seen at the end.
__device__ __forceinline__ bool beats(const Likeliest& a, const Likeliest& b) {
  if (isnan(a.logit) || isnan(b.logit)) return isnan(a.logit) && !isnan(b.logit);
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

/// Each token of the history once, however often it is there. `seen`: a bit for each of the block's ids, zeros.
__device__ void penalise(const RowOfCluster& row, float* logits, const DrawOnDevice& draw, const int32_t* history,
                         unsigned* seen) {
  for (int i = static_cast<int>(threadIdx.x); i < draw.n_history; i += kDrawThreads) {
    const int id = history[draw.history + i], at = id - row.begin;
    if (id < row.begin || id >= row.end) continue;
    if (atomicOr(&seen[at / 32], 1u << at % 32) >> at % 32 & 1) continue;
    const float logit = logits[id];
    logits[id] = logit < 0 ? __fmul_rn(logit, draw.penalty) : __fdiv_rn(logit, draw.penalty);
  }
  __syncthreads();
}

__device__ Likeliest likeliest_of_row(const RowOfCluster& row) {
  DrawShared& shared = row.shared;
  Likeliest best{-INFINITY, INT32_MAX};
  row.each([&](int id) {
    const Likeliest here{row.logits[id], id};
    if (beats(here, best)) best = here;
  });
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    const Likeliest other{__shfl_xor_sync(0xffffffffu, best.logit, lane), __shfl_xor_sync(0xffffffffu, best.id, lane)};
    if (beats(other, best)) best = other;
  }
  if (threadIdx.x % 32 == 0) shared.bests[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (const Likeliest& other : shared.bests) {
      if (beats(other, best)) best = other;
    }
    shared.best = best;
  }
  cg::this_cluster().sync();
  for (unsigned b = 0; b < kDrawBlocks; ++b) {
    const Likeliest other = *cg::this_cluster().map_shared_rank(&shared.best, b);
    if (b == 0 || beats(other, best)) best = other;
  }
  return best;
}

/// The row's draw; told to one lane of the cluster.
template <class Tell>
__device__ void draw_from_row(RowOfCluster& row, const DrawOnDevice& draw, int vocab_size, const Likeliest& best,
                              const Tell& tell) {
  DrawShared& shared = row.shared;
  const sampling::Scale scale{best.logit, draw.powers};
  uint32_t least = 0;  // orders below are filtered out, and of this one what comes behind `last`
  int last = INT32_MAX;
  if (draw.top_k > 0 && draw.top_k < vocab_size) {
    least = select(
        row, [](int, uint32_t) { return 1ull; }, [&](uint64_t) { return static_cast<uint64_t>(draw.top_k); });
  }
  if (draw.top_p < 1) {
    const uint32_t of_top_k = least;
    least = select(
        row,
        [&](int id, uint32_t order) { return order < of_top_k ? 0ull : scale.weight(row.logits[id], shared.roots); },
        [&](uint64_t total) { return sampling::top_p_share(draw.top_p, total); });
    // Of tokens with equal logits the first: as many as the rest of the share takes.
    const auto is_equal = [&](int id) { return sampling::order_of(row.logits[id]) == least ? 1ull : 0ull; };
    const uint64_t n_equal = row.sum(is_equal), weight = shared.in_bin / n_equal;
    const uint64_t n_kept = (shared.rest + weight - 1) / weight;
    if (n_kept < n_equal) {
      row.find(is_equal, n_kept - 1, [&](int id) {
        for (unsigned b = 0; b < kDrawBlocks; ++b) *cg::this_cluster().map_shared_rank(&shared.found, b) = id;
      });
      cg::this_cluster().sync();
      last = shared.found;
    }
  }
  const auto weight = [&](int id) -> unsigned long long {
    const uint32_t order = sampling::order_of(row.logits[id]);
    if (order < least || (order == least && id > last)) return 0;
    const uint64_t w = scale.weight(row.logits[id], shared.roots);
    return w < draw.least_weight ? 0 : w;
  };
  const uint64_t total = row.sum(weight);
  row.find(weight, sampling::drawn_share(draw.random, total), tell);
}

__global__ void __cluster_dims__(kDrawBlocks, 1, 1) __launch_bounds__(kDrawThreads, 1)
    draw_kernel(float* logits, int vocab_size, const DrawOnDevice* draws, const int32_t* history, int* ids) {
  extern __shared__ __align__(16) std::byte memory[];
  __shared__ alignas(16) std::byte shared_memory[sizeof(DrawShared)];
  DrawShared& shared = *reinterpret_cast<DrawShared*>(shared_memory);
  wait_for_predecessor();
  let_successor_start();
  const DrawOnDevice draw = draws[blockIdx.y];
  const int per_block = ceil_div(vocab_size, kDrawBlocks),
            begin = min(vocab_size, static_cast<int>(blockIdx.x) * per_block);
  float* const of_row = logits + int64_t{blockIdx.y} * vocab_size;
  LaneBins& lanes = *reinterpret_cast<LaneBins*>(memory);
  unsigned* const seen = reinterpret_cast<unsigned*>(memory + sizeof(LaneBins));
  RowOfCluster row{of_row, begin, min(vocab_size, begin + per_block), lanes, shared};
  for (int i = static_cast<int>(threadIdx.x); i < kBins * 32; i += kDrawThreads) lanes[i / 32][i % 32] = 0;
  for (int i = static_cast<int>(threadIdx.x); i < ceil_div(per_block, 32); i += kDrawThreads) seen[i] = 0;
  shared.roots[threadIdx.x] = sampling::root(threadIdx.x);
  static_assert(kDrawThreads == sampling::kRoots);
  __syncthreads();
  if (draw.penalty != 1) penalise(row, of_row, draw, history, seen);
  const Likeliest best = likeliest_of_row(row);
  const bool is_bad = !isfinite(best.logit);
  if (is_bad || draw.powers == 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) ids[blockIdx.y] = is_bad ? -1 : best.id;
  } else {
    draw_from_row(row, draw, vocab_size, best, [&](int id) { ids[blockIdx.y] = id; });
  }
  cg::this_cluster().sync();  // others may still read this block's memory
}

/// whole [rows, vocab_size] = the columns from first_id on, zeros beside them.
__global__ void place_kernel(const float* part, int n, int first_id, int vocab_size, float* whole) {
  wait_for_predecessor();
  let_successor_start();
  const int id = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), at = id - first_id;
  if (id >= vocab_size) return;
  const int64_t row = blockIdx.y;
  whole[row * vocab_size + id] = at >= 0 && at < n ? part[row * n + at] : 0;
}

void place(const float* part, int n, int first_id, Matrix<float> whole, cudaStream_t stream) {
  const int vocab_size = static_cast<int>(whole.cols);
  launch("a rank's logits among all", place_kernel,
         dim3(static_cast<unsigned>(ceil_div(vocab_size, 256)), static_cast<unsigned>(whole.rows)), 256, 0, stream,
         part, n, first_id, vocab_size, whole.data);
}

}  // namespace

void draw_rows(float* logits, int vocab_size, int n_rows, const DrawOnDevice* draws, const int32_t* history, int* ids,
               cudaStream_t stream) {
  const size_t bytes = sizeof(LaneBins) + static_cast<size_t>(ceil_div(ceil_div(vocab_size, kDrawBlocks), 32)) * 4;
  check(cudaFuncSetAttribute(draw_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "allow draws their shared memory");
  launch("draws", draw_kernel, dim3(kDrawBlocks, static_cast<unsigned>(n_rows)), kDrawThreads, bytes, stream, logits,
         vocab_size, draws, history, ids);
}

bool DrawTables::send(std::span<const Draw> draws, cudaStream_t stream) {
  n_draws_ = draws.size();
  if (draws.empty()) return false;
  size_t n_ids = 0;
  for (const Draw& draw : draws) n_ids += draw.options.repetition_penalty == 1 ? 0 : draw.history.size();
  const bool grows = draws.size() > row_capacity_ || n_ids > id_capacity_;
  if (grows) {
    row_capacity_ = std::max(row_capacity_, std::bit_ceil(std::max<size_t>(draws.size(), 16)));
    id_capacity_ = std::max(id_capacity_, std::bit_ceil(std::max<size_t>(n_ids, 4096)));
    const uint64_t bytes = row_capacity_ * sizeof(DrawOnDevice) + id_capacity_ * sizeof(int32_t);
    host_.reserve(bytes, stream);
    device_.reserve(bytes, stream);
  }
  DrawOnDevice* const rows = host_.as<DrawOnDevice>();
  int32_t* const ids = reinterpret_cast<int32_t*>(rows + row_capacity_);
  size_t at = 0;
  for (size_t i = 0; i < draws.size(); ++i) {
    const SamplingOptions& options = draws[i].options;
    const bool penalises = options.repetition_penalty != 1;
    const size_t n = penalises ? draws[i].history.size() : 0;
    rows[i] = {options.temperature == 0 ? 0 : sampling::Scale::powers_of(options.temperature),
               options.top_p,
               random_bits(options.seed, draws[i].number),
               sampling::least_weight(options.min_p),
               options.top_k,
               static_cast<float>(options.repetition_penalty),
               static_cast<int32_t>(at),
               static_cast<int32_t>(n)};
    std::copy_n(draws[i].history.begin(), n, ids + at);
    at += n;
  }
  const uint64_t bytes = row_capacity_ * sizeof(DrawOnDevice) + at * sizeof(int32_t);
  check(cudaMemcpyAsync(device_.as<std::byte>(), rows, bytes, cudaMemcpyHostToDevice, stream), "send the draws");
  return grows;
}

}  // namespace cuda

void CudaOps::draw(Matrix<const float> x, const Weight& w, std::span<const Draw> draws, std::span<int> out,
                   const LogitsOfRanks* ranks) {
  if (static_cast<int64_t>(out.size()) != x.rows || draws.size() != out.size() ||
      draw_tables_.n_draws() != out.size()) {
    throw Error(ErrorKind::bug, str(draws.size(), " draws, ", draw_tables_.n_draws(), " of them the pass's, from ",
                                    x.rows, " rows into ", out.size()));
  }
  if (x.rows == 0) return;
  store_owns();
  reserve(logits_, std::min(x.rows, cuda::kLogitRows) * w.rows * 4);
  reserve(picks_, static_cast<int64_t>(out.size_bytes()));
  if (pick_staging_.reserve(out.size_bytes(), stream_)) forget_recordings();
  const auto draw_rows = [&](Matrix<float> logits, int64_t row) {
    cuda::draw_rows(logits.data, static_cast<int>(logits.cols), static_cast<int>(logits.rows),
                    draw_tables_.draws() + row, draw_tables_.history(), picks_.as<int>() + row, stream_);
  };
  for (int64_t row = 0; row < x.rows; row += cuda::kLogitRows) {
    const int64_t n = std::min(cuda::kLogitRows, x.rows - row);
    const Matrix<float> logits{logits_.as<float>(), n, w.rows, w.rows};
    if (w.rows > 0) matmul({x.data + row * x.stride, n, x.cols, x.stride}, w, nullptr, logits);
    launch_waiting();
    if (!ranks) {
      draw_rows(logits, row);
      continue;
    }
    for (int64_t i = 0; i < n; i += ranks->whole.rows) {
      Matrix<float> whole = ranks->whole;
      whole.rows = std::min(whole.rows, n - i);
      cuda::place(logits.row(i), static_cast<int>(w.rows), static_cast<int>(ranks->first_id), whole, stream_);
      ranks->sum(whole);
      draw_rows(whole, row + i);
    }
  }
  cuda::check(
      cudaMemcpyAsync(pick_staging_.as<int>(), picks_.as<int>(), out.size_bytes(), cudaMemcpyDeviceToHost, stream_),
      "fetch what was drawn");
  drawn_ = out;
}

}  // namespace firstlight
