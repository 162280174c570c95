// SPDX-License-Identifier: Apache-2.0
// Steps of decoding on a GPU, in which attention turns its rows by position and stores them itself: the bits and pages
// that a rotation in front of it gives, which other tests hold against oracles.
#include <cmath>

#include "firstlight/ops/codes_cuda_testing.h"
#include "firstlight/ops/reference_batch.h"

namespace firstlight {
namespace {

using reference::Batch;
using reference::BatchOnGpu;
using reference::CodeBatch;
using reference::GpuTensor;
using reference::OnGpu;
using reference::random_tensor;
using reference::Sequence;
using reference::Tensor;
using reference::unwritten;

class StepCuda : public reference::CodesOnGpu {};

std::vector<double> frequencies_of(int head_dim) {
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] = std::pow(10000.0, -2.0 * static_cast<double>(i) / head_dim);
  return frequencies;
}

/// Rows, each its sequence's only one, which attention turns itself: what it gives and stores, and qkv behind it.
struct NumberStep {
  std::vector<float> out, qkv;
  std::vector<std::byte> pages;
};
NumberStep step_of(Batch& batch, Ops& ops, bool has_rotation_in_front) {
  const int d = batch.head_dim;
  const OnGpu cache(batch.cache.bytes);
  GpuTensor qkv(batch.q), out(unwritten(batch.n_rows, int64_t{batch.n_heads} * d));
  GpuTensor other(random_tensor(1, 64, DType::f32, 4));
  KvLayer layer = batch.cache.layer();
  layer.data = cache.data();
  ops.begin({.ids = {}, .spans = batch.spans, .wanted = {}}, false);
  ops.rope_and_store(qkv.matrix(), batch.n_heads, nullptr, nullptr, 1e-5f, frequencies_of(d), batch.spans, layer);
  if (has_rotation_in_front) ops.rms_norm(other.view(), other.weight(), 1e-5f, other.matrix());  // nothing waits for it
  ops.attend(qkv.view(), batch.n_heads, batch.spans, layer, out.matrix());
  ops.end();
  NumberStep step{out.fetch().f32, qkv.fetch().f32, batch.cache.bytes};
  cache.fetch(step.pages.data());
  return step;
}

TEST_F(StepCuda, RotationWithinItIsThatInFrontOfIt) {
  struct Case {
    int heads, kv_heads, d;
    std::vector<int64_t> positions;
  };
  std::vector<int64_t> many;
  for (int64_t i = 0; i < 40; ++i) many.push_back(i * 53 % 700);
  for (const Case& c : {Case{2, 1, 64, {0}},
                        {4, 2, 64, {15, 16, 63, 64, 1000}},
                        {32, 8, 128, {511}},
                        {12, 1, 128, {0, 47, 2050}},  // two blocks share a key/value head
                        {8, 8, 128, {8400, 31}},
                        {4, 1, 128, many}}) {
    SCOPED_TRACE(testing::Message() << c.heads << " heads on " << c.kv_heads << " of " << c.d);
    std::vector<Sequence> sequences;
    for (const int64_t position : c.positions) sequences.push_back({1, position});
    Batch batch(sequences, KvKind::bf16, c.heads, c.kv_heads, c.d, 1);
    for (size_t s = 0; s < sequences.size(); ++s) {  // nobody has stored the row's own
      const int64_t t = sequences[s].position;
      for (int i = 0; i < 2 * c.kv_heads * c.d; ++i) {
        batch.cache.set(batch.pages[s][static_cast<size_t>(t / kPageTokens)], i / (c.kv_heads * c.d),
                        i / c.d % c.kv_heads, t % kPageTokens, i % c.d, std::nanf(""));
      }
    }
    ops_->end();
    const NumberStep in_front = step_of(batch, *ops_, true);
    for (int again = 0; again < 3; ++again) {
      const NumberStep within = step_of(batch, *ops_, false);
      reference::expect_same(within.out, in_front.out, "attention");
      ASSERT_TRUE(within.pages == in_front.pages);
      reference::expect_same(within.qkv, batch.q.f32, "q, k and v");  // else a kernel in front has turned them
    }
    ASSERT_FALSE(std::isnan(in_front.out[0]));
    ops_->begin({}, false);
  }
}

/// Where rows of one pass read what others store, all is stored before any reads.
TEST_F(StepCuda, RowsOfOneSequenceAreStoredBeforeAnyIsRead) {
  Batch batch({{1, 70}, {2, 62}, {1, 5}}, KvKind::bf16, 4, 2, 64, 1);
  ops_->end();
  const NumberStep step = step_of(batch, *ops_, false), in_front = step_of(batch, *ops_, true);
  reference::expect_same(step.out, in_front.out, "attention");
  EXPECT_NE(step.qkv, batch.q.f32);
  Batch two({{1, 71}, {1, 5}}, KvKind::bf16, 4, 2, 64, 1);
  two.spans[1].pages = two.spans[0].pages;  // two spans of one sequence
  two.spans[1].position = two.spans[0].position - 1;
  const NumberStep twice = step_of(two, *ops_, false), twice_in_front = step_of(two, *ops_, true);
  reference::expect_same(twice.out, twice_in_front.out, "attention");
  EXPECT_NE(twice.qkv, two.q.f32);
  ops_->begin({}, false);
}

/// Rows, each its sequence's only one, which attention turns itself, in some layers of a pass: what it gives and
/// stores, and qkv behind it.
struct CodeStep {
  std::vector<std::vector<float>> outs, qkvs;
  std::vector<std::vector<std::byte>> codes, exact;
};
CodeStep step_of(CodeBatch& batch, Ops& ops, bool has_rotation_in_front, int n_layers) {
  const int d = batch.head_dim;
  const std::vector<double> frequencies = frequencies_of(d);
  const GpuTensor other(random_tensor(1, 64, DType::f32, 4));
  std::vector<std::unique_ptr<BatchOnGpu>> pages;
  std::vector<GpuTensor> qkvs, outs;
  for (int i = 0; i < n_layers; ++i) {
    pages.push_back(std::make_unique<BatchOnGpu>(batch));
    qkvs.emplace_back(random_tensor(batch.n_rows, batch.q.cols, DType::f32, static_cast<uint32_t>(50 + i)));
    outs.emplace_back(unwritten(batch.n_rows, int64_t{batch.n_heads} * d));
  }
  ops.begin({.ids = {}, .spans = batch.spans, .wanted = {}}, false);
  for (int i = 0; i < n_layers; ++i) {
    const auto at = static_cast<size_t>(i);
    const KvLayer layer = pages[at]->layer(batch);
    ops.rope_and_store(qkvs[at].matrix(), batch.n_heads, nullptr, nullptr, 1e-5f, frequencies, batch.spans, layer);
    if (has_rotation_in_front) ops.rms_norm(other.view(), other.weight(), 1e-5f, other.matrix());
    ops.attend(qkvs[at].view(), batch.n_heads, batch.spans, layer, outs[at].matrix());
  }
  ops.end();
  CodeStep step;
  for (int i = 0; i < n_layers; ++i) {
    const auto at = static_cast<size_t>(i);
    step.outs.push_back(outs[at].fetch().f32);
    step.qkvs.push_back(qkvs[at].fetch().f32);
    pages[at]->codes.fetch(step.codes.emplace_back(batch.codes.size()).data());
    pages[at]->exact.fetch(step.exact.emplace_back(batch.exact.size()).data());
  }
  return step;
}
void expect_rotation_within(CodeBatch& batch, Ops& ops, int n_layers) {
  for (const AttentionSpan& span : batch.spans) {  // nobody has stored the row's own
    const auto page = static_cast<uint64_t>(span.pages[span.position / kPageTokens]);
    for (int head = 0; head < 2 * batch.n_kv_heads; ++head) {
      const int64_t bytes = int64_t{batch.head_dim} * 2;
      std::fill_n(batch.exact.begin() + static_cast<int64_t>(page * batch.exact_stride) +
                      (head * kPageTokens + span.position % kPageTokens) * bytes,
                  bytes, std::byte{0xff});
    }
  }
  const CodeStep in_front = step_of(batch, ops, true, n_layers), within = step_of(batch, ops, false, n_layers);
  for (size_t i = 0; i < static_cast<size_t>(n_layers); ++i) {
    SCOPED_TRACE(testing::Message() << "layer " << i);
    reference::expect_same(within.outs[i], in_front.outs[i], "attention");
    ASSERT_FALSE(std::isnan(within.outs[i][0]));
    ASSERT_TRUE(within.codes[i] == in_front.codes[i]);
    ASSERT_TRUE(within.exact[i] == in_front.exact[i]);
    const Tensor before = random_tensor(batch.n_rows, batch.q.cols, DType::f32, static_cast<uint32_t>(50 + i));
    reference::expect_same(within.qkvs[i], before.f32, "q, k and v");  // else a kernel in front has turned them
  }
}

TEST_F(StepCuda, RotationWithinAttentionIsThatInFrontOfIt) {
  struct Case {
    KvKind kind;
    int heads, kv_heads, d;
    std::vector<Sequence> sequences;
  };
  const auto cpu_ops = cpu();
  ops_->end();
  for (const Case& c : {Case{KvKind::tq4, 2, 1, 64, {{1, 0}}},
                        {KvKind::tq4, 4, 2, 64, {{1, 63}, {1, 64}, {1, 700}, {1, 15}}},
                        {KvKind::tq4, 32, 8, 128, {{1, 511}}},
                        {KvKind::tq4, 12, 1, 128, {{1, 300}, {1, 3001}, {1, 130}}},
                        {KvKind::tq8, 4, 1, 128, {{1, 5}, {1, 767}, {1, 2050}}},
                        {KvKind::tq8, 16, 1, 64, {{1, 900}}},
                        {KvKind::k8v4, 10, 2, 128, {{1, 640}, {1, 31}}}}) {
    SCOPED_TRACE(testing::Message() << to_string(c.kind) << ", " << c.heads << " heads of " << c.d);
    for (const bool centred : {false, true}) {
      CodeBatch batch(c.sequences, c.kind, c.heads, c.kv_heads, c.d, 1, *cpu_ops, false, 1000, centred);
      expect_rotation_within(batch, *ops_, 3);
    }
  }
  CodeBatch batch({{1, 200}, {1, 67}}, KvKind::tq4, 2, 1, 64, 1, *cpu_ops);
  expect_rotation_within(batch, *ops_, 70);  // more layers than one launch makes codes of
  ops_->begin({}, false);
}

TEST_F(StepCuda, AKeyThatIsNotANumberIsRefusedWhereAttentionStoresIt) {
  const auto cpu_ops = cpu();
  CodeBatch batch({{1, 100}, {1, 33}}, KvKind::tq4, 2, 1, 64, 1, *cpu_ops);
  const BatchOnGpu pages(batch);
  for (const int column : {2 * 64 + 5, 3 * 64 + 63, 0}) {  // of the key, of the value, of neither
    Tensor qkv = random_tensor(2, 4 * 64, DType::f32, 2);
    if (column) qkv.f32[static_cast<size_t>(4 * 64 + column)] = std::nanf("");
    const GpuTensor on_gpu(qkv), out(unwritten(2, 2 * 64));
    next({.ids = {}, .spans = batch.spans, .wanted = {}});
    const KvLayer layer = pages.layer(batch);
    ops_->rope_and_store(on_gpu.matrix(), 2, nullptr, nullptr, 1e-5f, std::vector<double>(32), batch.spans, layer);
    ops_->attend(on_gpu.view(), 2, batch.spans, layer, out.matrix());
    expect_end(column ? "position 33" : "");
  }
}

}  // namespace
}  // namespace firstlight
