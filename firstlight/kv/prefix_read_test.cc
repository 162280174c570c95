// SPDX-License-Identifier: Apache-2.0
// Pages of a prefix by the lanes of a load: in long reads, through a ring, hashed where they end, and given up.
#include "firstlight/kv/prefix_read.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "firstlight/io/fault_read.h"
#include "firstlight/io/staged_reader.h"
#include "firstlight/kv/prefix_testing.h"

namespace firstlight {
namespace {

using testing::HasSubstr;

struct SavedPrefix {
  explicit SavedPrefix(const PrefixInfo& of, const CacheIs& is = {}) : info(of), from(info, 1, /*filled=*/true, is) {
    write_prefix(path(), info, from.ranks, from.table);
  }
  fs::path path() const { return folder / "p"; }
  Folder folder;
  PrefixInfo info;
  FakeCache from;
};

/// Of `n` layers, so that a page is as long as one likes: 64 KiB each in f32.
PrefixInfo of_layers(int n, int n_pages) {
  PrefixInfo info = prefix_info(KvKind::f32, n_pages);
  info.n_layers = n;
  return info;
}

class NoHasher final : public LeafHasher {
 public:
  void hash(std::span<const LeafBytes>, std::span<uint64_t>) override {
    throw Error(ErrorKind::device, "the kernel fell over");
  }
};

/// Flips a bit of what it is to hash, where it lies.
class FlippingLeafHasher final : public LeafHasher {
 public:
  void hash(std::span<const LeafBytes> leaves, std::span<uint64_t> hashes) override {
    const LeafBytes& leaf = leaves.back();
    const_cast<std::byte*>(leaf.data)[leaf.size / 2] ^= std::byte{1};
    make_leaf_hasher({})->hash(leaves, hashes);
  }
};

/// As a GPU's, with host memory in its place.
ReadLane staged_lane(
    StagingSize size, const LeafChecks::MakeHasher& make = [] { return make_leaf_hasher({}); }) {
  ReadLane lane;
  lane.checks = std::make_unique<LeafChecks>(make);
  auto reader =
      std::make_unique<StagedReader>(std::make_unique<PreadReader>(2), [size] { return make_staging({}, size); });
  lane.on_device = reader.get();
  lane.reader = std::move(reader);
  return lane;
}

std::string failure_of(ErrorKind kind, const std::function<void()>& fn) {
  try {
    fn();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(PrefixRead, PagesSideBySideAreReadTogether) {
  // 200 pages of 192 KiB, 37.5 MiB: ten reads of 4 MiB at most.
  const SavedPrefix saved(of_layers(3, 200), {200, false, {}});
  for (const bool in_order : {true, false}) {
    FakeCache to(saved.info, 2, false, {200, in_order, {}});
    const auto calls = std::make_shared<FaultyRead>(std::vector<Fault>{});
    ReadLane lane = lane_of(make_faulty_reader(calls, 2));
    EXPECT_EQ(read_prefix(PrefixFile(saved.path()), lane, to.ranks, to.table), 200u * 3 * 65536);
    EXPECT_TRUE(to.content(saved.info) == saved.from.content(saved.info));
    if (in_order)
      EXPECT_EQ(calls->n_calls(), 10u);
    else
      EXPECT_GT(calls->n_calls(), 180u);  // of few a neighbour follows by chance
  }
}

TEST(PrefixRead, APageMayBeLongerThanARead) {
  const SavedPrefix saved(of_layers(200, 3), {3, false, {}});  // of 12.5 MiB
  for (const bool in_order : {true, false}) {
    FakeCache to(saved.info, 2, false, {3, in_order, {}});
    ReadLane lane = lane_of(std::make_unique<PreadReader>(3));
    read_prefix(PrefixFile(saved.path()), lane, to.ranks, to.table);
    EXPECT_TRUE(to.content(saved.info) == saved.from.content(saved.info));
  }
}

TEST(PrefixRead, GoesThroughARingAndIsHashedWhereItEnds) {
  for (const KvKind kind : {KvKind::bf16, KvKind::tq4}) {
    for (const int tp : {1, 2}) {
      for (const bool in_order : {true, false}) {
        const SavedPrefix saved(prefix_info(kind, 9, tp));
        FakeCache to(saved.info, 2, false, {12, in_order, {}});
        ReadLane lane = staged_lane({3, 1u << 16, 1u << 14}), other = staged_lane({2, 1u << 14, 1u << 13});
        const std::vector<ReadLane*> lanes = tp == 1 ? std::vector{&lane} : std::vector{&lane, &other};
        PrefixRead(PrefixFile(saved.path()), lanes, to.ranks, to.table).wait();
        EXPECT_TRUE(to.content(saved.info) == saved.from.content(saved.info));
      }
    }
  }
}

TEST(PrefixRead, ABitThatFlipsBehindTheRingIsFound) {
  const SavedPrefix saved(prefix_info(KvKind::tq4, 9));
  FakeCache to(saved.info, 2, false);
  ReadLane flipping = staged_lane({3, 1u << 16, 1u << 14}, [] { return std::make_unique<FlippingLeafHasher>(); });
  EXPECT_THAT(
      failure_of(ErrorKind::damaged, [&] { read_prefix(PrefixFile(saved.path()), flipping, to.ranks, to.table); }),
      HasSubstr("XXH3-64"));
  ReadLane broken = staged_lane({3, 1u << 16, 1u << 14}, [] { return std::make_unique<NoHasher>(); });
  EXPECT_THAT(failure_of(ErrorKind::device, [&] { read_prefix(PrefixFile(saved.path()), broken, to.ranks, to.table); }),
              HasSubstr("the kernel fell over"));
  ReadLane none = staged_lane({3, 1u << 16, 1u << 14},
                              []() -> std::unique_ptr<LeafHasher> { throw Error(ErrorKind::device, "no hasher"); });
  failure_of(ErrorKind::device, [&] { read_prefix(PrefixFile(saved.path()), none, to.ranks, to.table); });
}

/// Lets a stalled read go on when what waits behind it has been cancelled.
class ReleasedByCancel final : public Reader {
 public:
  explicit ReleasedByCancel(std::shared_ptr<FaultyRead> faulty)
      : faulty_(std::move(faulty)), below_(make_faulty_reader(faulty_, 1)) {}
  void submit(std::span<const ReadRequest> requests, const ReadCallback& done) override {
    below_->submit(requests, done);
  }
  void set_deadline(Clock::time_point deadline) override { below_->set_deadline(deadline); }
  void cancel() override {
    below_->cancel();
    faulty_->release();
  }
  void wait() override { below_->wait(); }
  std::string_view name() const override { return below_->name(); }
  std::string why() const override { return below_->why(); }

 private:
  std::shared_ptr<FaultyRead> faulty_;
  std::unique_ptr<Reader> below_;
};

TEST(PrefixRead, OneThatIsGivenUpCancelsWhatWaitsAndWaitsForWhatRuns) {
  const SavedPrefix saved(of_layers(200, 3), {3, false, {}});
  const auto stalled = std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .n_calls = 1}});
  ReadLane lane = lane_of(std::make_unique<ReleasedByCancel>(stalled));
  {
    FakeCache to(saved.info, 2, false, {3, false, {}});
    const std::vector<ReadLane*> lanes{&lane};
    const PrefixRead read(PrefixFile(saved.path()), lanes, to.ranks, to.table);
    while (stalled->n_stalled() == 0) std::this_thread::yield();
  }
  EXPECT_EQ(stalled->n_calls(), 1u);
}

/// A load that fails does so.
TEST(PrefixRead, OneWhoseLaneIsCancelledFails) {
  const SavedPrefix saved(of_layers(200, 3), {3, false, {}});
  const auto stalled = std::make_shared<FaultyRead>(std::vector<Fault>{{.kind = Fault::Kind::stall, .n_calls = 1}});
  ReadLane lane = lane_of(std::make_unique<ReleasedByCancel>(stalled));
  FakeCache to(saved.info, 2, false, {3, false, {}});
  const std::vector<ReadLane*> lanes{&lane};
  PrefixRead read(PrefixFile(saved.path()), lanes, to.ranks, to.table);
  while (stalled->n_stalled() == 0) std::this_thread::yield();
  lane.reader->cancel();
  EXPECT_THAT(failure_of(ErrorKind::io, [&] { read.wait(); }), HasSubstr("cancelled"));
}

TEST(PrefixRead, TheDeadlineOfTheLaneIsThePrefixesToo) {
  const SavedPrefix saved(prefix_info(KvKind::bf16, 9));
  FakeCache to(saved.info, 2, false);
  ReadLane lane = lane_of(std::make_unique<PreadReader>(2));
  lane.reader->set_deadline(Reader::Clock::now());
  EXPECT_THAT(failure_of(ErrorKind::io, [&] { read_prefix(PrefixFile(saved.path()), lane, to.ranks, to.table); }),
              HasSubstr("deadline"));
}

}  // namespace
}  // namespace firstlight
