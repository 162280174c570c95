// SPDX-License-Identifier: Apache-2.0
// shard where something stands already: the same model, another, or foreign files.
#include <gmock/gmock.h>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/ckpt/load.h"
#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/shard_testing.h"

namespace firstlight {
namespace {

using namespace testing_shard;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Shard, AnotherModelOrDtypeOrADirectoryOfOthersIsRefusedWithoutForce) {
  const ScratchDirectory scratch;
  const fs::path out = scratch.path() / "out";
  const MemorySource source(family("llama").config), other(family("llama").config, DType::bf16, 2);
  shard(source, out, small_options({2}));
  const auto before = tree(out);
  error_of(ErrorKind::bad_input, [&] { shard(other, out, small_options({1})); });
  ShardOptions options = small_options({2});
  options.dtype = DTypeChoice::f32;
  error_of(ErrorKind::bad_input, [&] { shard(source, out, options); });
  EXPECT_THAT(differences(before, tree(out)), IsEmpty());

  const fs::path home = scratch.path() / "home";
  fs::create_directories(home);
  write_durably(home / "thesis.txt", std::string_view("years"));
  error_of(ErrorKind::bad_input, [&] { shard(source, home, small_options({1})); });

  options = small_options({1});
  options.force = true;
  shard(other, out, options);
  ScratchDirectory fresh;
  shard(other, fresh.path() / "x", small_options({1}));
  EXPECT_THAT(differences(tree(out), tree(fresh.path() / "x")), IsEmpty());
}

TEST(Shard, WhatIsStoredIsNotWrittenAgain) {
  const ScratchDirectory scratch;
  const MemorySource source(family("llama").config);
  shard(source, scratch.path(), small_options({1, 2}));
  const auto written = fs::last_write_time(scratch.path() / "READY");
  source.bytes_read = 0;
  const ShardReport report = shard(source, scratch.path(), small_options({2}));
  EXPECT_EQ(report.bytes_written, 0u);
  EXPECT_GT(report.bytes_kept, 0u);
  EXPECT_EQ(source.bytes_read.load(), 0u);
  EXPECT_EQ(report.tps, (std::vector<int>{1, 2}));
  EXPECT_EQ(fs::last_write_time(scratch.path() / "READY"), written);
}

TEST(Shard, AMissingOrCutFileOfAFinishedCheckpointIsMadeAgain) {
  const ScratchDirectory scratch;
  const MemorySource source(family("llama").config);
  shard(source, scratch.path(), small_options({1, 2}));
  const auto want = tree(scratch.path());
  for (const auto& [name, content] : want) {
    if (name == "READY" || name == "manifest.json") continue;
    fs::resize_file(scratch.path() / name, content.size() - 1);
    shard(source, scratch.path(), small_options({1}));
    ASSERT_THAT(differences(want, tree(scratch.path())), IsEmpty()) << "after a cut " << name;
    fs::remove(scratch.path() / name);
    shard(source, scratch.path(), small_options({2}));
    ASSERT_THAT(differences(want, tree(scratch.path())), IsEmpty()) << "after a lost " << name;
  }
}

TEST(Shard, ForceStartsAnewWhateverWasThere) {
  const ScratchDirectory scratch, fresh;
  const MemorySource source(family("llama").config);
  MemorySource other(family("qwen3").config);
  other.mutable_aux().push_back({"chat_template.jinja", "of the other model"});
  ShardOptions options = small_options({2});
  shard(source, fresh.path(), options);
  const auto want = tree(fresh.path());
  options.force = true;
  const auto expect_anew = [&](const char* what) {
    const ShardReport report = shard(source, scratch.path(), options);
    EXPECT_EQ(report.bytes_kept, 0u) << what;
    EXPECT_EQ(report.tps, std::vector<int>{2}) << what;
    EXPECT_THAT(differences(want, tree(scratch.path())), IsEmpty()) << what;
    EXPECT_THAT(verify(scratch.path(), 1, {}, nullptr).problems, IsEmpty()) << what;
  };
  expect_anew("nothing");
  shard(source, scratch.path(), small_options({1}));
  expect_anew("the same model at two tps");
  const fs::path part = scratch.path() / read_manifest(scratch.path()).tps[0].ranks[1].parts[0].file;
  std::string damaged = read_text(part);
  damaged[damaged.size() - 7] ^= 1;
  write_durably(part, std::string_view(damaged));
  expect_anew("a flipped bit");
  ShardOptions other_options = small_options({1, 4});
  other_options.force = true;
  other_options.derived = {{"tokenizer.bin", "of the other model"}};
  shard(other, scratch.path(), other_options);
  expect_anew("another model, with a file that this one has not");
  write_durably(scratch.path() / "manifest.json", std::string_view("not JSON"));
  expect_anew("a manifest that cannot be read");
  fs::remove(scratch.path() / "READY");
  write_durably(scratch.path() / "journal.jsonl", std::string_view("nonsense\n"));
  expect_anew("a journal that cannot be read");
}

TEST(Shard, ForceNamesForeignFilesAndLeavesThemAndAllElseAlone) {
  const ScratchDirectory scratch;
  const MemorySource source(family("llama").config);
  shard(source, scratch.path() / "out", small_options({1}));
  ShardOptions options = small_options({1});
  options.force = true;
  for (const char* name : {"thesis.txt", "tp1/rank-00/notes.md", "tp1/x.partial", "movie.partial"}) {
    write_durably(scratch.path() / "out" / name, std::string_view("years"));
    const auto before = tree(scratch.path() / "out");
    EXPECT_THAT(error_of(ErrorKind::bad_input, [&] { shard(source, scratch.path() / "out", options); }),
                HasSubstr(name));
    EXPECT_THAT(differences(before, tree(scratch.path() / "out")), IsEmpty()) << name;
    fs::remove(scratch.path() / "out" / name);
  }
  // A directory that is no checkpoint is not ours, even if its files have names that shard writes.
  fs::create_directories(scratch.path() / "home");
  write_durably(scratch.path() / "home/config.json", std::string_view("{}"));
  EXPECT_THAT(error_of(ErrorKind::bad_input, [&] { shard(source, scratch.path() / "home", options); }),
              HasSubstr("'config.json'"));
  EXPECT_TRUE(fs::exists(scratch.path() / "home/config.json"));
}

}  // namespace
}  // namespace firstlight
