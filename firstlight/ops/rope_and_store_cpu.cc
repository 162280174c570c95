// SPDX-License-Identifier: Apache-2.0
// Rotation of q and k, and the store of k and v into pages. Angles are f32 products of f32 frequencies and positions,
// as the models were trained with; their cosines are computed once a batch, not once a layer.
#include <algorithm>
#include <cmath>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight {

void CpuOps::prepare_angles(std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans) {
  wanted_positions_.clear();
  for (const AttentionSpan& span : spans) {
    for (int64_t i = 0; i < span.n_rows; ++i) wanted_positions_.push_back(span.position + i);
  }
  if (wanted_positions_ == angle_positions_ && std::equal(inverse_frequencies.begin(), inverse_frequencies.end(),
                                                          angle_frequencies_.begin(), angle_frequencies_.end())) {
    return;
  }
  const int64_t half = static_cast<int64_t>(inverse_frequencies.size());
  const int64_t rows = static_cast<int64_t>(wanted_positions_.size());
  angle_positions_.clear();  // if an allocation fails, nothing stale is taken for valid
  cos_.resize(static_cast<size_t>(rows * half));
  sin_.resize(static_cast<size_t>(rows * half));
  angle_frequencies_.assign(inverse_frequencies.begin(), inverse_frequencies.end());
  constexpr int64_t kRows = 16;  // a piece of work: 16 * 32 pairs take about 15 µs
  share((rows + kRows - 1) / kRows, rows <= kRows, [&](int64_t piece, int) {
    for (int64_t i = piece * kRows; i < std::min(rows, (piece + 1) * kRows); ++i) {
      const float position = static_cast<float>(wanted_positions_[static_cast<size_t>(i)]);
      for (int64_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(inverse_frequencies[static_cast<size_t>(j)]) * position;
        cos_[static_cast<size_t>(i * half + j)] = static_cast<float>(std::cos(static_cast<double>(angle)));
        sin_[static_cast<size_t>(i * half + j)] = static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
  });
  std::swap(angle_positions_, wanted_positions_);
}

void CpuOps::rope_and_store(Matrix<float> qkv, int n_heads, const Weight* q_norm, const Weight* k_norm, float eps,
                            std::span<const double> inverse_frequencies, std::span<const AttentionSpan> spans,
                            const KvLayer& kv) {
  const int64_t half = kv.head_dim / 2;
  if (kv.head_dim % 2 != 0 || static_cast<int64_t>(inverse_frequencies.size()) != half ||
      qkv.cols != (n_heads + 2 * int64_t{kv.n_kv_heads}) * kv.head_dim) {
    throw Error(ErrorKind::bug,
                str("rotation of ", n_heads, " + 2 * ", kv.n_kv_heads, " heads of ", kv.head_dim, " with ",
                    inverse_frequencies.size(), " frequencies: rows are ", qkv.cols, " wide"));
  }
  prepare_angles(inverse_frequencies, spans);
  const float* q_weights = floats(q_norm, q_norm_);
  const float* k_weights = floats(k_norm, k_norm_);
  const bool compressed = is_compressed(kv.kind);
  const KvLayer numbers = compressed ? kv.exact_layer() : kv;
  int64_t first_angle = 0;
  for (const AttentionSpan& span : spans) {
    constexpr int64_t kRows = 8;  // a piece of work; it begins at a multiple: values' codes have one writer a quad
    const int64_t skipped = span.position % kRows;
    share((skipped + span.n_rows + kRows - 1) / kRows, span.n_rows <= kRows, [&](int64_t piece, int) {
      const int64_t begin = std::max<int64_t>(0, piece * kRows - skipped);
      for (int64_t i = begin; i < std::min(span.n_rows, (piece + 1) * kRows - skipped); ++i) {
        const int64_t position = span.position + i;
        const size_t angle = static_cast<size_t>((first_angle + i) * half);
        kernels_->rope_and_store({.qkv = qkv.row(span.row_begin + i),
                                  .n_heads = n_heads,
                                  .q_norm = q_weights,
                                  .k_norm = k_weights,
                                  .eps = eps,
                                  .cos = cos_.data() + angle,
                                  .sin = sin_.data() + angle,
                                  .means = kv.means,
                                  .page = (compressed ? span.exact : span.pages)[position / kPageTokens],
                                  .slot = static_cast<int>(position % kPageTokens)},
                                 numbers);
        if (compressed) encode_row(qkv.row(span.row_begin + i) + int64_t{n_heads} * kv.head_dim, position, span, kv);
      }
    });
    first_angle += span.n_rows;
  }
}

}  // namespace firstlight
