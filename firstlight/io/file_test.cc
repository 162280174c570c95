// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "firstlight/base/error.h"

namespace firstlight {
namespace {

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "firstlight-file-XXXXXX").native();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  void TearDown() override { fs::remove_all(dir_); }
  fs::path put(const std::string& name, std::string_view text) {
    std::ofstream(dir_ / name, std::ios::binary) << text;
    return dir_ / name;
  }
  template <class Fn>
  static std::string failure(ErrorKind kind, Fn&& fn) {
    try {
      fn();
    } catch (const Error& error) {
      EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "nothing was thrown, expected " << to_string(kind);
    return {};
  }
  fs::path dir_;
};

TEST_F(FileTest, ReadsExactRangesAndKnowsItsSize) {
  const auto file = File::open(put("a", "0123456789"));
  EXPECT_EQ(file->size(), 10u);
  std::string part(4, '\0');
  file->read(3, std::as_writable_bytes(std::span(part)));
  EXPECT_EQ(part, "3456");
  file->read(10, {});
  file->check_unchanged();
}

TEST_F(FileTest, ReadingPastTheEndIsDamageThatNamesFileAndRange) {
  const auto file = File::open(put("a", "0123456789"), FileRole::checkpoint);
  std::string part(4, '\0');
  const std::string what = failure(ErrorKind::damaged, [&] { file->read(8, std::as_writable_bytes(std::span(part))); });
  EXPECT_NE(what.find(file->path()), std::string::npos) << what;
  EXPECT_NE(what.find("[8, 12)"), std::string::npos) << what;
  EXPECT_NE(what.find("ends at 10"), std::string::npos) << what;
}

TEST_F(FileTest, RefusesWhatIsNoRegularFileWithoutWaitingForIt) {
  failure(ErrorKind::not_found, [&] { File::open(dir_ / "absent"); });
  failure(ErrorKind::bad_input, [&] { File::open(dir_); });
  const fs::path fifo = dir_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  failure(ErrorKind::bad_input, [&] { File::open(fifo); });
}

TEST_F(FileTest, NoticesThatAFileWasCutGrownReplacedOrRemovedSinceItWasOpened) {
  const fs::path path = put("a", "0123456789");
  const auto open = [&] { return File::open(path, FileRole::checkpoint); };
  auto file = open();
  ASSERT_EQ(::truncate(path.c_str(), 5), 0);
  EXPECT_NE(failure(ErrorKind::damaged, [&] { file->check_unchanged(); }).find("it has 5 bytes, it had 10"),
            std::string::npos);

  file = open();
  fs::rename(put("b", "abcde"), path);
  EXPECT_NE(failure(ErrorKind::damaged, [&] { file->check_unchanged(); }).find("names another file"),
            std::string::npos);

  file = open();
  const timespec times[2] = {{1000, 0}, {1000, 1}};
  ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  failure(ErrorKind::damaged, [&] { file->check_unchanged(); });

  file = open();
  fs::remove(path);
  EXPECT_NE(failure(ErrorKind::damaged, [&] { file->check_unchanged(); }).find("removed"), std::string::npos);
}

TEST_F(FileTest, AnInputThatChangesIsBadInputWithTheAdviceToBeginAgain) {
  const fs::path path = put("a", "0123456789");
  const auto file = File::open(path);
  ASSERT_EQ(::truncate(path.c_str(), 5), 0);
  EXPECT_NE(failure(ErrorKind::bad_input, [&] { file->check_unchanged(); }).find("begin again"), std::string::npos);
  std::string part(4, '\0');
  const std::string what =
      failure(ErrorKind::bad_input, [&] { file->read(4, std::as_writable_bytes(std::span(part))); });
  EXPECT_NE(what.find("[4, 8)"), std::string::npos) << what;
}

TEST_F(FileTest, ALinkIsFollowedForAnInputAndRefusedInACheckpoint) {
  put("a", "0123456789");
  fs::create_symlink("a", dir_ / "link");
  fs::create_symlink("absent", dir_ / "dangling");
  EXPECT_EQ(read_text(dir_ / "link"), "0123456789");
  for (const char* name : {"link", "dangling"}) {
    const std::string what = failure(ErrorKind::damaged, [&] { File::open(dir_ / name, FileRole::checkpoint); });
    EXPECT_NE(what.find(name), std::string::npos) << what;
    EXPECT_NE(what.find("symbolic link"), std::string::npos) << what;
    failure(ErrorKind::damaged, [&] { read_text(dir_ / name, 100, FileRole::checkpoint); });
  }
}

TEST_F(FileTest, ReadTextRefusesWhatIsLargerThanAllowed) {
  const fs::path path = put("a", "0123456789");
  EXPECT_EQ(read_text(path), "0123456789");
  EXPECT_EQ(read_text(path, 10), "0123456789");
  failure(ErrorKind::bad_input, [&] { read_text(path, 9); });
}

TEST_F(FileTest, WriteDurablyReplacesAWholeFileAndLeavesNoPartialOne) {
  const fs::path path = put("a", "old");
  write_durably(path, std::string_view("new and longer"));
  EXPECT_EQ(read_text(path), "new and longer");
  EXPECT_FALSE(fs::exists(dir_ / "a.partial"));
}

TEST_F(FileTest, WriteDurablyThatFailsLeavesTheOldFileAndNoPartialOne) {
  const fs::path path = dir_ / "a";
  fs::create_directory(path);  // rename over a directory fails after everything was written
  put("a/b", "old");
  failure(ErrorKind::io, [&] { write_durably(path, std::string_view("x")); });
  EXPECT_EQ(read_text(path / "b"), "old");
  EXPECT_FALSE(fs::exists(dir_ / "a.partial"));
  failure(ErrorKind::not_found, [&] { write_durably(dir_ / "no" / "a", std::string_view("x")); });
}

TEST_F(FileTest, WriteDurablyReportsAFullDisk) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  fs::create_symlink("/dev/full", dir_ / "a.partial");
  const std::string what = failure(ErrorKind::io, [&] { write_durably(dir_ / "a", std::string_view("x")); });
  EXPECT_NE(what.find("No space left"), std::string::npos) << what;
  EXPECT_FALSE(fs::exists(dir_ / "a"));
}

TEST_F(FileTest, FreeSpaceIsThatOfTheNearestExistingParent) {
  EXPECT_GT(free_space(dir_), 0u);
  EXPECT_GT(free_space(dir_ / "not" / "there" / "yet"), 0u);
}

}  // namespace
}  // namespace firstlight
