// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a Llama layer, on one device: the list. Op x is x_cpu.cc (CpuOps::x), later x_cuda.cu, and
// x_test.cc.
#pragma once
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string_view>

#include "firstlight/base/thread_pool.h"
#include "firstlight/kv/kv_kind.h"
#include "firstlight/ops/matrix.h"

namespace firstlight {

/// A run of consecutive tokens of one sequence within the batch's rows.
struct AttentionSpan {
  int64_t row_begin = 0;  ///< first row in q, and in out
  int64_t n_rows = 0;
  int64_t position = 0;            ///< position of the first row; keys [0, position + i] are visible to row i
  const int32_t* pages = nullptr;  ///< the sequence's page numbers; no span writes keys that another one reads
  const int32_t* exact = nullptr;  ///< beside codes: the exact page of each page, where is_exact() asks for one
  /// Beside codes: from this page on all rows read exactly, whatever is_exact() says, if there are 8 rows or more. A
  /// GPU knows that of codes of 4 and 8 bits and heads of 64 and 128 alone (else Error{bug}).
  int64_t exact_from = std::numeric_limits<int32_t>::max();
};

namespace turboquant {
struct Signs;
}

/// One layer's keys and values of this rank: page p at p * page_stride, [2 (k, v), n_kv_heads, 64 slots, head_dim] each
/// page; a kind of codes has [n_kv_heads] pages of quant/turboquant_page.h, and exact pages in bf16 beside them.
struct KvLayer {
  std::byte* data = nullptr;
  uint64_t page_stride = 0;  ///< bytes from page to page of this layer
  KvKind kind = KvKind::bf16;
  int n_kv_heads = 0, head_dim = 0;
  std::byte* exact = nullptr;  ///< of a kind of codes: the exact pages
  uint64_t exact_stride = 0;
  const turboquant::Signs* signs = nullptr;  ///< of a kind of codes: [n_kv_heads][key, value]
  /// [k, v][n_kv_heads][head_dim] that all pages hold keys and values without, on the device of `data`; null: nothing
  /// is subtracted. On a GPU of codes alone.
  const float* means = nullptr;
  /// The exact pages as a layer of their own.
  KvLayer exact_layer() const { return {exact, exact_stride, KvKind::bf16, n_kv_heads, head_dim}; }
};

/// The largest of a row of logits, the lowest id among equals.
struct Likeliest {
  float logit = 0;
  int id = -1;  ///< -1: some logit is not a number (then so is `logit`), or the largest is not finite
};
/// Of one row, ids counted from first_id; no logits at all: minus infinity.
Likeliest likeliest_of(std::span<const float> logits, int first_id);

/// Rows from which on the CPU takes its second class of kernels (matmul(), attend()).
inline constexpr int64_t kMatrixRows = 8;

struct Draw;  // sampling.h

/// What one forward pass works on; views into what the caller keeps until end().
struct PassRows {
  std::span<const int> ids;               ///< a token a row
  std::span<const AttentionSpan> spans;   ///< cover the rows in order
  std::span<const AttentionSpan> wanted;  ///< the parts of spans whose logits are wanted, in order
  /// Where the pass's logits() will write, all of it or a part; or its likeliest(); or what its draw() will draw, and
  /// where to. Host memory. A pass that states none is not recorded.
  Matrix<float> logits = {};
  std::span<Likeliest> likeliest = {};
  std::span<const Draw> draws = {};
  std::span<int> drawn = {};
  /// Of a rank among several: blocks until all ranks have said a number, returns the least. They replay a recorded pass
  /// together or not at all. None: this rank is alone.
  std::function<int(int)> least_of_ranks = {};
};

/// Of a rank that holds a part of the vocabulary: how its draws come to see all of it.
struct LogitsOfRanks {
  int64_t first_id = 0;      ///< of this rank's part
  Matrix<float> whole = {};  ///< [rows at once, vocab_size], contiguous, the rank's own; aligned to 16 bytes
  /// Adds up all ranks' `whole`, of which each has filled its columns and left zeros in the others, behind what is
  /// queued. All ranks call it, in step.
  std::function<void(Matrix<float> whole)> sum = {};
};

/// Calls are ordered on one stream (CPU: they return when done; all of `pool`'s threads work). Activations are f32.
/// Matrices and weights lie on the device of the Ops; ids, spans and positions on the host.
class Ops {
 public:
  virtual ~Ops() = default;
  virtual std::string_view name() const = 0;  ///< "cpu: avx512_bf16 …"

  /// Begins a forward pass. Until end(), embed() gets these ids, and rope_and_store(), attend() and keep_rows() get
  /// these spans or these wanted ones (the same objects, so that a GPU sends them once). True: the pass is one that the
  /// device has recorded, with the same addresses, and all of it is under way; the caller goes straight to end(). All
  /// weights must be there for a pass to be recorded: `weights_ready` says so.
  virtual bool begin(const PassRows& rows, bool weights_ready) {
    (void)rows, (void)weights_ready;
    return false;
  }
  /// Blocks until the pass is done and logits() are where they were wanted.
  virtual void end() {}
  /// out = x wᵀ; `out` is in host memory and complete after end().
  virtual void logits(Matrix<const float> x, const Weight& w, Matrix<float> out) { matmul(x, w, nullptr, out); }
  /// out[i] = the likeliest of row i of x wᵀ, ids counted from first_id; in host memory and complete after end(). What
  /// greedy sampling needs of logits.
  virtual void likeliest(Matrix<const float> x, const Weight& w, int first_id, std::span<Likeliest> out);
  /// out[i] = what draws[i] says of row i of x wᵀ (draw_from(), to the bit); both are the pass's. In host memory and
  /// complete after end(). w has the whole vocabulary, or a GPU's rank has its part of it and `ranks` (else null).
  virtual void draw(Matrix<const float> x, const Weight& w, std::span<const Draw> draws, std::span<int> out,
                    const LogitsOfRanks* ranks);
  /// Moves the rows of `spans` to the front of m, in order, and leaves m these rows only. Here: in host memory.
  virtual void keep_rows(std::span<const AttentionSpan> spans, Matrix<float>& m);

  /// out[i] = table[ids[i] − first_row], zeros for ids outside [first_row, first_row + table.rows).
  virtual void embed(std::span<const int> ids, const Weight& table, int64_t first_row, Matrix<float> out) = 0;
  /// out = x / sqrt(mean(x²) + eps) * weight[cols].
  virtual void rms_norm(Matrix<const float> x, const Weight& weight, float eps, Matrix<float> out) = 0;
  /// out = x wᵀ (+ bias[w.rows]) ; x [n, w.cols], out [n, w.rows]. Two classes of kernels, 1–7 rows and
  /// from kMatrixRows: within a class a row's bits depend on nothing but the row.
  virtual void matmul(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) = 0;
  /// out += x wᵀ (+ bias).
  virtual void matmul_add(Matrix<const float> x, const Weight& w, const Weight* bias, Matrix<float> out) = 0;
  /// out = silu(x gateᵀ) * (x upᵀ), where gate_up stacks gate (rows / 2) on up; optional bias [rows].
  virtual void gate_up_silu(Matrix<const float> x, const Weight& gate_up, const Weight* bias, Matrix<float> out) = 0;
  /// For each row of qkv [n, (n_heads + 2 n_kv_heads) * head_dim]: RMS norm of each q and k head (weights may be null),
  /// rotation by positions[row] with inverse frequencies [head_dim / 2] (pairs i, i + head_dim/2: transformers' half
  /// layout), q in place, k and v, less kv.means, into the pages: as codes and, where the span names an exact page, in
  /// bf16. Throws Error{bad_input} for a key or value that is not finite and would have to become codes (a GPU: at
  /// end()). On a GPU the attend() of these rows behind it may do all this, codes by end(), and leave qkv as it was.
  virtual void rope_and_store(Matrix<float> qkv, int n_heads, const Weight* q_norm, const Weight* k_norm, float eps,
                              std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans,
                              const KvLayer& kv) = 0;
  /// Causal attention over pages, q [n, n_heads * head_dim] (the first columns of qkv), scale 1/sqrt(head_dim); out [n,
  /// n_heads * head_dim]. Beside codes a row reads exact pages where is_exact() says so. kv.means of keys change no
  /// result (all of a row's scores fall by the same q · mean, and softmax takes no notice); those of values are added
  /// to it, as a row's weights add up to one.
  virtual void attend(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
                      Matrix<float> out) = 0;
};

/// `pool` must outlive it.
std::unique_ptr<Ops> make_cpu_ops(ThreadPool& pool);

}  // namespace firstlight
