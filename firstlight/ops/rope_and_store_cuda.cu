// SPDX-License-Identifier: Apache-2.0
// Rotation of q and k, and the store of k and v into pages: a warp a head of a row. Angles are f32 products of f32
// frequencies and positions, as the models were trained with; their cosines are computed in double, once a pass.
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"
#include "firstlight/ops/cuda_ops.cuh"
#include "firstlight/ops/rope_cuda.cuh"

namespace firstlight {

namespace {

constexpr int kWarps = 4;

__global__ void angles_kernel(const cuda::RowOnDevice* rows, int64_t n, int half, const double* frequencies,
                              float2* angles) {
  cuda::wait_for_predecessor();
  cuda::let_successor_start();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float position = static_cast<float>(rows[i / half].position);
  const float angle = __fmul_rn(static_cast<float>(frequencies[i % half]), position);
  double sine, cosine;
  sincos(static_cast<double>(angle), &sine, &cosine);
  angles[i] = make_float2(static_cast<float>(cosine), static_cast<float>(sine));
}

__device__ float norm_weight(const void* weights, bool is_bf16, int i) {
  return is_bf16 ? cuda::widen(static_cast<const __nv_bfloat16*>(weights)[i]) : static_cast<const float*>(weights)[i];
}

template <class T>
__global__ void rope_and_store_kernel(const __grid_constant__ cuda::RopeParams p) {
  cuda::let_successor_start();
  cuda::wait_for_predecessor();
  const int d = p.kv.head_dim, half = d / 2, lane = static_cast<int>(threadIdx.x) % 32;
  const int n_rotated = p.n_heads + p.kv.n_kv_heads, heads = n_rotated + p.kv.n_kv_heads;
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (item >= int64_t{p.n_rows} * heads) return;
  const cuda::RowOnDevice row = p.rows[item / heads];
  const int h = static_cast<int>(item % heads);
  float* head = p.qkv.data + row.row * p.qkv.stride + int64_t{h} * d;
  const bool is_query = h < p.n_heads;
  T* slot = nullptr;
  if (!is_query) {  // heads of k, then of v, as the pages have them
    const int64_t page = p.pages[row.pages + row.position / kPageTokens];
    slot = reinterpret_cast<T*>(p.kv.data + static_cast<uint64_t>(page) * p.kv.page_stride) +
           (int64_t{h - p.n_heads} * kPageTokens + row.position % kPageTokens) * d;
  }
  if (h >= n_rotated) {
    for (int i = lane; i < d; i += 32) cuda::narrow(head[i], slot + i);
    return;
  }
  const void* norm = is_query ? p.q_norm : p.k_norm;
  const bool norm_bf16 = is_query ? p.q_norm_bf16 : p.k_norm_bf16;
  float scale = 1;
  if (norm) {
    float squares = 0;
    for (int i = lane; i < d; i += 32) squares += head[i] * head[i];
    scale = rsqrtf(cuda::warp_sum(squares) / static_cast<float>(d) + p.eps);
  }
  for (int i = lane; i < half; i += 32) {
    float a = head[i], b = head[half + i];
    if (norm) {
      a *= scale * norm_weight(norm, norm_bf16, i);
      b *= scale * norm_weight(norm, norm_bf16, half + i);
    }
    const float2 angle = p.angles[int64_t{row.angle} * half + i];
    const float2 turned = cuda::rotate(a, b, angle);
    head[i] = turned.x;
    head[half + i] = turned.y;
    if (slot) {
      cuda::narrow(turned.x, slot + i);
      cuda::narrow(turned.y, slot + half + i);
    }
  }
}

}  // namespace

const float2* CudaOps::angles(std::span<const double> inverse_frequencies, const cuda::RowSet& set) {
  const size_t which = &set == &pass_.all() ? 0 : 1;
  const bool same = std::equal(inverse_frequencies.begin(), inverse_frequencies.end(), rope_.frequencies.begin(),
                               rope_.frequencies.end());
  cuda::DeviceScratch& memory = rope_.angle_memory[which];
  if (same && rope_.has_angles[which]) return memory.as<float2>();
  const int half = static_cast<int>(inverse_frequencies.size());
  const int64_t n = int64_t{set.n_rows} * half;
  if (!same) {
    if (state_ == State::recording) throw Error(ErrorKind::bug, "the frequencies of a pass that is recorded are new");
    rope_.has_angles[0] = rope_.has_angles[1] = false;
    rope_.frequencies.assign(inverse_frequencies.begin(), inverse_frequencies.end());
    reserve(rope_.frequency_memory, half * 8);
    forget_recordings();
    cuda::check(cudaMemcpyAsync(rope_.frequency_memory.as<double>(), rope_.frequencies.data(),
                                rope_.frequencies.size() * 8, cudaMemcpyHostToDevice, stream_),
                "send frequencies");
  }
  reserve(memory, n * 8);
  cuda::launch("angles", angles_kernel, dim3(static_cast<unsigned>((n + 127) / 128)), 128, 0, stream_, set.rows, n,
               half, rope_.frequency_memory.as<double>(), memory.as<float2>());
  rope_.has_angles[which] = true;
  return memory.as<float2>();
}

void CudaOps::rope_and_store(Matrix<float> qkv, int n_heads, const Weight* q_norm, const Weight* k_norm, float eps,
                             std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans,
                             const KvLayer& kv) {
  if (kv.head_dim % 2 != 0 || static_cast<int64_t>(inverse_frequencies.size()) != kv.head_dim / 2 ||
      qkv.cols != (n_heads + 2 * int64_t{kv.n_kv_heads}) * kv.head_dim) {
    throw Error(ErrorKind::bug,
                str("rotation of ", n_heads, " + 2 * ", kv.n_kv_heads, " heads of ", kv.head_dim, " with ",
                    inverse_frequencies.size(), " frequencies: rows are ", qkv.cols, " wide"));
  }
  const cuda::RowSet& set = pass_.find(spans);
  if (set.n_rows == 0) return;
  const auto data = [](const Weight* weight) { return weight ? weight->data : nullptr; };
  const auto is_bf16 = [](const Weight* weight) { return weight && weight->dtype == DType::bf16; };
  if (rope_.waiting) launch_waiting();  // its angles' memory may be reserved anew
  cuda::RopeParams params{.qkv = qkv,
                          .n_rows = set.n_rows,
                          .n_single = set.n_single,
                          .n_heads = n_heads,
                          .q_norm = data(q_norm),
                          .k_norm = data(k_norm),
                          .q_norm_bf16 = is_bf16(q_norm),
                          .k_norm_bf16 = is_bf16(k_norm),
                          .eps = eps,
                          .angles = angles(inverse_frequencies, set),
                          .rows = set.rows,
                          .pages = pass_.pages(),
                          .kv = kv};
  if (!is_compressed(kv.kind) && kv.means)
    throw Error(ErrorKind::bug, str("means of ", to_string(kv.kind), " pages: a GPU centres codes alone"));
  launch_waiting();
  written(qkv);
  rope_.waiting = params;
  if (!set.alone || q_norm || k_norm) launch_waiting();
}

void CudaOps::launch_rope(const cuda::RopeParams& params) {
  const KvLayer& kv = params.kv;
  if (is_compressed(kv.kind)) {
    const auto [first, seen] = codes_.fault_place(kv.kind, stream_);
    const cuda::StoreCodesParams codes{.rope = params,
                                       .exact = pass_.exact(),
                                       .shape = cuda::page_shape(kv),
                                       .signs = codes_.signs(kv, state_ == State::recording, stream_),
                                       .fault = first,
                                       .fault_seen = seen};
    return cuda::takes_quads(codes) ? cuda::rope_and_store_quads(codes, stream_)
                                    : cuda::rope_and_store_codes(codes, stream_);
  }
  const int64_t items = int64_t{params.n_rows} * (params.n_heads + 2 * kv.n_kv_heads);
  cuda::launch("rope_and_store",
               kv.kind == KvKind::bf16 ? rope_and_store_kernel<__nv_bfloat16> : rope_and_store_kernel<float>,
               dim3(static_cast<unsigned>((items + kWarps - 1) / kWarps)), kWarps * 32, 0, stream_, params);
}

const float2* CudaOps::take_rope(const cuda::AttendParams& attend, const cuda::RowSet& set) {
  if (!rope_.waiting) return nullptr;
  const cuda::RopeParams& rope = *rope_.waiting;
  const KvLayer &kv = attend.kv, &stored = rope.kv;
  const bool same = attend.q.data == rope.qkv.data && attend.q.stride == rope.qkv.stride &&
                    attend.n_heads == rope.n_heads && set.rows == rope.rows && set.n_rows == rope.n_rows &&
                    kv.data == stored.data && kv.page_stride == stored.page_stride && kv.kind == stored.kind &&
                    kv.n_kv_heads == stored.n_kv_heads && kv.head_dim == stored.head_dim && kv.exact == stored.exact &&
                    kv.exact_stride == stored.exact_stride && kv.signs == stored.signs && kv.means == stored.means;
  if (!same) {
    launch_waiting();
    return nullptr;
  }
  const float2* angles_of_rows = rope.angles;
  rope_.waiting.reset();
  return angles_of_rows;
}

}  // namespace firstlight
