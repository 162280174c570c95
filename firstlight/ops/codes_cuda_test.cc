// SPDX-License-Identifier: Apache-2.0
// TurboQuant codes on a GPU: pages of the same bytes as the CPU's, and attention as the oracle has it over them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/codes_cuda_testing.h"

namespace firstlight {
namespace {

using reference::BatchOnGpu;
using reference::CodeBatch;
using reference::kGpu;
using reference::OnGpu;
using reference::Sequence;

constexpr KvKind kGpuCodes[] = {KvKind::tq8, KvKind::k8v4, KvKind::tq4, KvKind::k4v3, KvKind::tq3, KvKind::k3v2};

class CodesCuda : public reference::CodesOnGpu {
 protected:
  /// The GPU's pages of 210 rows, in chunks of several sizes, are the CPU's.
  void check_pages(KvKind kind, int d, bool centred);
};

/// Rows of q, k and v, some of them hard to encode.
reference::Tensor hard_rows(int64_t n, int n_heads, int n_kv_heads, int d) {
  const int64_t width = (n_heads + 2 * n_kv_heads) * d;
  reference::Tensor t = reference::random_tensor(n, width, DType::f32, 3);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = int64_t{n_heads} * d; i < width; ++i) {
      float& x = t.f32[static_cast<size_t>(row * width + i)];
      const int64_t at = i % d;
      switch (row % 11) {
        case 1:
          x = 0;
          break;
        case 2:
          x *= 1e-41f;
          break;
        case 3:
          x *= 6e4f / std::sqrt(static_cast<float>(d));
          break;
        case 4:
          x = at == row % d ? 3.0f : 0.0f;
          break;
        case 5:
          x = 1;
          break;
        case 6:
          x = at % 2 ? -2.0f : 2.0f;
          break;
        case 7:
          x *= 1e-9f;
          break;
        case 8:
          x *= 1e12f;
          break;
        default:
          break;
      }
    }
  }
  return t;
}

void CodesCuda::check_pages(KvKind kind, int d, bool centred) {
  constexpr int kHeads = 3, kKvHeads = 2, kRows = 210, kPages = 6;
  const std::vector<int32_t> pages{4, 1, 5, 0}, exact{2, 0, 3, 5};
  const auto cpu_ops = cpu();
  const uint64_t stride = kv_page_bytes(kind, kKvHeads, d) + 64;
  const uint64_t exact_stride = kv_page_bytes(KvKind::bf16, kKvHeads, d) + 64;
  const std::vector<turboquant::Signs> signs = reference::signs_of_heads(9, 1, kKvHeads);
  std::vector<float> means;
  if (centred) means = reference::random_tensor(2 * kKvHeads, d, DType::f32, 4).f32;
  const OnGpu gpu_means(means);
  const std::vector<double> no_angles(static_cast<size_t>(d / 2), 0.0);
  reference::Tensor rows = hard_rows(kRows, kHeads, kKvHeads, d);
  const auto fill = [&](Ops& ops, float* data, std::byte* codes, std::byte* numbers, int64_t chunk) {
    const bool on_gpu = &ops == ops_;
    const float* mean = on_gpu ? reinterpret_cast<const float*>(gpu_means.data()) : means.data();
    for (int64_t begin = 0; begin < kRows; begin += chunk) {
      const int64_t n = std::min(chunk, kRows - begin);
      const std::vector<AttentionSpan> spans{{0, n, begin, pages.data(), exact.data()}};
      if (on_gpu) next({.ids = {}, .spans = spans, .wanted = {}});
      ops.rope_and_store(
          {data + begin * rows.cols, n, rows.cols, rows.cols}, kHeads, nullptr, nullptr, 1e-5f, no_angles, spans,
          {codes, stride, kind, kKvHeads, d, numbers, exact_stride, signs.data(), centred ? mean : nullptr});
      if (on_gpu) next();
    }
  };
  std::vector<std::byte> codes(stride * kPages, std::byte{0xff}), numbers(exact_stride * kPages, std::byte{0xff});
  reference::Tensor copy = rows;
  fill(*cpu_ops, copy.f32.data(), codes.data(), numbers.data(), 64);
  for (const int64_t chunk : {1, 3, 64, 75, 210}) {
    std::vector<std::byte> blank(codes.size(), std::byte{0xff}), found(codes.size()), found_exact(numbers.size());
    const reference::GpuTensor on_gpu(rows);
    const OnGpu gpu_codes(blank), gpu_exact(std::vector<std::byte>(numbers.size(), std::byte{0xff}));
    fill(*ops_, on_gpu.matrix().data, gpu_codes.data(), gpu_exact.data(), chunk);
    gpu_codes.fetch(found.data());
    gpu_exact.fetch(found_exact.data());
    const auto differs = std::mismatch(found.begin(), found.end(), codes.begin()).first - found.begin();
    ASSERT_TRUE(found == codes) << "chunks of " << chunk << ": byte " << differs << " of pages of " << stride;
    ASSERT_TRUE(found_exact == numbers) << "chunks of " << chunk;
  }
}

TEST_F(CodesCuda, PagesHoldTheBytesOfTheCpu) {
  for (const KvKind kind : kGpuCodes) {
    for (const int d : {64, 128, 256}) {
      for (const bool centred : {false, true}) {
        SCOPED_TRACE(testing::Message() << to_string(kind) << " d " << d << (centred ? ", centred" : ""));
        check_pages(kind, d, centred);
        if (HasFatalFailure()) return;
      }
    }
  }
}

std::vector<std::vector<AttentionSpan>> in_fives(const std::vector<AttentionSpan>& spans) {
  std::vector<std::vector<AttentionSpan>> all;
  for (const auto& [row, n, position, pages, exact, exact_from] : spans) {
    for (int64_t at = 0; at < n; at += 5)
      all.push_back({{row + at, std::min<int64_t>(5, n - at), position + at, pages, exact}});
  }
  return all;
}
/// Prompts have a kernel of their own, which rows by the few do not take.
TEST_F(CodesCuda, RowsBecomeTheSameBytesInPromptsAndByTheFew) {
  constexpr int kHeads = 5, kKvHeads = 3;
  const std::vector<Sequence> sequences{{30, 7}, {1, 62}, {5, 3}, {40, 129}, {13, 250}};
  const std::vector<std::vector<int32_t>> pages{{0}, {1}, {2}, {9, 8, 3}, {10, 11, 12, 5, 4}};
  for (const KvKind kind : {KvKind::tq4, KvKind::k8v4, KvKind::tq8}) {
    for (const int d : {64, 128}) {
      const uint64_t stride = kv_page_bytes(kind, kKvHeads, d) + 16;
      const uint64_t exact_stride = kv_page_bytes(KvKind::bf16, kKvHeads, d) + 32;
      const std::vector<turboquant::Signs> signs = reference::signs_of_heads(3, 2, kKvHeads);
      std::vector<AttentionSpan> spans;
      int64_t n_rows = 0;
      for (size_t s = 0; s < sequences.size(); ++s) {
        spans.push_back({n_rows, sequences[s].n_rows, sequences[s].position, pages[s].data(), pages[s].data()});
        n_rows += sequences[s].n_rows;
      }
      const reference::Tensor rows = hard_rows(n_rows, kHeads, kKvHeads, d);
      const reference::GpuTensor q_norm(reference::random_tensor(1, d, DType::bf16, 2)),
          k_norm(reference::random_tensor(1, d, DType::f32, 3));
      const Weight qw = q_norm.weight(), kw = k_norm.weight();
      const std::vector<double> frequencies(static_cast<size_t>(d / 2), 0.3);
      std::vector<std::byte> found[2][2];
      std::vector<float> turned[2];
      for (const bool at_once : {false, true}) {
        const reference::GpuTensor on_gpu(rows);
        const OnGpu codes(std::vector<std::byte>(stride * 13, std::byte{0xff}));
        const OnGpu exact(std::vector<std::byte>(exact_stride * 13, std::byte{0xff}));
        for (const auto& some : at_once ? std::vector(1, spans) : in_fives(spans)) {
          next({.ids = {}, .spans = some, .wanted = {}});
          ops_->rope_and_store(on_gpu.matrix(), kHeads, &qw, &kw, 1e-6f, frequencies, some,
                               {codes.data(), stride, kind, kKvHeads, d, exact.data(), exact_stride, signs.data()});
          next();
        }
        found[at_once][0].resize(stride * 13);
        found[at_once][1].resize(exact_stride * 13);
        codes.fetch(found[at_once][0].data());
        exact.fetch(found[at_once][1].data());
        turned[at_once].resize(rows.f32.size());
        on_gpu.memory.fetch(turned[at_once].data());
      }
      ASSERT_TRUE(found[1][0] == found[0][0]) << to_string(kind) << " d " << d;
      ASSERT_TRUE(found[1][1] == found[0][1]);
      ASSERT_EQ(std::memcmp(turned[1].data(), turned[0].data(), turned[0].size() * sizeof(float)), 0);
    }
  }
}

TEST_F(CodesCuda, MeansOfPagesOfNumbersAreRefused) {
  const auto cpu_ops = cpu();
  CodeBatch batch({{1, 10}}, KvKind::tq4, 2, 1, 64, 1, *cpu_ops, false, 1000, true);
  const BatchOnGpu on_gpu(batch);
  const reference::GpuTensor q(batch.q);
  KvLayer layer = on_gpu.layer(batch);
  layer.kind = KvKind::bf16;
  next({.ids = {}, .spans = batch.spans, .wanted = {}});
  EXPECT_THROW(
      ops_->rope_and_store(q.matrix(), 2, nullptr, nullptr, 1e-5f, std::vector<double>(32), batch.spans, layer), Error);
}

TEST_F(CodesCuda, AttentionEqualsSoftmaxOverWhatThePagesHold) {
  check({{1, 0}, {1, 63}, {1, 255}, {1, 256}}, KvKind::tq4, 4, 2, 64);
  check({{1, 257}, {1, 900}, {5, 318}}, KvKind::tq4, 3, 1, 64);
  check({{1, 257}, {1, 3000}, {5, 318}}, KvKind::tq4, 8, 1, 128);
  check({{9, 250}, {70, 300}, {1, 500}}, KvKind::tq4, 3, 1, 64);
}

TEST_F(CodesCuda, AttentionEqualsSoftmaxForEveryKindAndHeadShape) {
  for (const KvKind kind : kGpuCodes) {
    for (const int d : {64, 128, 256}) check({{1, 700}, {12, 376}}, kind, 2, 1, d);
  }
  for (const int group : {1, 4, 5, 8, 16}) {
    check({{1, 630}, {10, 330}}, KvKind::tq4, group, 1, 64);
    check({{1, 630}}, KvKind::tq4, 2 * group, 2, 128);
    check({{1, 630}}, KvKind::k8v4, 2 * group, 2, 128);
  }
}

/// Single rows whole and in parts, prompts, and the kinds and heads that the plain kernel takes.
TEST_F(CodesCuda, AttentionGivesValuesTheirMeansBack) {
  for (const KvKind kind : kGpuCodes) {
    for (const int d : {64, 128, 256}) check({{1, 40}, {1, 700}, {12, 376}}, kind, 6, 2, d, false, true);
  }
  check({{1, 630}, {1, 3000}, {10, 330}}, KvKind::tq4, 10, 1, 128, false, true);
}

/// Exact pages have no weight here.
TEST_F(CodesCuda, SumsOverCodesKeepTheirAccuracy) {
  for (const KvKind kind : {KvKind::tq8, KvKind::k8v4, KvKind::tq4, KvKind::k3v2}) {
    check({{20, 980}, {1, 700}}, kind, 2, 1, 64, true);
    check({{1, 4000}}, kind, 4, 1, 128, true);
  }
}

/// So many rows that blocks have several parts each, of more pages than shared memory holds. They share pages.
TEST_F(CodesCuda, PartsOfMorePagesThanSharedMemoryHoldsAreReadWhole) {
  const auto cpu_ops = cpu();
  for (const KvKind kind : {KvKind::tq4, KvKind::tq8, KvKind::k8v4}) {
    for (const int group : {1, 5}) {
      std::vector<Sequence> sequences(kind == KvKind::tq4 ? 70 : 36, {1, 0});
      sequences[0] = {1, 1900};
      SCOPED_TRACE(testing::Message() << to_string(kind) << ", groups of " << group);
      CodeBatch batch(sequences, kind, 8 * group, 8, 128, 1, *cpu_ops);
      for (size_t i = 1; i < sequences.size(); ++i) {
        batch.spans[i].pages = batch.spans[i].exact = batch.spans[0].pages;
        batch.spans[i].position = 1900 - static_cast<int64_t>(i) % 40;
      }
      const std::vector<float> out = attend(batch);
      compare(batch, out, 35);
      reference::expect_same(attend(batch), out, "attention");
    }
  }
}

/// A block for itself: its warps have more pages of a part than they prepare at a time.
TEST_F(CodesCuda, OneBlockReadsAllOfALongRow) {
  const auto cpu_ops = cpu();
  const auto ops = make_cuda_ops(kGpu, {.n_sharing = 1000});
  Ops* const of_suite = std::exchange(ops_, ops.get());
  ops_->begin({}, false);
  CodeBatch batch({{1, 13'000}}, KvKind::tq4, 4, 1, 128, 1, *cpu_ops);
  compare(batch, attend(batch));
  ops_->end();
  ops_ = of_suite;
}

/// Rows of exact pages alone, more of them than blocks: then a few more than a block knows at a time. They share pages.
TEST_F(CodesCuda, ManyShortRowsAreAllReadByBlocksThatTakeSeveral) {
  const auto cpu_ops = cpu();
  for (const int n_rows : {25, 150}) {
    for (const int64_t first : {192, 330}) {
      SCOPED_TRACE(testing::Message() << n_rows << " rows from position " << first << " on");
      std::vector<Sequence> sequences(static_cast<size_t>(n_rows), {1, 0});
      sequences[0] = {1, first / kPageTokens * kPageTokens + 63};
      CodeBatch batch(sequences, KvKind::tq4, 8, 8, 128, 1, *cpu_ops);
      for (size_t i = 1; i < sequences.size(); ++i) {
        batch.spans[i].pages = batch.spans[i].exact = batch.spans[0].pages;
        batch.spans[i].position = batch.spans[0].position - static_cast<int64_t>(i * 7 % 64);
      }
      const std::vector<float> out = attend(batch);
      compare(batch, out, 7);
      for (int again = 0; again < 20; ++again) reference::expect_same(attend(batch), out, "attention");
    }
  }
}

TEST_F(CodesCuda, AttentionIsTheSameBitsForAnyOrderOfPagesAndEveryTime) {
  const std::vector<Sequence> sequences{{1, 1700}, {30, 290}, {5, 320}, {1, 0}};
  const auto cpu_ops = cpu();
  for (const KvKind kind : {KvKind::tq4, KvKind::tq8, KvKind::k4v3}) {
    CodeBatch first(sequences, kind, 6, 2, 64, 1, *cpu_ops);
    const std::vector<float> expected = attend(first);
    for (uint32_t seed = 1; seed < 4; ++seed) {
      CodeBatch other(sequences, kind, 6, 2, 64, seed, *cpu_ops);
      reference::expect_same(attend(other), expected, "attention");
    }
  }
}

/// Batches small enough that each row has as many parts as alone.
TEST_F(CodesCuda, ARowIsTheSameBitsAloneAndInABatchThatCutsItAlike) {
  const auto cpu_ops = cpu();
  CodeBatch batch({{7, 700}, {40, 390}, {1, 63}, {1, 1000}}, KvKind::tq4, 6, 2, 64, 1, *cpu_ops);
  const std::vector<float> all = attend(batch);
  const std::vector<AttentionSpan> spans = batch.spans;
  for (const AttentionSpan& span : spans) {
    batch.spans = {span};
    const std::vector<float> out = attend(batch);
    for (int64_t i = span.row_begin * 384; i < (span.row_begin + span.n_rows) * 384; ++i)
      ASSERT_EQ(out[static_cast<size_t>(i)], all[static_cast<size_t>(i)]) << "span at " << span.position;
  }
}

/// From the second pass on the same kernels are replayed; positions and pages are the pass's own.
TEST_F(CodesCuda, RecordedPassesGiveTheBitsOfPlainOnes) {
  const auto cpu_ops = cpu(), plain = make_cuda_ops(reference::kGpu, {.graphs = false}),
             recorded = make_cuda_ops(reference::kGpu);
  CodeBatch batch({{1, 700}, {1, 90}}, KvKind::tq4, 4, 2, 64, 1, *cpu_ops, false, 1000, true);
  const std::vector<double> no_angles(32, 0.0);
  const std::vector<int> ids{1, 2};
  std::vector<std::vector<float>> found[2];
  for (Ops* ops : {plain.get(), recorded.get()}) {
    const BatchOnGpu on_gpu(batch);
    const reference::GpuTensor q(batch.q);
    const KvLayer layer = on_gpu.layer(batch);
    reference::GpuTensor out(reference::unwritten(2, 4 * 64));
    std::vector<Likeliest> picked(2);
    std::vector<AttentionSpan> spans = batch.spans;
    int n_replayed = 0;
    for (int step = 0; step < 6; ++step) {
      for (AttentionSpan& span : spans) span.position -= step;
      if (ops->begin({.ids = ids, .spans = spans, .wanted = spans, .likeliest = picked}, true)) {
        ++n_replayed;
      } else {
        ops->rope_and_store(q.matrix(), 4, nullptr, nullptr, 1e-5f, no_angles, spans, layer);
        ops->attend(q.view(), 4, spans, layer, out.matrix());
      }
      ops->end();
      found[ops == plain.get() ? 0 : 1].push_back(out.fetch().f32);
    }
    if (ops == plain.get()) {
      EXPECT_EQ(n_replayed, 0);
    } else {
      EXPECT_GE(n_replayed, 3);
    }
  }
  for (size_t step = 0; step < 6; ++step) reference::expect_same(found[1][step], found[0][step], "pass");
  EXPECT_NE(recorded->name().find("steps are recorded"), std::string_view::npos) << recorded->name();
}

/// From a pass's second layer on attention asks for pages before the kernels in front have ended: here these take long,
/// and the rows that the pass stores lie on both sides of where a page begins.
TEST_F(CodesCuda, PagesThatAPassWritesAreReadOnceTheyAreWritten) {
  const auto cpu_ops = cpu();
  const std::vector<double> no_angles(64, 0.0);
  const reference::GpuTensor weight(reference::random_tensor(64, 32768, DType::bf16, 5)),
      x(reference::random_tensor(1, 32768, DType::f32, 6)), product(reference::unwritten(1, 64)),
      norm(reference::random_tensor(1, 12 * 128, DType::f32, 7));
  for (const KvKind kind : {KvKind::tq4, KvKind::tq8}) {
    CodeBatch batch({{7, 637}, {1, 640}, {1, 703}, {2, 62}, {1, 5}}, kind, 8, 2, 128, 1, *cpu_ops);
    const BatchOnGpu pages(batch), others(batch);
    const KvLayer layer = pages.layer(batch), first = others.layer(batch);
    const auto attended = [&](uint32_t seed, bool store) {
      const reference::GpuTensor qkv(reference::random_tensor(batch.n_rows, 12 * 128, DType::f32, seed));
      const Matrix<const float> q{qkv.view().data, batch.n_rows, 8 * 128, 12 * 128};
      reference::GpuTensor out(reference::unwritten(batch.n_rows, 8 * 128));
      next({.ids = {}, .spans = batch.spans, .wanted = {}});
      if (store) {
        ops_->attend(q, 8, batch.spans, first, out.matrix());
        for (int i = 0; i < 20; ++i) ops_->matmul(x.view(), weight.weight(), nullptr, product.matrix());
        ops_->rope_and_store(qkv.matrix(), 8, nullptr, nullptr, 1e-5f, no_angles, batch.spans, layer);
      }
      if (seed % 2) ops_->rms_norm(qkv.view(), norm.weight(), 1e-5f, qkv.matrix());  // other queries than were turned
      ops_->attend(q, 8, batch.spans, layer, out.matrix());
      next();
      return out.fetch().f32;
    };
    for (uint32_t seed = 20; seed < 30; ++seed) {
      const std::vector<float> out = attended(seed, true);
      reference::expect_same(attended(seed, false), out, "attention");
    }
  }
}

TEST_F(CodesCuda, AKeyThatIsNotANumberIsRefusedByItsPosition) {
  const auto cpu_ops = cpu();
  CodeBatch batch({{1, 100}}, KvKind::tq4, 2, 1, 64, 1, *cpu_ops);
  const BatchOnGpu pages(batch);
  const KvLayer layer = pages.layer(batch);
  for (const int64_t rows : {1, 40}) {
    for (const int column : {2 * 64 + 5, 3 * 64 + 63, 0}) {  // of the key, of the value, of neither
      reference::Tensor qkv = reference::random_tensor(rows, 4 * 64, DType::f32, 2);
      if (column) qkv.f32[static_cast<size_t>((rows - 1) * 4 * 64 + column)] = std::nanf("");
      const reference::GpuTensor on_gpu(qkv);
      const std::vector<AttentionSpan> spans{{0, rows, 10, batch.spans[0].pages, batch.spans[0].exact}};
      const std::vector<double> no_angles(32, 0.0);
      next({.ids = {}, .spans = spans, .wanted = {}});
      ops_->rope_and_store(on_gpu.matrix(), 2, nullptr, nullptr, 1e-5f, no_angles, spans, layer);
      expect_end(column ? str("position ", 9 + rows) : "");
    }
  }
}

}  // namespace
}  // namespace firstlight
