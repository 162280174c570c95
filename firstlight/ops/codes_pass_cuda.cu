// SPDX-License-Identifier: Apache-2.0
// The host's side of a cache of codes: what its kernels are given, and which kernel a row goes to.
#include <algorithm>
#include <bit>
#include <cstring>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/codes_pass_cuda.cuh"
#include "firstlight/ops/cuda_ops.cuh"

namespace firstlight {

namespace cuda {

turboquant::PageShape page_shape(const KvLayer& kv) {
  turboquant::require_head_dim(kv.head_dim);
  const KvBits bits = kv_bits(kv.kind);
  return {kv.head_dim, bits.key, bits.value};
}

const turboquant::Signs* CodesOfPass::signs(const KvLayer& kv, bool recording, cudaStream_t stream) {
  const size_t n = 2 * static_cast<size_t>(kv.n_kv_heads), bytes = n * sizeof(turboquant::Signs);
  Rotations& known = rotations_[kv.signs];
  if (known.host.size() != n || std::memcmp(known.host.data(), kv.signs, bytes) != 0) {
    if (recording) throw Error(ErrorKind::bug, "the rotations of a pass that is recorded are new");
    known.host.assign(kv.signs, kv.signs + n);
    known.device.reserve(bytes, stream);
    check(cudaMemcpyAsync(known.device.as<void>(), known.host.data(), bytes, cudaMemcpyHostToDevice, stream),
          "send rotations");
    check(cudaStreamSynchronize(stream), "send rotations");
  }
  return known.device.as<turboquant::Signs>();
}

CodesOfPass::FaultPlace CodesOfPass::fault_place(KvKind kind, cudaStream_t stream) {
  if (!fault_is_clear_) {  // also again, if memory for it or clearing it failed before
    fault_.reserve(sizeof(unsigned long long), stream);
    fault_seen_.reserve(sizeof(uint32_t), stream);
    *fault_seen_.as<uint32_t>() = 0;
    check(cudaMemsetAsync(fault_.as<void>(), 0xff, sizeof(unsigned long long), stream), "clear the fault");
    fault_is_clear_ = true;
  }
  kind_ = kind;
  return {fault_.as<unsigned long long>(), fault_seen_.as<uint32_t>()};
}

HopperAttention::SharedPages CodesOfPass::shared_pages(int held, int head_dim, cudaStream_t stream) {
  shared_pages_.reserve(HopperAttention::shared_page_bytes(held, head_dim), stream);
  const uint64_t bytes = HopperAttention::shared_counter_bytes(held);
  if (counters_.reserve(bytes, stream))
    check(cudaMemsetAsync(counters_.as<void>(), 0, bytes, stream), "clear attention's counters");
  return {.held = held, .pages = shared_pages_.as<void>(), .counters = counters_.as<uint32_t>()};
}

void CodesOfPass::forget_fault(cudaStream_t stream) {
  if (uint32_t* seen = fault_seen_.as<uint32_t>(); seen && *seen != 0) {
    *seen = 0;
    check(cudaMemsetAsync(fault_.as<void>(), 0xff, sizeof(unsigned long long), stream), "clear the fault");
  }
}

void CodesOfPass::require_finite(cudaStream_t stream) {
  volatile uint32_t* seen = fault_seen_.as<uint32_t>();
  if (!seen || *seen == 0) return;
  *seen = 0;
  unsigned long long packed = CodeFault::kNone;
  check(cudaMemcpyAsync(&packed, fault_.as<void>(), sizeof packed, cudaMemcpyDeviceToHost, stream), "fetch the fault");
  check(cudaMemsetAsync(fault_.as<void>(), 0xff, sizeof packed, stream), "clear the fault");
  check(cudaStreamSynchronize(stream), "fetch the fault");
  const CodeFault fault = CodeFault::of(packed);
  throw Error(ErrorKind::bad_input,
              str("position ", fault.position, ": the ", fault.side == 0 ? "key" : "value", " of head ", fault.kv_head,
                  " is not finite, so it has no ", to_string(kind_), " codes"));
}

bool CodesOfPass::provide_for_owns(const AttendParams& attend, const RowSet& set, cudaStream_t stream) {
  const KvLayer& kv = attend.kv;
  const bool fits = owns_.n_layers < owns_.most_layers && owns_.page_stride == kv.page_stride &&
                    owns_.rows == set.rows && owns_.n_rows == set.n_rows && owns_.n_kv_heads == kv.n_kv_heads &&
                    owns_.shape == page_shape(kv);
  if (fits && owns_.n_layers > 0) return false;
  store_owns(stream);
  const auto rows = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(set.n_rows)));
  const int64_t floats = rows * 2 * kv.n_kv_heads * kv.head_dim;
  // 32 layers of 8B's shapes are 16.8 MB at 64 rows; more rows have fewer layers a launch.
  const auto layers = static_cast<int>(std::clamp<int64_t>(kOwnFloats / floats, 1, kOwnLayers));
  const bool moved = own_memory_.reserve(static_cast<uint64_t>(layers * floats) * sizeof(float), stream);
  const auto [first, seen] = fault_place(kv.kind, stream);
  owns_ = {.layers = {},
           .most_layers = layers,
           .n_rows = set.n_rows,
           .n_kv_heads = kv.n_kv_heads,
           .page_stride = kv.page_stride,
           .shape = page_shape(kv),
           .rows = set.rows,
           .pages = attend.pages,
           .own = own_memory_.as<float>(),
           .layer_floats = floats,
           .fault = first,
           .fault_seen = seen};
  return moved;
}

float* CodesOfPass::place_of_owns(const AttendCodesParams& codes) {
  owns_.layers[owns_.n_layers] = {codes.attend.kv.data, codes.signs};
  return own_memory_.as<float>() + owns_.n_layers++ * owns_.layer_floats;
}

void CodesOfPass::store_owns(cudaStream_t stream) {
  if (owns_.n_layers > 0) store_own_codes(owns_, stream);
  owns_.n_layers = 0;
}

}  // namespace cuda

void CudaOps::store_owns() {
  if (!codes_.has_owns()) return;
  launch_waiting();
  codes_.store_owns(stream_);
}

void CudaOps::attend_codes(const cuda::AttendParams& attend, const cuda::RowSet& set) {
  const KvLayer& kv = attend.kv;
  cuda::AttendCodesParams codes{attend, cuda::page_shape(kv), pass_.exact(),
                                codes_.signs(kv, state_ == State::recording, stream_)};
  const bool is_fast = cuda::takes_code_singles(codes);
  if (is_fast) codes.attend.angles = take_rope(attend, set);
  launch_waiting();
  if (!is_fast) {
    if (set.reads_exactly)
      throw Error(ErrorKind::bug, "pages that all rows read exactly, beside codes of another kind");
    return cuda::attend_codes_plain(codes, set.rows, set.n_rows, stream_);
  }
  if (set.n_tiles > 0 && hopper_attention_->why_not().empty()) {
    // A block of this kernel takes a multiprocessor.
    const int held = std::max(1, gpu_.n_sms / options_.n_sharing);
    const auto shared =
        set.reads_codes ? codes_.shared_pages(held, kv.head_dim, stream_) : cuda::HopperAttention::SharedPages{};
    hopper_attention_->attend_codes(codes, set.tiles, set.n_tiles, shared, stream_);
  } else if (set.n_tiles > 0) {
    cuda::attend_code_tiles(codes, set.tiles, set.n_tiles, stream_);
  }
  if (set.n_single == 0) return;
  const int group = attend.n_heads / kv.n_kv_heads, blocks = cuda::n_head_blocks(attend);
  const int n_blocks = std::max(1, cuda::code_blocks_held(codes) / options_.n_sharing);
  const int held = std::max(1, n_blocks / blocks);
  const int rows = static_cast<int>(std::bit_ceil(static_cast<unsigned>(set.n_single)));
  const auto exact_page = static_cast<int64_t>(kv_page_bytes(KvKind::bf16, 1, kv.head_dim));
  // A row has one part at least, and no part is shorter than an exact page.
  const int exact_units = static_cast<int>((exact_page + codes.shape.bytes() - 1) / codes.shape.bytes());
  const int64_t units = std::bit_ceil(static_cast<uint64_t>(pages_bound(set))) + (kExactTail + 1) * exact_units;
  const int parts = static_cast<int>(
      std::min<int64_t>(cuda::kMostRounds * held + rows, rows * std::min<int64_t>(cuda::kMostParts, units)));
  const auto bytes =
      static_cast<uint64_t>(int64_t{parts} * blocks * cuda::kHeadsAtOnce * kv.head_dim / 4) * sizeof(cuda::ChunkPiece);
  if (codes_.sums.reserve(bytes, stream_)) {
    forget_recordings();
    cuda::check(cudaMemsetAsync(codes_.sums.as<cuda::ChunkPiece>(), 0xff, bytes, stream_), "clear attention's sums");
  }
  if (codes.attend.angles && codes_.provide_for_owns(attend, set, stream_)) forget_recordings();
  reserve(codes_.parts, int64_t{parts} * cuda::kRowPartBytes);
  cuda::CodeSinglesParams params{.codes = codes,
                                 .rows = set.singles,
                                 .n_rows = set.n_single,
                                 .group = group,
                                 .of_group = cuda::ceil_div(group, cuda::kHeadsAtOnce),
                                 .head_blocks = blocks,
                                 .held = held,
                                 .exact_units = exact_units,
                                 .n_blocks = n_blocks,
                                 .most_parts = parts,
                                 .sums = codes_.sums.as<cuda::ChunkPiece>(),
                                 .own = codes.attend.angles ? codes_.place_of_owns(codes) : nullptr,
                                 .parts = codes_.parts.as<cuda::RowPart>()};
  const cuda::CodesOfPass::Plan plan{params.parts, params.rows, params.n_rows, held, exact_units, parts};
  const bool is_planned = codes_.plan == plan;
  if (!is_planned) cuda::plan_code_parts(params, stream_);
  codes_.plan = plan;
  params.olds_hold = is_planned && pass_.all().n_tiles == 0;
  cuda::attend_code_singles(params, stream_);
}

}  // namespace firstlight
