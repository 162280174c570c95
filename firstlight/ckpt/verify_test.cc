// SPDX-License-Identifier: Apache-2.0
// verify finds any single wrong bit under OUT, names it, and does not stop at the first.
#include <gmock/gmock.h>

#include <fstream>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/ckpt/shard_state.h"
#include "firstlight/ckpt/shard_testing.h"

namespace firstlight {
namespace {

using namespace testing_shard;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct Checkpoint {
  MemorySource source{family("smollm2").config};
  ScratchDirectory scratch;
  Checkpoint() {
    ShardOptions options = small_options({1, 3});
    options.part_bytes = 512u << 10;
    shard(source, scratch.path(), options);
  }
  const fs::path& out() const { return scratch.path(); }
  std::vector<std::string> problems() const { return verify(out(), 2, {}, {}).problems; }
  void flip(const std::string& name, size_t at) const {
    std::fstream file(out() / name, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(static_cast<std::streamoff>(at));
    const auto c = static_cast<char>(file.get() ^ 0x10);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(c);
  }
};

TEST(Verify, AFlippedBitInAnyFileIsFoundAndTheFileIsNamed) {
  const Checkpoint c;
  std::mt19937_64 random(7);
  for (const auto& [name, content] : tree(c.out())) {
    for (const size_t at : {size_t{0}, content.size() - 1, static_cast<size_t>(random() % content.size())}) {
      c.flip(name, at);
      EXPECT_THAT(c.problems(), Contains(HasSubstr(name))) << "byte " << at;
      c.flip(name, at);
    }
  }
  EXPECT_THAT(c.problems(), IsEmpty());
}

TEST(Verify, AWrongLeafIsNamedWithItsRangeAndTensors) {
  const Checkpoint c;
  const Manifest manifest = read_manifest(c.out());
  const ManifestPart& part = manifest.find_tp(3)->ranks[1].parts[0];
  for (const auto& [name, tensor] : read_safetensors(c.out() / part.file)) {
    c.flip(part.file, kDataBegin + tensor.begin);
    const auto problems = c.problems();
    ASSERT_EQ(problems.size(), 1u) << name;
    EXPECT_THAT(problems[0],
                ::testing::AllOf(HasSubstr(part.file), HasSubstr(name), HasSubstr("leaf 0"), HasSubstr("[2097152, ")));
    c.flip(part.file, kDataBegin + tensor.begin);
  }
}

TEST(Verify, ABitInTheHeadersPaddingIsFoundThoughNoLeafHasIt) {
  const Checkpoint c;
  const std::string name = "tp1/rank-00/" + std::string("leaves.xxh3");
  const Manifest manifest = read_manifest(c.out());
  const std::string file = manifest.tps[0].ranks[0].parts[0].file;
  c.flip(file, kDataBegin - 100);
  EXPECT_THAT(c.problems(), Contains(::testing::AllOf(HasSubstr(file), HasSubstr("the header"))));
}

TEST(Verify, MissingExtraCutAndLinkedFilesAreNamedAllAtOnce) {
  const Checkpoint c;
  const Manifest manifest = read_manifest(c.out());
  fs::remove(c.out() / "tokenizer.json");
  fs::resize_file(c.out() / manifest.tps[1].ranks[2].parts[0].file, 100);
  std::ofstream(c.out() / "tp3/rank-01/notes.txt") << "x";
  fs::rename(c.out() / "tp1/rank-00/config.json", c.out() / "elsewhere");
  fs::create_symlink(c.out() / "elsewhere", c.out() / "tp1/rank-00/config.json");
  const auto problems = c.problems();
  EXPECT_THAT(problems, Contains(::testing::AllOf(HasSubstr("tokenizer.json"), HasSubstr("missing"))));
  EXPECT_THAT(problems,
              Contains(::testing::AllOf(HasSubstr(manifest.tps[1].ranks[2].parts[0].file), HasSubstr("100 bytes"))));
  EXPECT_THAT(problems, Contains(::testing::AllOf(HasSubstr("notes.txt"), HasSubstr("not in the manifest"))));
  EXPECT_THAT(problems, Contains(::testing::AllOf(HasSubstr("rank-00/config.json"), HasSubstr("not a plain file"))));
}

TEST(Verify, AnUnfinishedCheckpointIsNotOne) {
  for (const char* name : {"READY", "manifest.json"}) {
    const Checkpoint c;
    fs::remove(c.out() / name);
    EXPECT_THAT(c.problems(), Contains(HasSubstr(name)));
  }
}

TEST(Verify, WhatIsNotInTheManifestIsTheRestOfAConversionOrForeign) {
  const Checkpoint c;
  std::ofstream(c.out() / "tp1/rank-00/model-00001-of-00001.safetensors.partial") << "x";
  VerifyReport report = verify(c.out(), 1, {}, {});
  EXPECT_TRUE(report.unfinished && !report.being_written && !report.foreign && !report.damaged);
  {
    const OutLock lock(c.out());
    EXPECT_TRUE(verify(c.out(), 1, {}, {}).being_written);
  }
  std::ofstream(c.out() / "notes.txt") << "x";
  report = verify(c.out(), 1, {}, {});
  EXPECT_TRUE(report.unfinished && report.foreign && !report.damaged);
}

TEST(Verify, ADirectoryWithoutACheckpointIsBadInput) {
  const Checkpoint c;
  try {
    verify(c.out() / "tp3", 1, {}, {});
    FAIL() << "verified a directory of ranks";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::bad_input);
  }
}

TEST(Verify, AManifestOfAnotherArchitectureThanConfigJsonIsFound) {
  const Checkpoint c;
  Manifest manifest = read_manifest(c.out());
  manifest.architecture = "mistral";
  const std::string json = to_json(manifest);
  std::ofstream(c.out() / "manifest.json", std::ios::binary) << json;
  std::ofstream(c.out() / "READY") << xxh3_128_hex(std::as_bytes(std::span(json))) << "\n";
  EXPECT_THAT(c.problems(), Contains(::testing::AllOf(HasSubstr("config.json"), HasSubstr("mistral"))));
}

TEST(Verify, ExchangedRanksAreFoundAlthoughEveryFileIsWholeInItself) {
  const Checkpoint c;
  fs::rename(c.out() / "tp3/rank-00", c.out() / "tp3/x");
  fs::rename(c.out() / "tp3/rank-01", c.out() / "tp3/rank-00");
  fs::rename(c.out() / "tp3/x", c.out() / "tp3/rank-01");
  EXPECT_THAT(c.problems(), Not(IsEmpty()));
}

TEST(Verify, ItCountsEveryByteAndLeafAndSaysHowFarItIs) {
  const Checkpoint c;
  uint64_t bytes = 0, leaves = 0;
  const auto files = tree(c.out());
  for (const auto& [name, content] : files) {
    if (name != "READY" && name != "manifest.json") bytes += content.size();
    if (name.ends_with("leaves.xxh3")) leaves += content.size() / 8;
  }
  Progress last;
  const VerifyReport report = verify(c.out(), 2, {}, [&](const Progress& progress) { last = progress; });
  EXPECT_EQ(report.bytes, bytes);
  EXPECT_EQ(report.leaves, leaves);
  EXPECT_EQ(report.files, files.size());
  EXPECT_EQ(last.total_bytes, bytes);
}

TEST(Verify, AStopIsHeard) {
  const Checkpoint c;
  std::stop_source stop;
  stop.request_stop();
  EXPECT_THROW(verify(c.out(), 1, stop.get_token(), {}), Interrupted);
}

}  // namespace
}  // namespace firstlight
