// SPDX-License-Identifier: Apache-2.0
// A conversion that is cut off anywhere leaves nothing that looks whole, and the same call completes it to the same
// byte.
#include <gmock/gmock.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <atomic>
#include <fstream>

#include "firstlight/base/error.h"
#include "firstlight/ckpt/shard_job.h"
#include "firstlight/ckpt/shard_testing.h"

namespace firstlight {
namespace {

using namespace testing_shard;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Crash {};

/// Steps counted over all threads; the n-th throws (or calls `then`), and so do all after it: a dead process does
/// nothing more.
class Fault {
 public:
  explicit Fault(
      int at, std::function<void()> then = [] { throw Crash(); })
      : at_(at), then_(std::move(then)) {}
  StepHook hook() {
    return [this](std::string_view, const std::string&) {
      if (n_++ >= at_) then_();
    };
  }
  int steps() const { return n_; }

 private:
  std::atomic<int> n_{0};
  int at_;
  std::function<void()> then_;
};

constexpr int kNever = 1 << 30;

/// Two parts a rank, heads and tails.
struct Case {
  MemorySource source{family("llama").config};
  ShardOptions options = small_options({1, 2});
  ScratchDirectory scratch;
  std::map<std::string, std::string> want;
  int n_steps = 0;

  Case() {
    options.part_bytes = 256u << 10;
    Fault count(kNever);
    shard_with_hook(source, scratch.path() / "want", options, count.hook());
    want = tree(scratch.path() / "want");
    n_steps = count.steps();
  }
  fs::path out() const { return scratch.path() / "out"; }
  void clear() const { fs::remove_all(out()); }
};

/// Nothing may be loadable that is not all there: READY only beside a manifest whose files are right.
void expect_nothing_looks_whole(const fs::path& out) {
  if (!fs::exists(out / "READY")) return;
  for (const auto& [name, file] : read_manifest(out).files) EXPECT_EQ(fs::file_size(out / name), file.size) << name;
}

TEST(ShardResume, ACrashAtAnyStepIsCompletedToTheSameBytes) {
  const Case s;
  ASSERT_GT(s.n_steps, 30);
  bool kept_something = false;
  for (int step = 0; step < s.n_steps; ++step) {
    s.clear();
    Fault fault(step);
    EXPECT_THROW(shard_with_hook(s.source, s.out(), s.options, fault.hook()), Crash) << step;
    EXPECT_FALSE(fs::exists(s.out() / "READY")) << step;
    const ShardReport report = shard(s.source, s.out(), s.options);
    kept_something |= report.bytes_kept > 0;
    ASSERT_THAT(differences(s.want, tree(s.out())), IsEmpty()) << "after a crash at step " << step;
  }
  EXPECT_TRUE(kept_something);
}

TEST(ShardResume, AProcessKilledAtAnyStepLeavesWhatTheNextOneCompletes) {
  const Case s;
  for (int step = 1; step < s.n_steps; step += 3) {
    s.clear();
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      Fault fault(step, [] { _exit(9); });
      shard_with_hook(s.source, s.out(), s.options, fault.hook());
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 9) << step;
    shard(s.source, s.out(), s.options);
    ASSERT_THAT(differences(s.want, tree(s.out())), IsEmpty()) << "after a kill at step " << step;
  }
}

TEST(ShardResume, ACrashWhileATpIsAddedKeepsTheOldTpLoadableUntilTheLastSteps) {
  const Case s;
  ShardOptions first = s.options, second = s.options;
  first.tps = {1};
  second.tps = {2};
  shard(s.source, s.out(), first);
  const auto old = tree(s.out());
  Fault count(kNever);
  shard_with_hook(s.source, s.out(), second, count.hook());
  ASSERT_THAT(differences(s.want, tree(s.out())), IsEmpty());
  int without_ready = 0;
  for (int step = 0; step < count.steps(); ++step) {
    s.clear();
    for (const auto& [name, content] : old) {
      fs::create_directories((s.out() / name).parent_path());
      std::ofstream(s.out() / name, std::ios::binary) << content;
    }
    Fault fault(step);
    EXPECT_THROW(shard_with_hook(s.source, s.out(), second, fault.hook()), Crash);
    without_ready += !fs::exists(s.out() / "READY");
    expect_nothing_looks_whole(s.out());
    shard(s.source, s.out(), second);
    ASSERT_THAT(differences(s.want, tree(s.out())), IsEmpty()) << "after a crash at step " << step;
  }
  EXPECT_LE(without_ready, 4) << "READY is away for longer than small files, manifest and journal need";
}

TEST(ShardResume, FinishedPartsAreKeptAndDamagedOnesAreNot) {
  const Case s;
  Fault fault(s.n_steps - 3);  // all parts stand
  EXPECT_THROW(shard_with_hook(s.source, s.out(), s.options, fault.hook()), Crash);
  const fs::path part = s.out() / "tp1/rank-00/model-00001-of-00002.safetensors";
  std::string content = read_text(part);
  content[content.size() / 2 + (1u << 20)] ^= 4;
  std::ofstream(part, std::ios::binary) << content;  // same size, other bytes
  std::vector<std::string> notes;
  ShardOptions options = s.options;
  options.note = [&](const std::string& line) { notes.push_back(line); };
  s.source.bytes_read = 0;
  const ShardReport report = shard(s.source, s.out(), options);
  EXPECT_EQ(report.bytes_written, content.size() - kDataBegin);
  EXPECT_THAT(notes, ::testing::Contains(HasSubstr("model-00001-of-00002.safetensors' is not what was written")));
  EXPECT_THAT(notes, ::testing::Contains(HasSubstr("resumed: ")));
  EXPECT_THAT(differences(s.want, tree(s.out())), IsEmpty());
}

TEST(ShardResume, WhatReadsBackOtherwiseIsNoCheckpointAndIsWrittenAnew) {
  Case s;
  s.options.read_back = true;
  const std::string lost = "tp2/rank-01/model-00001-of-";
  const StepHook lose = [&](std::string_view step, const std::string& path) {
    if (step != "read back" || path.find(lost) == std::string::npos) return;
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(kDataBegin) + 5);
    file.put('\x5a').put('\xa5');
  };
  try {
    shard_with_hook(s.source, s.out(), s.options, lose);
    FAIL() << "a lost byte was not seen";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::io);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(lost), HasSubstr(std::to_string(kDataBegin) + " on")));
  }
  EXPECT_FALSE(fs::exists(s.out() / "READY"));
  EXPECT_GT(shard(s.source, s.out(), s.options).bytes_kept, 0u);
  EXPECT_EQ(tree(s.out()), s.want);
}

TEST(ShardResume, AnotherPartSizeAfterACrashStartsAnew) {
  const Case s;
  Fault fault(s.n_steps - 6);
  ShardOptions other = s.options;
  other.part_bytes = 128u << 10;
  EXPECT_THROW(shard_with_hook(s.source, s.out(), other, fault.hook()), Crash);
  shard(s.source, s.out(), s.options);
  EXPECT_THAT(differences(s.want, tree(s.out())), IsEmpty());
}

TEST(ShardResume, AnotherModelDoesNotTakeOverAnUnfinishedConversion) {
  const Case s;
  Fault fault(s.n_steps / 2);
  EXPECT_THROW(shard_with_hook(s.source, s.out(), s.options, fault.hook()), Crash);
  const MemorySource other(family("llama").config, DType::bf16, 2);
  EXPECT_THROW(shard(other, s.out(), s.options), Error);
  shard(s.source, s.out(), s.options);
  EXPECT_THAT(differences(s.want, tree(s.out())), IsEmpty());
}

TEST(ShardResume, AnInterruptAtAnyMomentIsReportedAsSuchAndResumable) {
  const Case s;
  for (int step = 0; step < s.n_steps; step += 4) {
    s.clear();
    std::stop_source stop;
    ShardOptions options = s.options;
    options.stop = stop.get_token();
    Fault fault(step, [&] { stop.request_stop(); });
    try {
      shard_with_hook(s.source, s.out(), options, fault.hook());
      EXPECT_TRUE(fs::exists(s.out() / "READY")) << step;  // too late to stop
    } catch (const Interrupted&) {
      EXPECT_FALSE(fs::exists(s.out() / "READY")) << step;
    }
    shard(s.source, s.out(), s.options);
    ASSERT_THAT(differences(s.want, tree(s.out())), IsEmpty()) << step;
  }
}

TEST(ShardResume, AnErrorOfTheSourceEndsTheConversionAndIsTheOneReported) {
  class Failing : public MemorySource {
   public:
    using MemorySource::MemorySource;
    mutable std::atomic<int> left{0};
    void read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                   std::span<std::byte> out) const override {
      if (left-- == 0) throw Error(ErrorKind::damaged, "the source is cut");
      MemorySource::read_rows(tensor, row_begin, row_end, as, out);
    }
  };
  const Case s;
  const Failing source(family("llama").config);
  for (int n = 0; n < 20; n += 3) {
    s.clear();
    source.left = n;
    EXPECT_THROW(
        {
          try {
            shard(source, s.out(), s.options);
          } catch (const Error& e) {
            EXPECT_STREQ(e.what(), "the source is cut");
            throw;
          }
        },
        Error);
    EXPECT_FALSE(fs::exists(s.out() / "READY"));
    source.left = -1;
    shard(source, s.out(), s.options);
    ASSERT_THAT(differences(s.want, tree(s.out())), IsEmpty());
  }
}

TEST(ShardResume, TwoConversionsDoNotWriteTheSameDirectory) {
  const Case s;
  std::atomic<bool> tried = false;
  const StepHook hook = [&](std::string_view, const std::string&) {
    if (tried.exchange(true)) return;
    try {
      shard(s.source, s.out(), s.options);
      ADD_FAILURE() << "the second was let in";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("another conversion"));
    }
  };
  ShardOptions options = s.options;
  shard_with_hook(s.source, s.out(), options, hook);
  EXPECT_TRUE(tried);
}

/// A file system of its own, `mebibytes` large.
class SmallDisk {
 public:
  explicit SmallDisk(const fs::path& path, int mebibytes) : path_(path) {
    fs::create_directories(path);
    mounted_ = ::mount("tmpfs", path.c_str(), "tmpfs", 0, ("size=" + std::to_string(mebibytes) + "m").c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  fs::path path_;
  bool mounted_ = false;
};

TEST(ShardResume, AFullDiskIsForeseen) {
  const Case s;
  const SmallDisk disk(s.out(), 4);
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs needs root";
  try {
    shard(s.source, s.out() / "x", s.options);
    FAIL() << "written to a disk that is too small";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_THAT(e.what(), ::testing::AllOf(HasSubstr("are needed"), HasSubstr("are available")));
  }
  EXPECT_FALSE(fs::exists(s.out() / "x"));
}

TEST(ShardResume, ADiskThatFillsUpWhileItIsWrittenIsAnErrorWithTheFileAndResumable) {
  const Case s;
  const SmallDisk disk(s.out(), 40);
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs needs root";
  const fs::path out = s.out() / "x", filler = s.out() / "filler";
  std::atomic<int> creates{0};
  const StepHook hook = [&](std::string_view step, const std::string&) {
    if (step != "create" || ++creates != 3) return;
    std::ofstream file(filler, std::ios::binary);
    const std::string mebibyte(1u << 20, 'x');
    while (file.write(mebibyte.data(), static_cast<std::streamsize>(mebibyte.size())).flush()) {
    }
  };
  try {
    shard_with_hook(s.source, out, s.options, hook);
    FAIL() << "written to a full disk";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_THAT(e.what(), ::testing::AllOf(HasSubstr("No space left"), HasSubstr(out.string())));
  }
  EXPECT_FALSE(fs::exists(out / "READY"));
  fs::remove(filler);
  shard(s.source, out, s.options);
  EXPECT_THAT(differences(s.want, tree(out)), IsEmpty());
}

}  // namespace
}  // namespace firstlight
