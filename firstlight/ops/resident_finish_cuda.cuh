// SPDX-License-Identifier: Apache-2.0
// The end of a unit of a product inside a resident kernel: its warps' sums become what the product is for. Warps of
// their own do it, since it is a chain of loads and stores in which a consumer would stand still: the next units'
// weights are multiplied meanwhile.
#pragma once
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/resident_x_cuda.cuh"
#include "firstlight/ops/rope_cuda.cuh"

namespace firstlight::cuda {

__device__ __forceinline__ int finisher_number() { return static_cast<int>(threadIdx.x) / 32 - kResidentWarps - 1; }

/// What a lane has to do with a unit: of a pair of x's rows the column-th, and row r of the unit's part.
struct FinishLane {
  int column, part, r;
  __device__ __forceinline__ FinishLane() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    column = lane / 16, part = lane / 8 % 2, r = lane % 8;
  }
};

/// What a value is joined with, asked for before its sums are there.
struct JoinedWith {
  float2 angle = make_float2(1, 0);
  float before = 0;  ///< or the bias of a rope's first part
  RowOnDevice row{};
  std::byte* page = nullptr;
  __device__ __forceinline__ void ask(const ResidentProduct& p, int unit, int column, const FinishLane& lane) {
    if (column >= p.rows || lane.r >= p.n_rows(unit, lane.part)) return;
    if (p.join == ResidentJoin::add) {
      before = __ldcg(p.out + column * p.out_stride + p.row(unit, lane.part) + lane.r);
    } else if (p.join == ResidentJoin::rope && lane.part == 0) {
      row = p.on_device[column];
      page = p.kv.data + static_cast<uint64_t>(p.pages[row.pages + row.position / kPageTokens]) * p.kv.page_stride;
      if (unit / p.per < p.n_heads + p.kv.n_kv_heads)
        angle = __ldg(p.angles + int64_t{row.angle} * (p.kv.head_dim / 2) + unit % p.per * 8 + lane.r);
    }
  }
};

__device__ inline void rope_and_store(const ResidentProduct& p, int unit, int r, float a, float b,
                                      const JoinedWith& with) {
  const int d = p.kv.head_dim, half = d / 2, h = unit / p.per, i = unit % p.per * 8 + r;
  const bool rotated = h < p.n_heads + p.kv.n_kv_heads;
  if (rotated) {
    const float2 turned = rotate(a, b, with.angle);
    a = turned.x, b = turned.y;
  }
  float* head = p.out + with.row.row * p.out_stride + h * d;
  head[i] = a;
  head[half + i] = b;
  if (h < p.n_heads) return;
  __nv_bfloat16* slot = reinterpret_cast<__nv_bfloat16*>(with.page) +
                        (int64_t{h - p.n_heads} * kPageTokens + with.row.position % kPageTokens) * d;
  narrow(a, slot + i);
  narrow(b, slot + half + i);
}

__device__ __forceinline__ float bias_of(const ResidentProduct& p, int i) {
  if (!p.bias) return 0;
  return p.bias_is_bf16 ? widen(static_cast<const __nv_bfloat16*>(p.bias)[i]) : static_cast<const float*>(p.bias)[i];
}

/// One of a unit's values, of two columns in a warp's halves: adds up the warps' sums, always in the same order, and
/// does with them what the product is for. Both halves of the warp come here: they sum squares.
__device__ __forceinline__ void finish_value(const ResidentProduct& p, int unit, int column, const FinishLane& lane,
                                             const Ring& ring, const JoinedWith& with) {
  const bool together = p.join == ResidentJoin::silu || p.join == ResidentJoin::rope, few = p.rows <= 4;
  const bool there = column < p.rows && !(together && lane.part == 1) && lane.r < p.n_rows(unit, lane.part);
  const float scale = p.x.squares ? ring.shared.scales[column] : 1;
  const auto total_of = [&](int part) {
    const float* sums = ring.sums(0) + column * kSumsPitch + part * 8 + lane.r;
    float total = 0;
#pragma unroll
    for (int w = 0; w < kResidentWarps; ++w) {
      total += few ? sums[w * kSumsOfWarp] + sums[w * kSumsOfWarp + 4 * kSumsPitch] : sums[w * kSumsOfWarp];
    }
    return total * scale + bias_of(p, p.row(unit, part) + lane.r);
  };
  const int at = p.row(unit, lane.part) + lane.r;
  float value = 0;
  if (there) {
    value = total_of(lane.part);
    if (p.join == ResidentJoin::rope) {
      rope_and_store(p, unit, lane.r, value, total_of(1), with);
    } else {
      if (p.join == ResidentJoin::add) value += with.before;
      if (p.join == ResidentJoin::silu) value = value / (1 + __expf(-value)) * total_of(1);
      p.out[column * p.out_stride + at] = value;
    }
  }
  if (!p.terms.data) return;
  if (there) {
    const float weight = p.weights ? widen(p.weights[at]) : 1;
    put_terms(value * weight, p.terms.data + int64_t{column} * p.terms.k + at, int64_t{kMatvecRows} * p.terms.k);
  }
  if (!p.terms.squares) return;
  const float squares = sum_sixteen(value * value);
  if (there && threadIdx.x % 16 == 0) p.terms.squares[column * p.terms.n_squares() + at / 16] = squares;
}

/// The scales of x's rows, each by a finisher, for all finishers.
__device__ __forceinline__ void scale_rows(const ResidentTerms& x, int rows, float eps, ResidentShared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % 32, n = x.n_squares();
  for (int row = finisher_number(); row < rows; row += kFinishers) {
    float sum = 0;
#pragma unroll 8
    for (int i = lane; i < n; i += 32) sum += __ldcg(x.squares + row * n + i);
    sum = warp_sum(sum);
    if (lane == 0) shared.scales[row] = rsqrtf(sum / static_cast<float>(x.k) + eps);
  }
  sync_finishers();
}

/// The finishers' part of a product: each has its turn of all units' pairs of columns.
__device__ __forceinline__ void finish_product(const ResidentProduct& p, Ring& ring, const GridBarrier& barrier) {
  const FinishLane lane;
  int turn = finisher_number();
  if (finisher_number() == 0 && threadIdx.x % 32 == 0) barrier.wait();
  sync_finishers();
  if (p.x.squares) scale_rows(p.x, p.rows, p.eps, ring.shared);
  for (int unit = ring.take_unit(); unit != kNoUnit; unit = ring.take_unit()) {
#pragma unroll 1
    for (int column = lane.column; column - lane.column < p.rows; column += 2) {
      if (turn-- > 0) continue;
      turn = kFinishers - 1;
      JoinedWith with;
      with.ask(p, unit, column, lane);
      ring.shared.sums_full[ring.sums_at.stage].wait(ring.sums_at.parity);
      finish_value(p, unit, column, lane, ring, with);
    }
    // Also who had no turn: an arrival ahead of the unit would count for the slot's last one, which another still
    // reads.
    ring.shared.sums_full[ring.sums_at.stage].wait(ring.sums_at.parity);
    ring.shared.sums_empty[ring.sums_at.stage].arrive();
    ring.sums_at.advance(kSumsSlots);
  }
}

}  // namespace firstlight::cuda
