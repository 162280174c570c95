// SPDX-License-Identifier: Apache-2.0
// From the files to the answer: both ways of loading a model, at every tensor-parallel split, must give the bits that
// weights cut in memory give (golden_test.cc holds those against transformers).
#include <unistd.h>

#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/source.h"
#include "golden.h"

namespace firstlight {
namespace {

class GoldenLoad : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    out_ = fs::path(testing::TempDir()) /
           ("golden_load_" + golden_test_name({GetParam(), 0}) + "_" + std::to_string(getpid()));
    fs::remove_all(out_);
    source_ = open_source(golden_path(GetParam()));
    ids_ = read_golden(golden_path(GetParam()) + "/golden.json")[1].ids;
  }
  void TearDown() override { fs::remove_all(out_); }

  /// The bits of a load in flight are those of the model cut in memory; computes behind the gates.
  void expect_same_bits(Load& load, int tp, DType dtype) const {
    const KvKind kv = dtype == DType::f32 ? KvKind::f32 : KvKind::bf16;
    ModelConfig expected = parse_hf_config(content(golden_path(GetParam()) + "/config.json"));
    expected.dtype = load.config().dtype;  // a checkpoint converted to f32 says so
    EXPECT_EQ(load.config(), expected);
    RunnerOptions options;
    options.kv = kv;
    options.n_pages = 40;
    options.n_threads = 1;
    const auto runner = make_runner(load.config(), load.weights(), options);
    const std::vector<float> logits = all_logits(*runner, ids_);
    load.wait();
    EXPECT_EQ(logits, all_logits(*Running(GetParam(), tp, dtype, kv).runner, ids_))
        << "tp " << tp << ", " << to_string(dtype);
  }

  fs::path out_;
  std::unique_ptr<Source> source_;
  std::vector<int> ids_;
};
INSTANTIATE_TEST_SUITE_P(All, GoldenLoad, testing::ValuesIn(golden_models()), golden_test_name);

TEST_P(GoldenLoad, TheTraditionalPathGivesTheWeightsAtEverySplit) {
  for (const int tp : possible_tps(source_->config())) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      LoadOptions options;
      options.tp = tp;
      options.dtype = dtype;
      expect_same_bits(*load_traditionally(*source_, options), tp, dtype);
    }
  }
}

TEST_P(GoldenLoad, ARankCheckpointGivesTheWeightsAtEverySplit) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    fs::remove_all(out_);
    ShardOptions sharding;
    sharding.tps = possible_tps(source_->config());
    sharding.dtype = dtype == DType::f32 ? DTypeChoice::f32 : DTypeChoice::source;  // the source is bf16
    shard(*source_, out_, sharding);
    for (const int tp : sharding.tps) {
      LoadOptions options;
      options.tp = tp;
      expect_same_bits(*load_rank_checkpoint(out_, options), tp, dtype);
    }
  }
}

}  // namespace
}  // namespace firstlight
