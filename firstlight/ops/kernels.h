// SPDX-License-Identifier: Apache-2.0
// The inner loops of the CPU back end: one text (kernels-inl.h), compiled once an instruction set, chosen at run time
// through a table of functions. Nothing here knows threads: a call does one piece of work on the calling thread.
#pragma once
#include <cstdint>
#include <string_view>

#include "firstlight/ops/ops.h"
#include "firstlight/quant/turboquant_kernels.h"

namespace firstlight {

/// What happens to a product's sums: out = v; out += v; out = silu(v of the gate half) * (v of the up half).
enum class Epilogue { store, add, silu };

/// out[rows, n] = x[rows, k] w[n_w, k]ᵀ + bias[n_w]; n_w = n, or 2 n for silu: gate rows, then up rows.
struct Product {
  const float* x = nullptr;
  int64_t x_stride = 0, rows = 0;
  const void* w = nullptr;
  bool w_is_bf16 = false;
  int64_t k = 0, n = 0;
  const float* bias = nullptr;  ///< may be null
  float* out = nullptr;
  int64_t out_stride = 0;
  Epilogue epilogue = Epilogue::store;
};

/// Queries of one span against its pages. q and out point at the span's first row, first head. A job over codes has its
/// queries also rotated and as integers, in the order of the kernels' expanded keys, and a job over the exact pages.
struct AttentionJob {
  const float* q = nullptr;
  int64_t q_stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int group = 1;  ///< query heads of a key/value head
  const AttentionSpan* span = nullptr;
  const KvLayer* kv = nullptr;
  const int16_t* code_q = nullptr;   ///< [rows][n_heads][head_dim], from the span's first row on
  const float* code_unit = nullptr;  ///< [rows][n_heads]: what one unit of code_q is worth
  int n_heads = 0;                   ///< of code_q and code_unit
  const turboquant::Codec* codec = nullptr;
  const AttentionJob* exact = nullptr;
};

/// One row of qkv to normalise, rotate and store. cos and sin: head_dim / 2 values each, of this row's position.
struct RopeRow {
  float* qkv = nullptr;
  int n_heads = 0;
  const float *q_norm = nullptr, *k_norm = nullptr;  ///< head_dim weights, or null
  float eps = 0;
  const float *cos = nullptr, *sin = nullptr;
  const float* means = nullptr;  ///< as KvLayer's
  int32_t page = 0;
  int slot = 0;
};

/// Rows that one packed block holds.
inline constexpr int64_t kBlockRows = 64;

struct CpuKernels {
  std::string_view name;

  /// 1–7 rows. Computes columns [n_begin, n_end) of out; w is read once, bf16 weights are widened, all sums are f32
  /// fused sums over lanes of k: the result of a row depends on nothing but the row.
  void (*matvec)(const Product&, int64_t n_begin, int64_t n_end);

  /// 8 rows and more. Bytes of one packed block of 64 rows of x, and of a thread's scratch (64-byte aligned, both).
  int64_t (*packed_bytes)(const Product&);
  int64_t (*matmul_scratch_bytes)(const Product&);
  /// Packs rows [64 b, 64 b + 64) of x; with bf16 dot products the activations are rounded to bf16 here.
  void (*pack)(const Product&, int64_t block, void* packed);
  /// Columns [n_begin, n_end) of the block's rows; each sum runs over k in order, whatever the block holds beside it.
  void (*matmul)(const Product&, int64_t block, const void* packed, int64_t n_begin, int64_t n_end, void* scratch);

  /// Attention of up to 64 rows [row, row + rows) of the span, one head; over codes all rows lie in one page.
  int64_t (*attend_scratch_bytes)(int head_dim);
  void (*attend_block)(const AttentionJob&, int head, int64_t row, int64_t rows, void* scratch);
  /// Attention of one row, the `group` heads of one key/value head, over pages [page_begin, page_end): for each head
  /// head_dim sums not yet divided, the maximum, the divisor (head_dim + 2 floats) into `partial`. Sums in f32.
  void (*attend_row)(const AttentionJob&, int64_t row, int kv_head, int64_t page_begin, int64_t page_end,
                     float* partial);
  /// Over codes, the exact integers Σ level * code_q of one row and query head with the 64 keys of a page.
  void (*code_products)(const AttentionJob&, int64_t row, int head, int64_t page, int32_t* to);
  /// Merges n_parts partials of one head, `part_stride` floats apart, in order.
  void (*merge_parts)(const float* partial, int64_t n_parts, int64_t part_stride, int head_dim, float* out);

  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*rope_and_store)(const RopeRow&, const KvLayer&);
  void (*widen)(const uint16_t* x, int64_t n, float* out);
  void (*add)(const float* y, int64_t n, float* x);
};

/// Null where the compiler's target has no such instructions. Whether the machine has them: cpu_level_works().
const CpuKernels* kernels_baseline();
const CpuKernels* kernels_avx2();
const CpuKernels* kernels_avx512();
const CpuKernels* kernels_avx512_bf16();

}  // namespace firstlight
