// SPDX-License-Identifier: Apache-2.0
// cuBLASLt thinks in columns: our row-major out [rows, n] is its [n, rows], w [n, k] its transposed A, x its B.
#include <dlfcn.h>

#include <bit>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cublaslt_cuda.cuh"

namespace firstlight::cuda {

namespace {

constexpr size_t kWorkspaceBytes = 32u << 20;  // what the library asks for on Hopper

template <class F>
void find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  if (!function) throw Error(ErrorKind::unsupported, str("cuBLASLt has no ", name));
}

}  // namespace

CublasLtApi CublasLtApi::open() {
  void* library = nullptr;
  std::string reasons;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    if ((library = dlopen(name, RTLD_NOW | RTLD_LOCAL))) break;
    reasons += str(reasons.empty() ? "" : "; ", dlerror());
  }
  if (!library) throw Error(ErrorKind::not_found, reasons);
  CublasLtApi api;
  find(library, "cublasLtCreate", api.create);
  find(library, "cublasLtDestroy", api.destroy);
  find(library, "cublasLtMatmul", api.matmul);
  find(library, "cublasLtMatmulDescCreate", api.desc_create);
  find(library, "cublasLtMatmulDescDestroy", api.desc_destroy);
  find(library, "cublasLtMatmulDescSetAttribute", api.desc_set);
  find(library, "cublasLtMatrixLayoutCreate", api.layout_create);
  find(library, "cublasLtMatrixLayoutDestroy", api.layout_destroy);
  find(library, "cublasLtMatmulPreferenceCreate", api.preference_create);
  find(library, "cublasLtMatmulPreferenceDestroy", api.preference_destroy);
  find(library, "cublasLtMatmulPreferenceSetAttribute", api.preference_set);
  find(library, "cublasLtMatmulAlgoGetHeuristic", api.heuristic);
  return api;
}

struct CublasLt::Layouts {
  const CublasLtApi& lt;
  void *w = nullptr, *x = nullptr, *out = nullptr;
  Layouts(const CublasLt& library, const LtProduct& p) : lt(library.lt_) {
    const auto make = [&](void*& layout, int type, int64_t rows, int64_t cols, int64_t ld) {
      library.check(lt.layout_create(&layout, type, static_cast<uint64_t>(rows), static_cast<uint64_t>(cols), ld),
                    "describe a matrix");
    };
    make(w, CublasLtApi::kBf16, p.k, p.n, p.k);
    make(x, CublasLtApi::kBf16, p.k, p.rows, p.x_stride);
    make(out, CublasLtApi::kF32, p.n, p.rows, p.out_stride);
  }
  Layouts(const Layouts&) = delete;
  ~Layouts() {
    for (void* layout : {w, x, out}) {
      if (layout) lt.layout_destroy(layout);
    }
  }
};

CublasLt::~CublasLt() {
  if (loading_.joinable()) loading_.join();
  if (preference_) lt_.preference_destroy(preference_);
  if (operation_) lt_.desc_destroy(operation_);
  if (handle_) lt_.destroy(handle_);
  cudaFree(workspace_);
}

void CublasLt::check(int status, const char* what) const {
  if (status != 0) throw Error(ErrorKind::device, str("cuBLASLt: ", what, ": status ", status));
}

void CublasLt::start_loading() {
  if (asked_) return;
  asked_ = true;
  loading_ = start_thread("cuBLASLt", [this] { load(); });
}

bool CublasLt::ready() {
  start_loading();
  if (loading_.joinable()) loading_.join();
  return why_.empty();
}

void CublasLt::load() noexcept {
  try {
    cuda::check(cudaSetDevice(device_index_), "choose the GPU for cuBLASLt");
    open();
    warm_up();
  } catch (const std::exception& error) {
    why_ = error.what();
  }
}

void CublasLt::open() {
  lt_ = CublasLtApi::open();
  check(lt_.create(&handle_), "create");
  check(lt_.desc_create(&operation_, CublasLtApi::kComputeF32, CublasLtApi::kF32), "describe the product");
  const int transposed = CublasLtApi::kTransposed;
  check(lt_.desc_set(operation_, CublasLtApi::kTransposeA, &transposed, sizeof transposed), "transpose w");
  check(lt_.preference_create(&preference_), "create preferences");
  check(lt_.preference_set(preference_, CublasLtApi::kMostWorkspace, &kWorkspaceBytes, sizeof kWorkspaceBytes),
        "bound the workspace");
  const uint32_t alignment = 16;  // weights lie where their file put them
  for (const int which :
       {CublasLtApi::kAlignmentA, CublasLtApi::kAlignmentB, CublasLtApi::kAlignmentC, CublasLtApi::kAlignmentD}) {
    check(lt_.preference_set(preference_, which, &alignment, sizeof alignment), "state the alignment");
  }
  cuda::check(cudaMalloc(&workspace_, kWorkspaceBytes), "allocate cuBLASLt's workspace");
}

// The first product loads the library's kernels; nobody needs its result.
void CublasLt::warm_up() {
  constexpr int64_t kN = 512;
  cudaStream_t stream = nullptr;
  void* operands = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "create a stream for cuBLASLt");
  cudaError_t code = cudaMalloc(&operands, kN * kN * 8);
  if (code == cudaSuccess) code = cudaMemsetAsync(operands, 0, kN * kN * 8, stream);
  if (code == cudaSuccess) {
    std::byte* at = static_cast<std::byte*>(operands);
    multiply({.x = at,
              .x_stride = kN,
              .rows = kN,
              .w = at + kN * kN * 2,
              .n = kN,
              .k = kN,
              .out = reinterpret_cast<float*>(at + kN * kN * 4),
              .out_stride = kN},
             stream);
    code = cudaStreamSynchronize(stream);
  }
  cudaFree(operands);
  cudaStreamDestroy(stream);
  cuda::check(code, "first product of cuBLASLt");
}

const CublasLtApi::Algorithm& CublasLt::algorithm(const LtProduct& p) {
  const Shape shape{p.n, p.k, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(p.rows))), p.out_stride, p.add};
  const auto known = algorithms_.find(shape);
  if (known != algorithms_.end()) return known->second;
  CublasLtApi::Heuristic result{};
  int found = 0;
  LtProduct fullest = p;  // not this one: the choice must not depend on which number of rows came first
  fullest.rows = shape.rows_below;
  const Layouts layouts(*this, fullest);
  check(lt_.heuristic(handle_, operation_, layouts.w, layouts.x, layouts.out, layouts.out, preference_, 1, &result,
                      &found),
        "choose an algorithm");
  if (found == 0)
    throw Error(ErrorKind::device, str("cuBLASLt has no algorithm for [", p.rows, ", ", p.n, ", ", p.k, "]"));
  return algorithms_.emplace(shape, result.algorithm).first->second;
}

void CublasLt::multiply(const LtProduct& p, cudaStream_t stream) {
  const Layouts layouts(*this, p);
  const float one = 1, beta = p.add ? 1.0f : 0.0f;
  check(lt_.matmul(handle_, operation_, &one, p.w, layouts.w, p.x, layouts.x, &beta, p.out, layouts.out, p.out,
                   layouts.out, &algorithm(p), workspace_, kWorkspaceBytes, stream),
        "multiply");
}

}  // namespace firstlight::cuda
