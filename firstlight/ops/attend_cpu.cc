// SPDX-License-Identifier: Apache-2.0
// Causal attention over pages. Spans of 8 rows and more go by blocks of 64 rows and heads; shorter ones by rows,
// key/value heads and runs of four pages, whose partial sums are merged in order: both cuts are fixed, so a row's
// result depends on its own sequence only.
#include <algorithm>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight {

namespace {

constexpr int64_t kRunPages = 4;      // pages of one partial sum: 256 keys, about 4 µs
constexpr int64_t kCodeRunPages = 8;  // of codes: half the bytes, and sums to rotate back
constexpr int64_t kAloneKeys =
    256;  // keys (times key/value heads and rows) that one thread does in the time of waking another

}  // namespace

/// The runs of pages that a row in the last of `pages` pages attends to. Over codes: the first page, all codes, the
/// last three pages.
void CpuOps::list_runs(int64_t pages, bool compressed) {
  runs_.clear();
  if (!compressed || pages <= kExactTail + 1) {
    for (int64_t page = 0; page < pages; page += kRunPages)
      runs_.push_back({page, std::min(pages, page + kRunPages), compressed});
    return;
  }
  const int64_t end = pages - kExactTail;
  runs_.push_back({0, 1, true});
  for (int64_t page = 1; page < end; page += kCodeRunPages)
    runs_.push_back({page, std::min(end, page + kCodeRunPages), false});
  runs_.push_back({end, pages, true});
}

void CpuOps::list_items(std::span<const AttentionSpan> spans, int n_heads, const KvLayer& kv) {
  items_.clear();
  const bool compressed = is_compressed(kv.kind);
  static_assert(kBlockRows == kPageTokens);
  const int64_t partial_floats = int64_t{n_heads / kv.n_kv_heads} * (kv.head_dim + 2);
  int64_t partial = 0;
  for (size_t s = 0; s < spans.size(); ++s) {
    const AttentionSpan& span = spans[s];
    if (span.n_rows < kMatrixRows) continue;
    // Over codes a block's rows lie in one page, so that they read the same pages exactly.
    const int64_t skipped = compressed ? span.position % kBlockRows : 0;
    const int64_t blocks = (skipped + span.n_rows + kBlockRows - 1) / kBlockRows;
    for (int64_t b = blocks - 1; b >= 0; --b) {  // the dearest first: late rows see the most keys
      const int64_t begin = std::max<int64_t>(0, b * kBlockRows - skipped);
      const int64_t end = std::min(span.n_rows, (b + 1) * kBlockRows - skipped);
      for (int head = 0; head < n_heads; ++head) {
        items_.push_back({.span = static_cast<int32_t>(s), .head = head, .row = begin, .rows = end - begin});
      }
    }
  }
  for (size_t s = 0; s < spans.size(); ++s) {
    const AttentionSpan& span = spans[s];
    if (span.n_rows >= kMatrixRows) continue;
    for (int64_t row = 0; row < span.n_rows; ++row) {
      list_runs((span.position + row) / kPageTokens + 1, compressed);
      for (int head = 0; head < kv.n_kv_heads; ++head) {
        for (const PageRun& run : runs_) {
          items_.push_back({.span = static_cast<int32_t>(s),
                            .head = head,
                            .row = row,
                            .rows = 0,
                            .page_begin = run.begin,
                            .page_end = run.end,
                            .partial = partial,
                            .n_parts = static_cast<int64_t>(runs_.size()),
                            .exact = run.exact});
          partial += partial_floats;
        }
      }
    }
  }
  partials_.reserve<float>(partial);
}

void CpuOps::merge_rows(const std::vector<AttentionJob>& jobs, const KvLayer& kv, int n_heads) {
  const int group = n_heads / kv.n_kv_heads;
  const int64_t head_floats = kv.head_dim + 2, d = kv.head_dim;
  for (const AttentionItem& item : items_) {
    if (item.rows != 0 || item.page_begin != 0) continue;  // the first run of a row and head stands for all
    const AttentionJob& job = jobs[static_cast<size_t>(item.span)];
    for (int g = 0; g < group; ++g) {
      kernels_->merge_parts(partials_.reserve<float>(0) + item.partial + g * head_floats, item.n_parts,
                            group * head_floats, kv.head_dim,
                            job.out + item.row * job.out_stride + (int64_t{item.head} * group + g) * d);
    }
  }
}

void CpuOps::attend(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
                    Matrix<float> out) {
  const int64_t width = int64_t{n_heads} * kv.head_dim;
  if (kv.n_kv_heads <= 0 || n_heads % kv.n_kv_heads != 0 || q.cols < width || out.cols < width) {
    throw Error(ErrorKind::bug, str("attention of ", n_heads, " heads of ", kv.head_dim, " on ", kv.n_kv_heads,
                                    " key/value heads: q is ", q.cols, " wide, out ", out.cols));
  }
  const KvLayer exact = kv.exact_layer();
  std::vector<AttentionJob> jobs, exact_jobs(spans.size());
  std::vector<AttentionSpan> exact_spans(spans.begin(), spans.end());
  int64_t keys = 0;
  for (size_t s = 0; s < spans.size(); ++s) {
    const AttentionSpan& span = spans[s];
    jobs.push_back({.q = q.row(span.row_begin),
                    .q_stride = q.stride,
                    .out = out.row(span.row_begin),
                    .out_stride = out.stride,
                    .group = n_heads / kv.n_kv_heads,
                    .span = &span,
                    .kv = &kv});
    keys += span.n_rows * (span.position + span.n_rows);
    exact_jobs[s] = jobs[s];
    exact_spans[s].pages = span.exact;
    exact_jobs[s].span = &exact_spans[s];
    exact_jobs[s].kv = &exact;
    jobs[s].exact = &exact_jobs[s];
  }
  if (is_compressed(kv.kind)) encode_queries(q, n_heads, spans, kv, jobs);
  list_items(spans, n_heads, kv);
  for (Scratch& scratch : of_thread_) scratch.reserve<std::byte>(kernels_->attend_scratch_bytes(kv.head_dim));
  float* partials = partials_.reserve<float>(0);
  share(static_cast<int64_t>(items_.size()), keys * kv.n_kv_heads <= kAloneKeys, [&](int64_t i, int thread) {
    const AttentionItem& item = items_[static_cast<size_t>(i)];
    const AttentionJob& job =
        item.exact ? exact_jobs[static_cast<size_t>(item.span)] : jobs[static_cast<size_t>(item.span)];
    if (item.rows > 0) {
      kernels_->attend_block(job, item.head, item.row, item.rows,
                             of_thread_[static_cast<size_t>(thread)].reserve<std::byte>(0));
    } else {
      kernels_->attend_row(job, item.row, item.head, item.page_begin, item.page_end, partials + item.partial);
    }
  });
  merge_rows(jobs, kv, n_heads);
  if (kv.means) add_means_of_values(spans, n_heads, kv, out);
}

void CpuOps::add_means_of_values(std::span<const AttentionSpan> spans, int n_heads, const KvLayer& kv,
                                 Matrix<float> out) {
  const float* means = kv.means + int64_t{kv.n_kv_heads} * kv.head_dim;
  const int group = n_heads / kv.n_kv_heads;
  for (const AttentionSpan& span : spans) {
    constexpr int64_t kRows = 32;  // a piece of work: 32 rows of 9 heads of 64 are 74 KB
    share((span.n_rows + kRows - 1) / kRows, span.n_rows <= kRows, [&](int64_t piece, int) {
      for (int64_t i = piece * kRows; i < std::min(span.n_rows, (piece + 1) * kRows); ++i) {
        float* row = out.row(span.row_begin + i);
        for (int h = 0; h < n_heads; ++h)
          kernels_->add(means + int64_t{h / group} * kv.head_dim, kv.head_dim, row + int64_t{h} * kv.head_dim);
      }
    });
  }
}

}  // namespace firstlight
