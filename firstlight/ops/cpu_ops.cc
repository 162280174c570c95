// SPDX-License-Identifier: Apache-2.0
#include "firstlight/ops/cpu_ops.h"

#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/quant/turboquant.h"

namespace firstlight {

std::string_view to_string(CpuLevel level) noexcept {
  switch (level) {
    case CpuLevel::baseline:
      return "baseline";
    case CpuLevel::avx2:
      return "avx2";
    case CpuLevel::avx512:
      return "avx512";
    case CpuLevel::avx512_bf16:
      return "avx512_bf16";
  }
  return "?";
}

bool cpu_level_works(CpuLevel level) noexcept {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (level) {
    case CpuLevel::baseline:
      return true;
    case CpuLevel::avx2:
      return avx2;
    case CpuLevel::avx512:
      return avx512;
    case CpuLevel::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return level == CpuLevel::baseline;
#endif
}

CpuLevel best_cpu_level() noexcept {
  CpuLevel best = CpuLevel::baseline;
  for (const CpuLevel level : kCpuLevels) {
    if (cpu_level_works(level)) best = level;
  }
  return best;
}

namespace {

const CpuKernels* kernels_of(CpuLevel level) {
  if (!cpu_level_works(level)) {
    throw Error(ErrorKind::unsupported, str("this processor has no ", to_string(level),
                                            " instructions; its best level is ", to_string(best_cpu_level())));
  }
  switch (level) {
    case CpuLevel::baseline:
      return kernels_baseline();
    case CpuLevel::avx2:
      return kernels_avx2();
    case CpuLevel::avx512:
      return kernels_avx512();
    case CpuLevel::avx512_bf16:
      return kernels_avx512_bf16();
  }
  return kernels_baseline();
}

/// The codec's variants are the same to the bit: a level of the caller's choice gets its own all the same.
const turboquant::Codec* codec_of(CpuLevel level) {
  const auto all = turboquant::codecs();
  const size_t wanted = level == CpuLevel::baseline ? 0 : level == CpuLevel::avx2 ? 1 : 2;
  return all[std::min(wanted, all.size() - 1)];
}

}  // namespace

CpuOps::CpuOps(ThreadPool& pool, CpuLevel level)
    : pool_(pool),
      kernels_(kernels_of(level)),
      name_(str("cpu: ", kernels_->name, ", ", pool.n_threads(), pool.n_threads() == 1 ? " thread" : " threads")),
      codec_(codec_of(level)),
      of_thread_(static_cast<size_t>(pool.n_threads())) {}

const float* CpuOps::floats(const Weight* weight, Scratch& scratch) const {
  if (!weight || !weight->data) return nullptr;
  if (weight->dtype == DType::f32) return static_cast<const float*>(weight->data);
  if (weight->dtype != DType::bf16) {
    throw Error(ErrorKind::unsupported,
                str("the CPU back end computes with bf16 and f32 weights, found ", to_string(weight->dtype)));
  }
  const int64_t n = weight->rows * weight->cols;
  float* wide = scratch.reserve<float>(n);
  kernels_->widen(static_cast<const uint16_t*>(weight->data), n, wide);
  return wide;
}

std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool, CpuLevel level) { return std::make_unique<CpuOps>(pool, level); }
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool) { return make_cpu_ops(pool, best_cpu_level()); }

}  // namespace firstlight
