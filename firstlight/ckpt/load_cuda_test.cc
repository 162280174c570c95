// SPDX-License-Identifier: Apache-2.0
// Rank checkpoints into HBM: every weight, damage on disk and in HBM, memory that does not suffice.
#include <gtest/gtest.h>

#include "firstlight/ckpt/load_fixture.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/gpus.h"
#include "firstlight/io/fault_read.h"

namespace firstlight {
namespace {

class LoadCudaTest : public LoadTest {
 protected:
  void SetUp() override {
    LoadTest::SetUp();
    if (gpus().names.empty()) GTEST_SKIP() << "no GPU: " << gpus().why_none;
    options_.device = gpu_;
    options_.tp = 2;
  }
  /// The same table over a copy in host memory.
  static RankWeights to_host(const RankWeights& on_gpu) {
    RankWeights host;
    host.rank = on_gpu.rank;
    host.tp = on_gpu.tp;
    host.arena = Buffer({}, on_gpu.arena.size());
    copy(host.arena.data(), {}, on_gpu.arena.data(), on_gpu.arena.device(), on_gpu.arena.size());
    for (const auto& [name, tensor] : on_gpu.tensors) {
      Tensor moved = tensor;
      moved.data = host.arena.data() + (tensor.data - on_gpu.arena.data());
      host.tensors.emplace(name, moved);
    }
    return host;
  }
  void expect_all(Load& load) {
    load.wait();
    for (const RankWeights& weights : load.weights()) {
      EXPECT_EQ(weights.arena.device(), gpu_);
      for (int gate = 0; gate < weights.ready->size(); ++gate) EXPECT_TRUE(weights.ready->is_open(gate));
      expect_weights(load.config(), to_host(weights));
    }
  }
  Device gpu_{Device::Kind::cuda, 0};
  LoadOptions options_;
};

TEST_F(LoadCudaTest, EveryWeightArrivesForEveryTp) {
  for (const int tp : {1, 2, 4}) {
    for (const Verify verify : {Verify::full, Verify::off}) {
      options_.tp = tp;
      options_.verify = verify;
      const auto load = load_rank_checkpoint(out_, options_);
      expect_all(*load);
    }
  }
}

TEST_F(LoadCudaTest, AByteThatFlipsInDeviceMemoryIsNamedWithTensorFileAndRange) {
  int found = 0;
  for (int at = 0; at < 12; ++at) {
    options_.make_hasher = [at](Device device) { return std::make_unique<FlippingHasher>(device, at); };
    const std::optional<Error> error = error_of(options_);
    if (!error) break;
    ++found;
    const std::string what = error->what();
    EXPECT_EQ(error->kind(), ErrorKind::damaged);
    for (const char* word : {".safetensors' bytes [", "leaves.xxh3", "the storage is sound", "model."}) {
      EXPECT_NE(what.find(word), std::string::npos) << what;
    }
  }
  EXPECT_GE(found, 4);
}

TEST_F(LoadCudaTest, AFlippedBitInAFileIsNamed) {
  const ManifestRank rank = read_manifest(out_).find_tp(2)->ranks[1];
  for (const ManifestPart& part : rank.parts) {
    for (const uint64_t at : {uint64_t{0}, part.data_bytes / 2, part.data_bytes - 1}) {
      flip(out_ / part.file, kDataBegin + at);
      expect_error(ErrorKind::damaged, {fs::path(part.file).filename(), "same wrong bytes"}, options_);
      flip(out_ / part.file, kDataBegin + at);
    }
  }
}

TEST_F(LoadCudaTest, TooLittleMemoryIsFoundBeforeTheFirstRead) {
  const auto faulty = std::make_shared<FaultyRead>(std::vector<Fault>{});
  options_.make_reader = [=](int) { return make_faulty_reader(faulty, 2); };
  options_.reserve_bytes = uint64_t{1} << 50;
  expect_error(ErrorKind::out_of_memory, {"memory of cuda:0", "are available", "it fits"}, options_);
  options_.reserve_bytes = 0;
  const uint64_t small_reads = faulty->n_calls();
  EXPECT_FALSE(error_of(options_));
  EXPECT_GT(faulty->n_calls(), 2 * small_reads);
}

TEST_F(LoadCudaTest, ATraditionalLoadFillsTheSameWeights) {
  for (const int tp : {1, 4}) {
    options_.tp = tp;
    const auto load = load_traditionally(FakeSource(), options_);
    expect_all(*load);
  }
}

TEST_F(LoadCudaTest, AbandonedLoadsEndInOrder) {
  for (int round = 0; round < 10; ++round) {
    const auto load = load_rank_checkpoint(out_, options_);
    if (round % 2 == 0) load->weights()[0].ready->wait(0);
  }
}

}  // namespace
}  // namespace firstlight
