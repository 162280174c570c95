// SPDX-License-Identifier: Apache-2.0
// Every architecture on a GPU: against transformers with f32 weights, bf16
// against f32, the same bits from run to run and for any pages, the same text
// in any company.
#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"
#include "golden.h"
#include "golden_greedy.h"

namespace firstlight {
namespace {

constexpr double kCudaTolerance = 2e-3;  // of a log-probability, f32 weights against transformers in fp32
constexpr double kNearTieF32 = 0.02, kNearTieBf16 = 0.25;

/// A golden model cut in memory and copied to the first GPU, and a runner over
/// it.
struct OnGpu {
  OnGpu(const std::string& name, DType dtype, KvKind kv)
      : model(read_whole_model(name)), weights(cut_all(model, 1, dtype, 256)) {
    const Device gpu{Device::Kind::cuda, 0};
    RankWeights& rank = weights[0];
    Buffer arena(gpu, rank.arena.size());
    copy(arena.data(), gpu, rank.arena.data(), {}, rank.arena.size());
    for (auto& [tensor_name, tensor] : rank.tensors) tensor.data = arena.data() + (tensor.data - rank.arena.data());
    rank.arena = std::move(arena);
    RunnerOptions options;
    options.kv = kv;
    options.n_pages = 40;
    runner = make_runner(model.config, weights, options);
  }
  WholeModel model;
  std::vector<RankWeights> weights;
  std::unique_ptr<Runner> runner;
};

class CudaGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
    sequences_ = read_golden(golden_path(GetParam()) + "/golden.json");
  }
  std::vector<GoldenSequence> sequences_;
};
INSTANTIATE_TEST_SUITE_P(All, CudaGolden, testing::ValuesIn(golden_models()), golden_test_name);

TEST_P(CudaGolden, LogProbabilitiesAreTransformers) {
  OnGpu gpu(GetParam(), DType::f32, KvKind::f32);
  for (const size_t chunk : {size_t{512}, size_t{7}, size_t{1}}) {
    double worst = 0;
    for (const GoldenSequence& sequence : sequences_) {
      const auto logprobs = log_softmax(all_logits(*gpu.runner, sequence.ids, chunk), gpu.model.config.vocab_size);
      worst = std::max(worst, worst_difference(sequence, logprobs));
    }
    EXPECT_LE(worst, kCudaTolerance) << "chunks of " << chunk;
    RecordProperty("worst_chunk" + std::to_string(chunk), std::to_string(worst));
  }
}

TEST_P(CudaGolden, Bf16StaysCloseToTheCpusF32) {
  Running f32(GetParam(), 1, DType::f32, KvKind::f32);
  OnGpu bf16(GetParam(), DType::bf16, KvKind::bf16);
  for (const size_t chunk : {size_t{512}, size_t{8}, size_t{1}}) {
    const double kld = mean_kld(*f32.runner, *bf16.runner, sequences_, chunk);
    EXPECT_LE(kld, kMeanKld) << "chunks of " << chunk;
    EXPECT_GT(kld, 0) << "bf16 that equals f32 is not bf16";
    RecordProperty("mean_kld_chunk" + std::to_string(chunk), std::to_string(kld));
  }
}

TEST_P(CudaGolden, TheSameBitsFromRunToRunAndForAnyPages) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    OnGpu gpu(GetParam(), dtype, dtype == DType::f32 ? KvKind::f32 : KvKind::bf16);
    const std::vector<int>& ids = sequences_.back().ids;
    for (const size_t chunk : {size_t{512}, size_t{1}}) {
      const std::vector<float> first = all_logits(*gpu.runner, ids, chunk);
      EXPECT_EQ(all_logits(*gpu.runner, ids, chunk), first) << to_string(dtype) << ", chunks of " << chunk;
    }
    expect_same_bits_for_any_pages(*gpu.runner, ids);
  }
}

TEST_P(CudaGolden, GreedyPassesPickTheLikeliest) {
  OnGpu gpu(GetParam(), DType::bf16, KvKind::bf16);
  expect_greedy_passes_pick_the_likeliest(*gpu.runner, sequences_[1].ids);
}

TEST_P(CudaGolden, GreedyTextIsTheSameInAnyBatchUpToNearTies) {
  OnGpu f32(GetParam(), DType::f32, KvKind::f32);
  expect_same_text_in_any_batch(*f32.runner, sequences_.back().ids, kNearTieF32);
  OnGpu bf16(GetParam(), DType::bf16, KvKind::bf16);
  expect_same_text_in_any_batch(*bf16.runner, sequences_.back().ids, kNearTieBf16);
}

}  // namespace
}  // namespace firstlight
