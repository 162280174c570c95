// SPDX-License-Identifier: Apache-2.0
// The CPU back end: shares the work of an op out to the pool's threads and calls the kernels of one instruction set.
#pragma once
#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "firstlight/ops/kernels.h"
#include "firstlight/ops/ops.h"

namespace firstlight {

/// Instruction sets that kernels exist for, each a superset of the one before.
enum class CpuLevel { baseline, avx2, avx512, avx512_bf16 };
inline constexpr CpuLevel kCpuLevels[] = {CpuLevel::baseline, CpuLevel::avx2, CpuLevel::avx512, CpuLevel::avx512_bf16};
std::string_view to_string(CpuLevel level) noexcept;
/// Whether this machine (and its operating system) can run them.
bool cpu_level_works(CpuLevel level) noexcept;
CpuLevel best_cpu_level() noexcept;
/// As make_cpu_ops(pool), at a level of the caller's choice; Error{unsupported} if the machine lacks it. `pool` must
/// outlive it.
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool, CpuLevel level);

/// Memory that only grows, aligned to a cache line; what it held is lost when it grows.
class Scratch {
 public:
  template <class T>
  T* reserve(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
    if (bytes > bytes_) {
      data_.reset();
      bytes_ = 0;
      data_.reset(std::aligned_alloc(64, bytes));
      if (!data_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> data_;
  size_t bytes_ = 0;
};

class CpuOps final : public Ops {
 public:
  CpuOps(ThreadPool& pool, CpuLevel level);
  std::string_view name() const override { return name_; }
  void embed(std::span<const int> ids, const Weight& table, int64_t first_row, Matrix<float> out) override;
  void rms_norm(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out) override;
  void matmul(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override;
  void matmul_add(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) override;
  void gate_up_silu(Matrix<const float> x, const Weight& gate_up, const Weight* bias, Matrix<float> out) override;
  void rope_and_store(Matrix<float> qkv, int n_heads, const Weight* q_norm, const Weight* k_norm, float eps,
                      std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans,
                      const KvLayer& kv) override;
  void attend(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
              Matrix<float> out) override;

 private:
  /// A block of up to 64 rows of one query head; or one row of a key/value head over a run of pages.
  struct AttentionItem {
    int32_t span = 0, head = 0;
    int64_t row = 0;   // within the span
    int64_t rows = 0;  // 0: a single row over pages
    int64_t page_begin = 0, page_end = 0;
    int64_t partial = 0;  // where its partial sums go, in floats
    int64_t n_parts = 0;  // of the first run: how many there are
    bool exact = false;   // beside codes: over the exact pages
  };

  struct PageRun {
    int64_t begin, end;
    bool exact;
  };

  /// fn(item, thread) for every item, handed out in order to whichever thread is free; on the caller alone if `alone`.
  template <class F>
  void share(int64_t n_items, bool alone, const F& fn) {
    if (alone || n_items <= 1 || pool_.n_threads() == 1) {
      for (int64_t i = 0; i < n_items; ++i) fn(i, 0);
      return;
    }
    std::atomic<int64_t> next{0};
    pool_.run([&](int thread) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n_items;) fn(i, thread);
    });
  }

  void multiply(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out, Epilogue epilogue);
  void multiply_few_rows(Product product);
  void multiply_many_rows(const Product& product);
  /// The weight's values as f32: where they lie, or widened into `scratch`. Null for null.
  const float* floats(const Weight* weight, Scratch& scratch) const;
  void prepare_angles(std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans);
  void list_items(std::span<const AttentionSpan> spans, int n_heads, const KvLayer& kv);
  void list_runs(int64_t pages, bool compressed);
  void encode_row(const float* keys_and_values, int64_t position, const AttentionSpan& span, const KvLayer& kv);
  void encode_queries(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
                      std::vector<AttentionJob>& jobs);
  void merge_rows(const std::vector<AttentionJob>& jobs, const KvLayer& kv, int n_heads);
  void add_means_of_values(std::span<const AttentionSpan> spans, int n_heads, const KvLayer& kv, Matrix<float> out);

  ThreadPool& pool_;
  const CpuKernels* kernels_;
  std::string name_;
  const turboquant::Codec* codec_;
  Scratch bias_, q_norm_, k_norm_, packed_, partials_, code_q_, code_unit_;
  std::vector<Scratch> of_thread_;

  // Angles of the last batch: every layer asks for the same.
  std::vector<int64_t> angle_positions_, wanted_positions_;
  std::vector<double> angle_frequencies_;
  std::vector<float> cos_, sin_;

  std::vector<AttentionItem> items_;
  std::vector<PageRun> runs_;
};

}  // namespace firstlight
