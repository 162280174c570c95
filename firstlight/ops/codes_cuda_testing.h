// SPDX-License-Identifier: Apache-2.0
// For tests only: a batch over pages of codes on a GPU, and its attention beside the oracle's.
#pragma once
#include <cmath>
#include <memory>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/ops/codes_testing.h"
#include "firstlight/ops/test_cuda.h"

namespace firstlight::reference {

/// A batch's pages and means.
struct BatchOnGpu {
  OnGpu codes, exact, means;
  explicit BatchOnGpu(const CodeBatch& batch) : codes(batch.codes), exact(batch.exact), means(batch.means) {}
  KvLayer layer(CodeBatch& batch) const {
    KvLayer layer = batch.layer();
    layer.data = codes.data();
    layer.exact = exact.data();
    if (layer.means) layer.means = reinterpret_cast<const float*>(means.data());
    return layer;
  }
};

class CodesOnGpu : public WithGpu {
 protected:
  /// Ends the pass: well, or, with `where`, by an error for what cannot become codes that names it.
  void expect_end(const std::string& where) {
    try {
      ops_->end();
      EXPECT_EQ(where, "");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::bad_input);
      EXPECT_NE(where, "");
      EXPECT_NE(std::string(error.what()).find(where), std::string::npos) << error.what();
    }
    ops_->begin({}, false);
  }

  std::unique_ptr<Ops> cpu() { return make_cpu_ops(pool_, CpuLevel::baseline); }

  std::vector<float> attend(CodeBatch& batch) {
    const BatchOnGpu on_gpu(batch);
    const GpuTensor q(batch.q);
    GpuTensor out(unwritten(batch.n_rows, int64_t{batch.n_heads} * batch.head_dim));
    next({.ids = {}, .spans = batch.spans, .wanted = {}});
    const KvLayer layer = on_gpu.layer(batch);
    ops_->attend(q.view(), batch.n_heads, batch.spans, layer, out.matrix());
    next();
    return out.fetch().f32;
  }

  /// The largest distance of a row and head from the oracle, beside the oracle's length.
  void check(const std::vector<Sequence>& sequences, KvKind kind, int heads, int kv_heads, int d, bool far = false,
             bool centred = false) {
    SCOPED_TRACE(testing::Message() << to_string(kind) << ", " << heads << " heads on " << kv_heads << " of " << d);
    const auto cpu_ops = cpu();
    CodeBatch batch(sequences, kind, heads, kv_heads, d, 1, *cpu_ops, far, 1000, centred);
    compare(batch, attend(batch));
  }

  /// Of every so-many-th span.
  void compare(CodeBatch& batch, const std::vector<float>& out, size_t every = 1) {
    const int heads = batch.n_heads, d = batch.head_dim;
    for (size_t i = 0; i < batch.spans.size(); i += every) {
      const AttentionSpan& span = batch.spans[i];
      for (int64_t row = 0; row < span.n_rows; ++row) {
        if (row != 0 && row != span.n_rows - 1 && row % 37 != 0) continue;
        for (const int head : {0, heads / 2, heads - 1}) {
          const std::vector<double> expected = batch.attended(span, row, head, false);
          double error = 0, length = 0;
          for (int j = 0; j < d; ++j) {
            const double x = expected[static_cast<size_t>(j)];
            const double y = out[static_cast<size_t>(((span.row_begin + row) * heads + head) * d + j)];
            error += (y - x) * (y - x);
            length += x * x;
          }
          // Tiles of rows round q and weights to bf16; kinds without such a kernel do not.
          const KvBits bits = kv_bits(batch.kind);
          const bool rounded = span.n_rows >= 8 && d <= 128 && bits.key != 3 && bits.value != 3;
          ASSERT_LE(std::sqrt(error / length), rounded ? 8e-3 : 2e-4)
              << "span of " << span.n_rows << " rows at " << span.position << ", row " << row << ", head " << head;
        }
      }
    }
  }

  ThreadPool pool_{2, 0};
};

}  // namespace firstlight::reference
