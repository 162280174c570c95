// SPDX-License-Identifier: Apache-2.0
// The load's way to a device, with host memory in the device's place: ring, checks on a thread of their own, damage
// that no storage has done. What a real GPU does is tested by load_cuda_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <future>
#include <mutex>

#include "firstlight/base/start_thread.h"
#include "firstlight/ckpt/load_fixture.h"
#include "firstlight/io/fault_read.h"

namespace firstlight {
namespace {

/// Flips one byte of the arena or a tail's staging before it is hashed: leaf `at` in the order of hashing.
class BrokenHasher final : public LeafHasher {
 public:
  explicit BrokenHasher(std::shared_future<void> wait = {}) : wait_(std::move(wait)) {}
  void hash(std::span<const LeafBytes>, std::span<uint64_t>) override {
    if (wait_.valid()) wait_.wait();
    throw Error(ErrorKind::device, "the kernel fell over");
  }

 private:
  std::shared_future<void> wait_;
};

class BrokenStaging final : public Staging {
 public:
  int n_slots() const override { return below_->n_slots(); }
  uint64_t slot_bytes() const override { return below_->slot_bytes(); }
  uint64_t read_bytes() const override { return below_->read_bytes(); }
  std::byte* slot(int i) override { return below_->slot(i); }
  void start(int i, std::byte* into, uint64_t bytes) override { below_->start(i, into, bytes); }
  void fetch(int i, uint64_t at, const std::byte* from, uint64_t bytes) override { below_->fetch(i, at, from, bytes); }
  bool finished(int) override { throw Error(ErrorKind::device, "the link fell over"); }

 private:
  std::unique_ptr<Staging> below_ = make_staging({}, {4, 1u << 20});
};

/// Calls a function when the n-th copy begins.
class CountingStaging final : public Staging {
 public:
  CountingStaging(int n, std::function<void()> call) : n_left_(n), call_(std::move(call)) {}
  int n_slots() const override { return below_->n_slots(); }
  uint64_t slot_bytes() const override { return below_->slot_bytes(); }
  uint64_t read_bytes() const override { return below_->read_bytes(); }
  std::byte* slot(int i) override { return below_->slot(i); }
  void start(int i, std::byte* into, uint64_t bytes) override {
    if (--n_left_ == 0) call_();
    below_->start(i, into, bytes);
  }
  void fetch(int i, uint64_t at, const std::byte* from, uint64_t bytes) override { below_->fetch(i, at, from, bytes); }
  bool finished(int i) override { return below_->finished(i); }

 private:
  std::unique_ptr<Staging> below_ = make_staging({}, {2, 1u << 19});
  std::atomic<int> n_left_;
  std::function<void()> call_;
};

class LoadDeviceTest : public LoadTest {
 protected:
  void SetUp() override {
    LoadTest::SetUp();
    options_.tp = 2;
    options_.make_staging = [](Device device) { return make_staging(device, {3, 1u << 19, 1u << 17}); };
  }
  LoadOptions options_;
};

TEST_F(LoadDeviceTest, EveryWeightArrivesForEveryTp) {
  for (const int tp : {1, 2, 4}) {
    for (const Verify verify : {Verify::full, Verify::off}) {
      options_.tp = tp;
      options_.verify = verify;
      const auto load = load_rank_checkpoint(out_, options_);
      const LoadReport report = load->wait();
      for (const RankWeights& weights : load->weights()) {
        for (int gate = 0; gate < weights.ready->size(); ++gate) EXPECT_TRUE(weights.ready->is_open(gate));
        expect_weights(load->config(), weights);
      }
      uint64_t leaves = 0;
      for (const RankReport& rank : report.ranks) leaves += rank.leaves_checked;
      EXPECT_EQ(leaves != 0, verify == Verify::full);
    }
  }
}

TEST_F(LoadDeviceTest, EachDeviceHasARingAndAHasherAndGetsItsRanks) {
  const Device a{}, b{Device::Kind::cpu, 1}, c{Device::Kind::cpu, 2};
  options_.tp = 4;
  options_.devices = {a, b, a, c};
  std::mutex mutex;
  std::vector<Device> rings, hashers;
  options_.make_staging = [&](Device device) {
    const std::lock_guard lock(mutex);
    rings.push_back(device);
    return make_staging(device, {3, 1u << 19});
  };
  options_.make_hasher = [&](Device device) {
    const std::lock_guard lock(mutex);
    hashers.push_back(device);
    return make_leaf_hasher(device);
  };
  const auto load = load_rank_checkpoint(out_, options_);
  const LoadReport report = load->wait();
  for (size_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(report.ranks[rank].device, options_.devices[rank]);
    EXPECT_EQ(load->weights()[rank].arena.device(), options_.devices[rank]);
    expect_weights(load->config(), load->weights()[rank]);
  }
  for (std::vector<Device>* made : {&rings, &hashers}) {
    EXPECT_EQ(made->size(), 3u);
    for (const Device device : {a, b, c}) EXPECT_EQ(std::count(made->begin(), made->end(), device), 1);
  }
}

TEST_F(LoadDeviceTest, ItsLanesReadAndHashMoreForOthers) {
  const fs::path path = out_ / "manifest.json";
  const auto file = File::open(path);
  for (const Verify verify : {Verify::full, Verify::off}) {
    options_.verify = verify;
    const auto load = load_rank_checkpoint(out_, options_);
    const std::vector<ReadLane*> lanes = load->lanes();
    ASSERT_EQ(lanes.size(), 2u);
    EXPECT_EQ(lanes[0], lanes[1]);  // one device
    const Buffer into({}, file->size());
    std::promise<uint64_t> hash;
    lanes[0]->reader->submit({{{0, file, 0, into.size(), into.data()}}}, [&](const ReadCompletion& done) {
      EXPECT_EQ(done.result, static_cast<int64_t>(into.size()));
      lanes[0]->checks->add({{into.data(), into.size()}},
                            [&](auto hashes, const std::exception_ptr&) { hash.set_value(hashes[0]); });
    });
    std::string expected(file->size(), '\0');
    file->read(0, std::as_writable_bytes(std::span(expected)));
    EXPECT_EQ(hash.get_future().get(), xxh3_64(std::as_bytes(std::span(expected))));
    load->wait();
    EXPECT_NO_THROW(load->rethrow_failure());
    for (const RankWeights& weights : load->weights()) expect_weights(load->config(), weights);
  }
}

TEST_F(LoadDeviceTest, AFailureOnOneDeviceEndsTheLoadOnAll) {
  options_.devices = {Device{}, {Device::Kind::cpu, 1}};
  std::promise<void> begun;  // before that the failure would be load_rank_checkpoint()'s
  options_.make_hasher = [&, wait = begun.get_future().share()](Device device) -> std::unique_ptr<LeafHasher> {
    if (device.index == 1) return std::make_unique<BrokenHasher>(wait);
    return make_leaf_hasher(device);
  };
  const auto load = load_rank_checkpoint(out_, options_);
  begun.set_value();
  EXPECT_THROW(load->wait(), Error);
  EXPECT_THROW(load->rethrow_failure(), Error);
  for (const RankWeights& weights : load->weights()) {
    EXPECT_THROW(weights.ready->wait(n_gates(load->config()) - 1), Error) << "rank " << weights.rank;
  }
  options_.devices.pop_back();
  expect_error(ErrorKind::bug, {"1 devices for tp 2"}, options_);
}

TEST_F(LoadDeviceTest, AByteThatChangesInMemoryIsNamedWithTensorFileAndRange) {
  const int n_leaves = 12;
  int found = 0;
  for (int at = 0; at < n_leaves; ++at) {
    options_.make_hasher = [at](Device) { return std::make_unique<FlippingHasher>(Device{}, at); };
    const std::optional<Error> error = error_of(options_);
    if (!error) break;  // there were fewer leaves
    ++found;
    const std::string what = error->what();
    EXPECT_EQ(error->kind(), ErrorKind::damaged);
    for (const char* word : {".safetensors' bytes [", "leaves.xxh3", "the storage is sound", "model."}) {
      EXPECT_NE(what.find(word), std::string::npos) << what;
    }
  }
  EXPECT_GE(found, 4);
}

TEST_F(LoadDeviceTest, ASampleFindsDamageInTheFirstLeafOfAPartAndSaysHowManyItChecked) {
  out_ = make_checkpoint("sampled", DTypeChoice::bf16, 1u << 30);
  options_.tp = 1;
  options_.verify = Verify::sample;
  const ManifestPart part = read_manifest(out_).find_tp(1)->ranks[0].parts.at(0);
  const uint64_t n_leaves = (part.data_bytes + kLeafBytes - 1) / kLeafBytes;
  const uint64_t tail_leaves = n_leaves - part.tail_begin / kLeafBytes;
  ASSERT_GT(n_leaves, tail_leaves + 2);
  EXPECT_EQ(load_rank_checkpoint(out_, options_)->wait().verify,
            str("sample: every 16th leaf, ", 1 + tail_leaves, " of ", n_leaves));
  flip(out_ / part.file, kDataBegin + kLeafBytes + 77);
  EXPECT_FALSE(error_of(options_)) << "a leaf that is not looked at";
  flip(out_ / part.file, kDataBegin + 77);
  expect_error(ErrorKind::damaged, {fs::path(part.file).filename(), "same wrong bytes"}, options_);
}

TEST_F(LoadDeviceTest, AFlippedBitInAFileIsNamed) {
  const ManifestRank rank = read_manifest(out_).find_tp(2)->ranks[1];
  for (const ManifestPart& part : rank.parts) {
    for (const uint64_t at : {uint64_t{0}, part.data_bytes / 2, part.data_bytes - 1}) {
      flip(out_ / part.file, kDataBegin + at);
      expect_error(ErrorKind::damaged, {fs::path(part.file).filename(), "same wrong bytes"}, options_);
      flip(out_ / part.file, kDataBegin + at);
    }
    flip(out_ / part.file, kDataBegin - 1);
    expect_error(ErrorKind::damaged, {"padding"}, options_);
    flip(out_ / part.file, kDataBegin - 1);
  }
  EXPECT_FALSE(error_of(options_)) << "all flips were undone";
}

TEST_F(LoadDeviceTest, WhatTheDeviceFailsAtIsTheLoadsError) {
  options_.make_hasher = [](Device) { return std::make_unique<BrokenHasher>(); };
  expect_error(ErrorKind::device, {"the kernel fell over"}, options_);
  options_.make_hasher = [](Device) -> std::unique_ptr<LeafHasher> { throw Error(ErrorKind::device, "no hasher"); };
  expect_error(ErrorKind::device, {"no hasher"}, options_);
  options_.make_hasher = nullptr;
  options_.make_staging = [](Device) { return std::make_unique<BrokenStaging>(); };
  expect_error(ErrorKind::device, {"the link fell over"}, options_);
  options_.make_staging = [](Device) -> std::unique_ptr<Staging> { throw Error(ErrorKind::device, "no ring"); };
  expect_error(ErrorKind::device, {"no ring"}, options_);
}

/// More copies than the ring has slots, before the hashes of what they bring have been read.
TEST_F(LoadDeviceTest, CopiesDoNotWaitForHeaders) {
  const auto faulty =
      std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .file = "rank-01/leaves.xxh3"}});
  std::promise<void> copied;
  options_.make_reader = [=](int) { return make_faulty_reader(faulty, 4); };
  options_.make_staging = [&](Device) {
    return std::make_unique<CountingStaging>(5, [&] {
      EXPECT_EQ(faulty->n_stalled(), 1u);
      copied.set_value();
    });
  };
  const auto release = start_future("the storage", [&, done = copied.get_future()] {
    EXPECT_EQ(done.wait_for(std::chrono::seconds(20)), std::future_status::ready) << "or it would hang";
    faulty->release();
  });
  const auto load = load_rank_checkpoint(out_, options_);
  load->wait();
  for (const RankWeights& weights : load->weights()) expect_weights(load->config(), weights);
}

TEST_F(LoadDeviceTest, ABadHeaderEndsALoadWhoseCopiesAreUnderWay) {
  const ManifestRank rank = read_manifest(out_).find_tp(2)->ranks[1];
  for (const Verify verify : {Verify::full, Verify::off}) {
    options_.verify = verify;
    for (int round = 0; round < 5; ++round) {
      const fs::path part = out_ / rank.parts.back().file, leaves = out_ / rank.directory / "leaves.xxh3";
      flip(part, rank.parts.back().header_bytes / 2);
      expect_error(ErrorKind::damaged, {part.filename(), "manifest"}, options_);
      flip(part, rank.parts.back().header_bytes / 2);
      if (verify == Verify::off) continue;
      flip(leaves, 9);
      expect_error(ErrorKind::damaged, {"leaves.xxh3", "manifest"}, options_);
      flip(leaves, 9);
    }
  }
  EXPECT_FALSE(error_of(options_)) << "all flips were undone";
}

TEST_F(LoadDeviceTest, FailingStorageAndAbandonedLoadsEndInOrder) {
  const auto faulty = std::make_shared<FaultyRead>(
      std::vector<Fault>{{.kind = Fault::Kind::error, .amount = EIO, .first_call = 12, .n_calls = 1}});
  options_.make_reader = [=](int) { return make_faulty_reader(faulty, 2); };
  expect_error(ErrorKind::io, {"bytes [", "Input/output error"}, options_);
  options_.make_reader = nullptr;
  for (int round = 0; round < 10; ++round) {
    const auto load = load_rank_checkpoint(out_, options_);
    if (round % 2 == 0) load->weights()[0].ready->wait(0);
  }
}

}  // namespace
}  // namespace firstlight
