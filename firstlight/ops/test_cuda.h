// SPDX-License-Identifier: Apache-2.0
// For tests only: a GPU's Ops, and tensors of the oracle's brought to its memory and back.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"
#include "firstlight/ops/cuda_ops.h"
#include "firstlight/ops/reference.h"

namespace firstlight::reference {

inline constexpr Device kGpu{Device::Kind::cuda, 0};

/// Bytes in the GPU's memory, 64 more before and after, which nobody may change.
class OnGpu {
 public:
  OnGpu(const void* from, uint64_t size) : size_(size), buffer_(kGpu, size + 2 * kGuard) {
    std::vector<std::byte> bytes(size + 2 * kGuard, std::byte{0xa5});
    if (size > 0) std::memcpy(bytes.data() + kGuard, from, size);
    copy(buffer_.data(), kGpu, bytes.data(), {}, bytes.size());
  }
  template <class T>
  explicit OnGpu(const std::vector<T>& from) : OnGpu(from.data(), from.size() * sizeof(T)) {}
  std::byte* data() const { return buffer_.data() + kGuard; }
  void fetch(void* to) const {
    std::vector<std::byte> bytes(size_ + 2 * kGuard);
    copy(bytes.data(), {}, buffer_.data(), kGpu, bytes.size());
    for (uint64_t i = 0; i < kGuard; ++i) {
      ASSERT_EQ(bytes[i], std::byte{0xa5}) << "byte " << kGuard - i << " before the matrix was written";
      ASSERT_EQ(bytes[kGuard + size_ + i], std::byte{0xa5}) << "byte " << i << " after the matrix was written";
    }
    std::memcpy(to, bytes.data() + kGuard, size_);
  }

 private:
  static constexpr uint64_t kGuard = 256;
  uint64_t size_;
  Buffer buffer_;
};

/// A tensor of the oracle's on the GPU.
struct GpuTensor {
  Tensor host;
  OnGpu memory;
  explicit GpuTensor(const Tensor& from)
      : host(from), memory(from.dtype == DType::bf16 ? OnGpu(from.bf16) : OnGpu(from.f32)) {}
  Weight weight() const { return {memory.data(), host.dtype, host.rows, host.cols}; }
  Matrix<float> matrix() const { return {reinterpret_cast<float*>(memory.data()), host.rows, host.cols, host.cols}; }
  Matrix<const float> view() const {
    return {reinterpret_cast<float*>(memory.data()), host.rows, host.cols, host.cols};
  }
  /// As it is now.
  const Tensor& fetch() {
    memory.fetch(host.f32.data());
    return host;
  }
};

class WithGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU to test on: " << gpus().why_none;
    if (!shared_) shared_ = make_cuda_ops(kGpu);
    ops_ = shared_.get();
    ops_->begin({}, false);
  }
  void TearDown() override {
    if (ops_) ops_->end();
  }
  static void TearDownTestSuite() {
    shared_.reset();
    of_any_.reset();
  }
  /// From here on `ops_` computes as on a GPU that has no kernels of its own.
  void use_any() {
    if (!ops_) return;
    ops_->end();
    if (!of_any_) of_any_ = make_cuda_ops(kGpu, {.any_gpu = true});
    ops_ = of_any_.get();
    ops_->begin({}, false);
  }
  /// A new pass: nothing of what the last one knew holds.
  void next(const PassRows& rows = {}) {
    ops_->end();
    ops_->begin(rows, false);
  }
  Ops* ops_ = nullptr;

 private:
  static inline std::unique_ptr<Ops> shared_, of_any_;
};

/// Once with the GPU's own kernels, once with those that any has.
template <class Fixture>
class OfBothKinds : public Fixture, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    Fixture::SetUp();
    if (GetParam()) use_any();
  }
  using Fixture::use_any;
};
inline std::string kind_name(const testing::TestParamInfo<bool>& info) { return info.param ? "OfAnyGpu" : "OfThisGpu"; }

}  // namespace firstlight::reference
