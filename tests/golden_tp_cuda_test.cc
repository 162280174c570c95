// SPDX-License-Identifier: Apache-2.0
// Every architecture over several GPUs: against the CPU's f32, the same bits from run to run, greedy passes, and a rank
// that fails.
#include "firstlight/base/error.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"
#include "golden.h"
#include "golden_draws.h"
#include "golden_greedy.h"

namespace firstlight {
namespace {

/// A golden model cut in memory, each rank copied to its GPU, and a runner over them.
struct OnGpus {
  OnGpus(const std::string& name, DType dtype, KvKind kv, const std::vector<Device>& devices)
      : model(read_whole_model(name)), weights(cut_all(model, static_cast<int>(devices.size()), dtype, 256)) {
    for (size_t r = 0; r < devices.size(); ++r) {
      RankWeights& rank = weights[r];
      Buffer arena(devices[r], rank.arena.size());
      copy(arena.data(), devices[r], rank.arena.data(), {}, rank.arena.size());
      for (auto& [tensor_name, tensor] : rank.tensors) tensor.data = arena.data() + (tensor.data - rank.arena.data());
      rank.arena = std::move(arena);
    }
    RunnerOptions options;
    options.kv = kv;
    options.n_pages = 40;
    runner = make_runner(model.config, weights, options);
  }
  WholeModel model;
  std::vector<RankWeights> weights;
  std::unique_ptr<Runner> runner;
};

/// Those that two ranks can share.
std::vector<std::string> models_for_two() {
  std::vector<std::string> names;
  for (const std::string& name : golden_models()) {
    const ModelConfig config = parse_hf_config(content(golden_path(name) + "/config.json"));
    if (config.n_heads % 2 == 0 && config.n_kv_heads % 2 == 0) names.push_back(name);
  }
  return names;
}

std::vector<Device> first_gpus(size_t n) {
  std::vector<Device> devices;
  for (size_t r = 0; r < n; ++r) devices.push_back({Device::Kind::cuda, static_cast<int>(r)});
  return devices;
}

class CudaGoldenTp : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (gpus().names.size() < 2)
      GTEST_SKIP() << "tp 2 takes two GPUs, here are " << gpus().names.size() << " " << gpus().why_none;
    sequences_ = read_golden(golden_path(GetParam()) + "/golden.json");
  }
  std::vector<GoldenSequence> sequences_;
};
INSTANTIATE_TEST_SUITE_P(All, CudaGoldenTp, testing::ValuesIn(models_for_two()), golden_test_name);

TEST_P(CudaGoldenTp, Bf16OverTwoStaysCloseToTheCpusF32) {
  Running f32(GetParam(), 1, DType::f32, KvKind::f32);
  OnGpus two(GetParam(), DType::bf16, KvKind::bf16, first_gpus(2));
  EXPECT_EQ(two.runner->comm_path(), "peer access");
  EXPECT_NE(two.runner->ops_name().find("steps are recorded"), std::string_view::npos) << two.runner->ops_name();
  for (const size_t chunk : {size_t{512}, size_t{8}, size_t{1}}) {
    const double kld = mean_kld(*f32.runner, *two.runner, sequences_, chunk);
    EXPECT_LE(kld, kMeanKld) << "chunks of " << chunk;
    EXPECT_GT(kld, 0) << "bf16 that equals f32 is not bf16";
    RecordProperty("mean_kld_chunk" + std::to_string(chunk), std::to_string(kld));
  }
}

TEST_P(CudaGoldenTp, F32OverTwoIsTransformers) {
  OnGpus two(GetParam(), DType::f32, KvKind::f32, first_gpus(2));
  for (const size_t chunk : {size_t{512}, size_t{1}}) {
    double worst = 0;
    for (const GoldenSequence& sequence : sequences_) {
      const auto logprobs = log_softmax(all_logits(*two.runner, sequence.ids, chunk), two.model.config.vocab_size);
      worst = std::max(worst, worst_difference(sequence, logprobs));
    }
    EXPECT_LE(worst, 2e-3) << "chunks of " << chunk;
  }
}

TEST_P(CudaGoldenTp, TheSameBitsFromRunToRunForAnyPagesAndThroughHostMemory) {
  OnGpus two(GetParam(), DType::bf16, KvKind::bf16, first_gpus(2));
  OnGpus host(GetParam(), DType::bf16, KvKind::bf16, {first_gpus(1)[0], first_gpus(1)[0]});
  EXPECT_EQ(host.runner->comm_path(), "host memory (ranks 0 and 1 share cuda:0)");
  const std::vector<int>& ids = sequences_.back().ids;
  for (const size_t chunk : {size_t{512}, size_t{1}}) {
    const std::vector<float> first = all_logits(*two.runner, ids, chunk);
    EXPECT_EQ(all_logits(*two.runner, ids, chunk), first) << "chunks of " << chunk;
    EXPECT_EQ(all_logits(*host.runner, ids, chunk), first) << "through host memory, chunks of " << chunk;
  }
  expect_same_bits_for_any_pages(*two.runner, ids);
}

TEST_P(CudaGoldenTp, GreedyPassesPickTheLikeliest) {
  OnGpus two(GetParam(), DType::bf16, KvKind::bf16, first_gpus(2));
  expect_greedy_passes_pick_the_likeliest(*two.runner, sequences_[1].ids);
}

/// More rows than ranks draw from at once.
TEST_P(CudaGoldenTp, RowsAreDrawnFromAllRanksLogits) {
  OnGpus two(GetParam(), DType::bf16, KvKind::bf16, first_gpus(2));
  expect_rows_drawn_as_on_the_host(*two.runner, sequences_.back().ids);
}

class CudaGoldenOnOneGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.empty()) GTEST_SKIP() << gpus().why_none;
  }
};

/// Through host memory, where no pass is recorded.
TEST_F(CudaGoldenOnOneGpu, RanksThatShareItDrawAsTheHost) {
  const std::string name = models_for_two().front();
  OnGpus host(name, DType::bf16, KvKind::bf16, {first_gpus(1)[0], first_gpus(1)[0]});
  const std::vector<GoldenSequence> sequences = read_golden(golden_path(name) + "/golden.json");
  expect_greedy_passes_pick_the_likeliest(*host.runner, sequences[1].ids);
  expect_rows_drawn_as_on_the_host(*host.runner, sequences.back().ids);
}

TEST_P(CudaGoldenTp, GreedyTextIsTheSameInAnyBatchUpToNearTies) {
  OnGpus two(GetParam(), DType::bf16, KvKind::bf16, first_gpus(2));
  expect_same_text_in_any_batch(*two.runner, sequences_.back().ids, 0.25);
}

/// A load that fails while the pass waits for a layer: the first cause, on the caller's thread, and a runner that works
/// again.
TEST_P(CudaGoldenTp, ARankWhoseWeightsFailEndsThePassWithItsCause) {
  OnGpus two(GetParam(), DType::bf16, KvKind::bf16, first_gpus(2));
  std::unique_ptr<Gates> open = std::move(two.weights[1].ready);
  two.weights[1].ready = std::make_unique<Gates>(n_gates(two.model.config));
  for (int g = 0; g < 2; ++g) two.weights[1].ready->open(g);
  two.weights[1].ready->fail(std::make_exception_ptr(Error(ErrorKind::damaged, "leaf 7")));
  const std::vector<int>& ids = sequences_.back().ids;
  PageTable pages(two.runner->pool());
  ASSERT_TRUE(pages.try_reserve(static_cast<int64_t>(ids.size())));
  const SequenceChunk chunk{ids, 0, &pages, 1};
  std::vector<float> logits;
  try {
    two.runner->forward({&chunk, 1}, logits);
    FAIL() << "a pass over weights that are not there";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "leaf 7");
  }
  two.weights[1].ready = std::move(open);
  Running f32(GetParam(), 1, DType::f32, KvKind::f32);
  EXPECT_LE(mean_kld(*f32.runner, *two.runner, sequences_, 1), kMeanKld);
}

}  // namespace
}  // namespace firstlight
