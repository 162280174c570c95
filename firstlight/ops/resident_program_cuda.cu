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
  p.w = static_cast<const __nv_bfloat16*>(m.w);
  p.bias = m.bias;
  p.bias_is_bf16 = m.bias_dtype == DType::bf16;
  p.join = join;
  p.rows = m.rows;
  p.k = m.k;
  p.out = m.out;
  p.out_stride = m.out_stride;
  const bool pairs = join == ResidentJoin::silu;  // gate and up; else neighbours
  p.stride = pairs ? 8 : 16;
  p.per = p.n_units = ceil_div(m.n, p.stride);
  p.delta = pairs ? m.n : 8;
  p.limit = m.n;
  p.limit_delta = pairs ? m.n : 0;
  return p;
}

}  // namespace

ResidentProgram::ResidentProgram(const GpuShape& gpu, cudaStream_t stream) : gpu_(gpu) {
  memory_.reserve(kMostInstructions * sizeof(ResidentInstruction), stream);
}

bool ResidentProgram::takes(const KvLayer& kv) {
  return kv.kind == KvKind::bf16 && (kv.head_dim == 64 || kv.head_dim == 128);
}

const char* ResidentProgram::why() { return "an op that it has no instruction for comes between its products"; }

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
  for (Made& made : made_) {
    if (made.of == out) made.of = nullptr;
  }
  if (out == lost_) lost_ = nullptr;
  if (out == norm_.out.data) {
    norm_ = {};
  } else if (out == norm_.x.data) {
    lost_ = norm_.out.data;
    norm_ = {};
  }
}

void ResidentProgram::make_terms(const Made& made) {
  ResidentInstruction* last = list_.empty() ? nullptr : &list_.back();
  const auto* weights = static_cast<const __nv_bfloat16*>(made.weights);
  if (last && last->kind == ResidentInstruction::Kind::product) {
    ResidentProduct& p = last->product;
    const bool sums_squares = !weights || p.join == ResidentJoin::store || p.join == ResidentJoin::add;
    if (sums_squares && p.join != ResidentJoin::rope && !p.terms.data && p.out == made.of &&
        p.out_stride == made.stride && p.rows == made.rows && p.limit == made.terms.k) {
      p.terms = made.terms;
      p.weights = weights;
      return;
    }
  }
  if (last && last->kind == ResidentInstruction::Kind::attend && !weights) {
    AttendParams& a = last->attend.attend;
    if (!a.terms && a.out.data == made.of && a.out.stride == made.stride && last->attend.n_rows == made.rows &&
        a.out.cols == made.terms.k && int64_t{a.n_heads} * a.kv.head_dim == a.out.cols) {
      a.terms = made.terms.data;
      return;
    }
  }
  ResidentInstruction instruction;
  instruction.kind = ResidentInstruction::Kind::split;
  instruction.split = {made.of, made.stride, made.rows, made.terms, weights};
  list_.push_back(instruction);
}

ResidentTerms ResidentProgram::terms_of(const float* x, int64_t stride, int rows, int k, const ResidentNorm* norm) {
  const void* weights = norm ? norm->weight.data : nullptr;
  for (const Made& made : made_) {
    if (made.of == x && made.stride == stride && made.rows == rows && made.terms.k == k && made.weights == weights)
      return made.terms;
  }
  Made& made = made_[turn_ ^= 1];
  if (k > made.capacity) {
    const uint64_t bytes = uint64_t{kMatvecRows} * static_cast<uint64_t>(k) * 4;
    of_terms_.push_back(std::make_unique<DeviceScratch>());
    of_terms_.back()->reserve(bytes + kMatvecRows * static_cast<uint64_t>(ceil_div(k, 16)) * 4, nullptr);
    made.capacity = k;
    made.terms.data = of_terms_.back()->as<__nv_bfloat16>();
  }
  float* squares = reinterpret_cast<float*>(made.terms.data + int64_t{2} * kMatvecRows * made.capacity);
  made = {{made.terms.data, weights ? squares : nullptr, k}, made.capacity, x, stride, rows, weights};
  make_terms(made);
  return made.terms;
}

bool ResidentProgram::product(const MatvecParams& m, Join join) {
  came_late_ = came_late_ || launched_;
  const bool of_norm = norm_.out.data && m.x == norm_.out.data;
  const bool ok = can_take(2) && m.rows <= kMatvecRows && m.w_dtype == DType::bf16 && m.k % 8 == 0 && aligned(m.w) &&
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
    p.x = terms_of(norm_.x.data, norm_.x.stride, m.rows, m.k, &norm_);
    p.eps = norm_.eps;
    norm_taken_ = true;
  } else {
    p.x = terms_of(m.x, m.x_stride, m.rows, m.k, nullptr);
  }
  list_.push_back(instruction);
  wrote(m.out);
  return true;
}

bool ResidentProgram::rope(Matrix<float> qkv, int n_heads, const float2* angles, const RowOnDevice* rows,
                           const int32_t* pages, const KvLayer& kv) {
  if (list_.empty() || launched_ || list_.back().kind != ResidentInstruction::Kind::product) return false;
  ResidentProduct& p = list_.back().product;
  const bool ok = p.join == ResidentJoin::store && p.out == qkv.data && p.out_stride == qkv.stride &&
                  p.rows == qkv.rows && p.limit == qkv.cols && takes(kv) && !open_norm();
  if (!ok) return false;
  const int half = kv.head_dim / 2;
  p.join = ResidentJoin::rope;
  p.per = half / 8;
  p.n_units = (n_heads + 2 * kv.n_kv_heads) * p.per;
  p.step = kv.head_dim;
  p.stride = 8;
  p.delta = half;
  p.limit = INT_MAX;
  p.limit_delta = 0;
  p.angles = angles;
  p.on_device = rows;
  p.pages = pages;
  p.kv = kv;
  p.n_heads = n_heads;
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
