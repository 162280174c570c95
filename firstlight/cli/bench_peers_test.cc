// SPDX-License-Identifier: Apache-2.0
// Children and peers, with shell scripts in Python's place.
#include "firstlight/cli/bench_peers.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "firstlight/base/child.h"
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight::cli {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

TEST(Child, ItsOutputItsEndAndItsLastWordsAreGivenBack) {
  ChildEnd end = run_child("sh", {"sh", "-c", "echo out; echo err >&2; exit 3"}, true);
  EXPECT_EQ(end.exit_code, 3);
  EXPECT_EQ(end.out, "out\n");
  EXPECT_EQ(end.err, "err\n");
  EXPECT_GT(end.seconds, 0);
  end = run_child("sh", {"sh", "-c", "echo err >&2; kill -9 $$"});
  EXPECT_EQ(end.exit_code, 128 + 9);
  EXPECT_EQ(end.err, "");
  // More than pipes hold, on both, in turn: neither may wait for the other.
  end = run_child(
      "sh", {"sh", "-c", "for i in 1 2 3; do yes a | head -c 200000; yes b | head -c 200000 >&2; done; echo last >&2"},
      true);
  EXPECT_EQ(end.out.size(), 600000u);
  EXPECT_LE(end.err.size(), 64u << 10);
  EXPECT_THAT(end.err, EndsWith("b\nlast\n"));
}

TEST(Child, AProgramThatIsNotThereIsNotFound) {
  try {
    run_child("no-such-program-of-ours", {"x"});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::not_found);
    EXPECT_THAT(e.what(), HasSubstr("no-such-program-of-ours"));
  }
}

class PeersTest : public ::testing::Test {
 protected:
  PeersTest() {
    directory_ = fs::temp_directory_path() / str("firstlight-peers-test-", ::getpid());
    fs::create_directories(directory_);
    ManifestRank rank{"tp1/rank-00", {{"tp1/rank-00/model-00001-of-00001.safetensors", 1000, 1000, 0, 8, ""}}};
    manifest_.tps.push_back({1, {rank}});
  }
  ~PeersTest() override { fs::remove_all(directory_); }
  /// Takes Python's place: $1 is the script, $2 the loader, $3 the device, then files.
  std::string python(const std::string& body) {
    const fs::path path = directory_ / "python";
    write_durably(path, "#!/bin/sh\n" + body);
    ::chmod(path.c_str(), 0700);
    return path.native();
  }
  fs::path directory_;
  Manifest manifest_;
  Context context_;
};

TEST_F(PeersTest, LoadersThatGiveEveryByteAreMeasuredOthersAreSaid) {
  const std::string program = python(
      "[ -f \"$1\" ] && [ \"$3\" = cpu ] && [ \"$4\" = OUT/tp1/rank-00/model-00001-of-00001.safetensors ] || exit 9\n"
      "case $2 in\n"
      "safetensors) echo noise; echo '{\"seconds\": 0.5, \"bytes\": 1000, \"version\": \"1.2\"}';;\n"
      "runai) echo '{\"seconds\": 0.5, \"bytes\": 999, \"version\": \"1\"}';;\n"
      "instanttensor-mmap) echo '{\"refused\": \"GPUs only\"}';;\n"
      "*) echo first >&2; echo 'ModuleNotFoundError: none' >&2; echo ==== >&2; exit 1;;\n"
      "esac\n");
  const Peers peers(context_, "OUT", manifest_, program, 4, false);
  ASSERT_EQ(peers.series().size(), 1u);
  EXPECT_EQ(peers.series()[0].what, "safetensors 1.2");
  EXPECT_EQ(peers.series()[0].bytes, 1000u);
  EXPECT_EQ(peers.series()[0].verify, "off");
  EXPECT_EQ(peers.series()[0].run(), 0.5);
  EXPECT_THAT(peers.note(), HasSubstr("Not measured: fastsafetensors (ModuleNotFoundError: none)."));
  EXPECT_THAT(peers.note(), HasSubstr("Not measured: instanttensor-mmap (GPUs only)."));
  EXPECT_THAT(peers.note(), HasSubstr("runai (it gave 999 bytes of tensors, the files hold 1000)"));
}

TEST_F(PeersTest, SeveralGpusAreRanksOfOneLauncher) {
  const std::string program = python(
      "[ \"$1 $2 $3 $4\" = '-m torch.distributed.run --standalone --nproc-per-node=2' ] && [ \"$7\" = cuda ] || exit "
      "9\n"
      "echo '{\"seconds\": 2, \"bytes\": 500, \"version\": \"1\"}'\n");
  const Peers peers(context_, "OUT", manifest_, program, 2, true);
  ASSERT_EQ(peers.series().size(), 5u) << peers.note();
  EXPECT_EQ(peers.series()[0].what, "safetensors 1, 2 ranks");
  EXPECT_EQ(peers.series()[0].bytes, 1000u) << "the checkpoint's, whatever a rank keeps";
}

TEST_F(PeersTest, WithoutPythonOrAWholeCheckpointThereIsNothingToMeasure) {
  EXPECT_THROW(Peers(context_, "OUT", manifest_, "/no/such/python", 1, false), Error);
  manifest_.tps[0].tp = 2;
  EXPECT_THROW(Peers(context_, "OUT", manifest_, python("exit 0"), 2, false), Error);
}

}  // namespace
}  // namespace firstlight::cli
