// SPDX-License-Identifier: Apache-2.0
// What becomes an instruction of a resident program, and which of the kernel's terms say it.
#include <climits>

#include "firstlight/ops/resident_cuda.cuh"

namespace firstlight::cuda {

namespace {

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
bool in_quads(const float* data, int64_t stride) { return aligned(data) && stride % 4 == 0; }

ResidentProduct plain_product(const MatvecParams& m, ResidentJoin join) {
  ResidentProduct p;
  p.x = m.x;
  p.x_stride = m.x_stride;
  p.w = static_cast<const __nv_bfloat16*>(m.w);
  p.bias = m.bias;
  p.bias_is_bf16 = m.bias_dtype == DType::bf16;
  p.join = join;
  p.rows = m.rows;
  p.k = m.k;
  p.out = m.out;
  p.out_stride = m.out_stride;
  const bool pairs = join == ResidentJoin::silu;  // gate and up; else neighbours
  p.per = p.n_units = ceil_div(m.n, pairs ? 16 : 32);
  p.stride = pairs ? 16 : 32;
  p.delta = pairs ? m.n : 16;
  p.limit = m.n;
  p.limit_delta = pairs ? m.n : 0;
  return p;
}

}  // namespace

ResidentProgram::ResidentProgram(const GpuShape& gpu, cudaStream_t stream) : gpu_(gpu) {
  memory_.reserve(kMostInstructions * sizeof(ResidentInstruction), stream);
}

const char* ResidentProgram::why() const { return "an op that it has no instruction for comes between its products"; }

bool ResidentProgram::norm(const ResidentNorm& norm) {
  const bool ok = can_take() && !open_norm() && norm.weight.dtype == DType::bf16 && aligned(norm.weight.data) &&
                  norm.x.rows <= kMatvecRows && norm.x.cols % 8 == 0 && in_quads(norm.x.data, norm.x.stride) &&
                  in_quads(norm.out.data, norm.out.stride) && norm.x.data != lost_;
  if (!ok) return false;
  wrote(norm.out.data);
  norm_ = norm;
  norm_taken_ = false;
  return true;
}

/// A matrix is told by its address: what shares memory with another shares its beginning.
void ResidentProgram::wrote(const float* out) {
  if (out == lost_) lost_ = nullptr;
  if (out == norm_.out.data) {
    norm_ = {};
  } else if (out == norm_.x.data) {
    lost_ = norm_.out.data;
    norm_ = {};
  }
}

bool ResidentProgram::product(const MatvecParams& m, Join join) {
  came_late_ = came_late_ || launched_;
  const bool of_norm = norm_.out.data && m.x == norm_.out.data;
  const bool ok = can_take() && m.rows <= kMatvecRows && m.w_dtype == DType::bf16 && m.k % 8 == 0 && aligned(m.w) &&
                  in_quads(m.x, m.x_stride) && m.x != lost_;
  if (!ok || (of_norm && (m.rows != norm_.x.rows || m.k != norm_.x.cols || m.x_stride != norm_.out.stride)))
    return false;
  // A norm that nobody has taken in must be computed before its x is written.
  if (open_norm() && !of_norm) return false;
  ResidentInstruction instruction;
  ResidentProduct& p = instruction.product;
  p = plain_product(m, join == Join::store ? ResidentJoin::store
                       : join == Join::add ? ResidentJoin::add
                                           : ResidentJoin::silu);
  if (of_norm) {
    p.x = norm_.x.data;
    p.x_stride = norm_.x.stride;
    p.norm = static_cast<const __nv_bfloat16*>(norm_.weight.data);
    p.eps = norm_.eps;
    norm_taken_ = true;
  }
  p.first = next_block_;
  next_block_ = (next_block_ + p.n_units) % gpu_.n_sms;
  list_.push_back(instruction);
  wrote(m.out);
  return true;
}

bool ResidentProgram::rope(Matrix<float> qkv, int n_heads, const float2* angles, const RowOnDevice* rows,
                           const int32_t* pages, const KvLayer& kv) {
  if (list_.empty() || launched_ || list_.back().kind != ResidentInstruction::Kind::product) return false;
  ResidentProduct& p = list_.back().product;
  const bool ok = p.join == ResidentJoin::store && p.out == qkv.data && p.out_stride == qkv.stride &&
                  p.rows == qkv.rows && p.limit == qkv.cols && kv.kind == KvKind::bf16 &&
                  (kv.head_dim == 64 || kv.head_dim == 128) && !open_norm();
  if (!ok) return false;
  const int before = p.n_units, half = kv.head_dim / 2;
  p.join = ResidentJoin::rope;
  p.per = half / 16;
  p.n_units = (n_heads + 2 * kv.n_kv_heads) * p.per;
  p.step = kv.head_dim;
  p.stride = 16;
  p.delta = half;
  p.limit = INT_MAX;
  p.limit_delta = 0;
  p.angles = angles;
  p.on_device = rows;
  p.pages = pages;
  p.kv = kv;
  p.n_heads = n_heads;
  next_block_ = (next_block_ + p.n_units - before % gpu_.n_sms + gpu_.n_sms) % gpu_.n_sms;
  return true;
}

bool ResidentProgram::attend(const SinglesParams& params) {
  const int head_dim = params.attend.kv.head_dim;
  const bool ok = can_take() && !list_.empty() && !open_norm() && params.n_rows <= kMatvecRows &&
                  (head_dim_ == 0 || head_dim_ == head_dim) && !params.attend.twin;
  if (!ok) return false;
  head_dim_ = head_dim;
  ResidentInstruction instruction;
  instruction.kind = ResidentInstruction::Kind::attend;
  instruction.attend = params;
  list_.push_back(instruction);
  wrote(params.attend.out.data);
  return true;
}

}  // namespace firstlight::cuda
