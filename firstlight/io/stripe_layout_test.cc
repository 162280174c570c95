// SPDX-License-Identifier: Apache-2.0
// Layouts as lfs prints them; where it is run, a shell script stands in for it.
#include "firstlight/io/stripe_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight {
namespace {

using testing::HasSubstr;

constexpr const char* kPlain = R"(/fsx/m/a.safetensors
lmm_stripe_count:  3
lmm_stripe_size:   16777216
lmm_pattern:       raid0
lmm_layout_gen:    0
lmm_stripe_offset: 7
	obdidx		 objid		 objid		 group
	     7	             5	          0x5	             0
	     0	             6	          0x6	             0
	     2	             9	          0x9	             0

/fsx/m/b.safetensors
lmm_stripe_count:  1
lmm_stripe_size:   1048576
lmm_pattern:       raid0
lmm_layout_gen:    0
lmm_stripe_offset: 1
	obdidx		 objid		 objid		 group
	     1	             3	          0x3	             0

)";

constexpr const char* kProgressive = R"(/fsx/m/c
  lcm_layout_gen:    3
  lcm_mirror_count:  1
  lcm_entry_count:   3
    lcme_id:             1
    lcme_mirror_id:      0
    lcme_flags:          init
    lcme_extent.e_start: 0
    lcme_extent.e_end:   104857600
      lmm_stripe_count:  1
      lmm_stripe_size:   1048576
      lmm_pattern:       raid0
      lmm_layout_gen:    0
      lmm_stripe_offset: 4
      lmm_objects:
      - 0: { l_ost_idx: 4, l_fid: [0x100040000:0x2:0x0] }

    lcme_id:             2
    lcme_mirror_id:      0
    lcme_flags:          init
    lcme_extent.e_start: 104857600
    lcme_extent.e_end:   10737418240
      lmm_stripe_count:  2
      lmm_stripe_size:   4194304
      lmm_pattern:       raid0
      lmm_layout_gen:    0
      lmm_stripe_offset: 5
      lmm_objects:
      - 0: { l_ost_idx: 5, l_fid: [0x100050000:0x2:0x0] }
      - 1: { l_ost_idx: 0, l_fid: [0x100000000:0x2:0x0] }

    lcme_id:             3
    lcme_mirror_id:      0
    lcme_flags:          0
    lcme_extent.e_start: 10737418240
    lcme_extent.e_end:   EOF
      lmm_stripe_count:  -1
      lmm_stripe_size:   4194304
      lmm_pattern:       raid0
      lmm_layout_gen:    0
      lmm_stripe_offset: -1

)";

TEST(StripeLayout, APlainLayoutGoesRoundItsTargets) {
  const StripeLayouts layouts = parse_getstripe(kPlain);
  ASSERT_EQ(layouts.size(), 2u);
  const StripeLayout& a = layouts.at("/fsx/m/a.safetensors");
  EXPECT_EQ(a.n_targets(), 3u);
  EXPECT_EQ(a.target_of(0), 7);
  EXPECT_EQ(a.target_of((16u << 20) - 1), 7);
  EXPECT_EQ(a.target_of(16u << 20), 0);
  EXPECT_EQ(a.target_of(uint64_t{16u << 20} * 5), 2);
  EXPECT_EQ(a.target_of(uint64_t{16u << 20} * 6), 7);
  EXPECT_EQ(layouts.at("/fsx/m/b.safetensors").target_of(uint64_t{1} << 50), 1);
  EXPECT_EQ(StripeLayout().target_of(0), -1);
}

TEST(StripeLayout, AProgressiveLayoutChangesWithTheExtent) {
  const StripeLayout layout = parse_getstripe(kProgressive).at("/fsx/m/c");
  ASSERT_EQ(layout.extents.size(), 3u);
  EXPECT_EQ(layout.target_of(104857599), 4);
  EXPECT_EQ(layout.target_of(104857600), 0);  // stripe 25 of 4 MiB, counted from the file's first byte
  EXPECT_EQ(layout.target_of(104857600 + 4194304), 5);
  EXPECT_EQ(layout.target_of(10737418240u), -1) << "nothing is written there";
  EXPECT_EQ(layout.n_targets(), 3u);
}

TEST(StripeLayout, WhatIsNotUnderstoodIsRefusedAndNeverGuessed) {
  const std::pair<const char*, const char*> changes[] = {{"stripe_count:  3", "stripe_count:  4"},
                                                         {"size:   16777216", "size:   many"},
                                                         {"size:   16777216", "size:   0"},
                                                         {"size:   16777216", "size:   99999999999999999999"},
                                                         {"pattern:       raid0", "pattern:       raid0,overstriped"},
                                                         {"pattern:       raid0", "pattern:       mdt"},
                                                         {"\t     7", "\t    -7"},
                                                         {"\t     7", "\t     x"},
                                                         {"/fsx/m/b", "/fsx/m/a"},
                                                         {"/fsx/m/a.safetensors", "no path"}};
  for (const auto& [from, to] : changes) {
    std::string text = kPlain;
    text.replace(text.find(from), std::string(from).size(), to);
    EXPECT_THROW(parse_getstripe(text), Error) << from << " → " << to;
  }
  const std::pair<const char*, const char*> progressive[] = {{"mirror_count:  1", "mirror_count:  2"},
                                                             {"e_start: 104857600", "e_start: 104857601"},
                                                             {"e_end:   104857600", "e_end:   -1"},
                                                             {"e_start: 0", "e_start: 4096"},
                                                             {"l_ost_idx: 5,", "l_ost: 5,"}};
  for (const auto& [from, to] : progressive) {
    std::string text = kProgressive;
    text.replace(text.find(from), std::string(from).size(), to);
    EXPECT_THROW(parse_getstripe(text), Error) << from << " → " << to;
  }
  EXPECT_TRUE(parse_getstripe("").empty());
  EXPECT_TRUE(parse_getstripe("\n\n").empty());
}

class StandInLfs : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(directory_); }
  void TearDown() override { fs::remove_all(directory_); }
  std::string lfs(const std::string& script) {
    const fs::path path = directory_ / "lfs";
    std::ofstream(path) << "#!/bin/sh\n" << script << "\n";
    fs::permissions(path, fs::perms::owner_all);
    return path.native();
  }
  fs::path directory_ = fs::path(testing::TempDir()) / str("stripe_layout_test.", ::getpid());
};

TEST_F(StandInLfs, IsAskedOnceForAllFiles) {
  std::ofstream(directory_ / "told") << kPlain;
  const std::string script =
      str("[ \"$*\" = 'getstripe /fsx/m/a.safetensors /fsx/m/b.safetensors' ] && cat ", (directory_ / "told").native());
  const std::vector<std::string> files{"/fsx/m/a.safetensors", "/fsx/m/b.safetensors"};
  const FoundLayouts found = ask_stripe_layouts(files, lfs(script));
  EXPECT_EQ(found.why_not, "");
  EXPECT_EQ(found.layouts.size(), 2u);
  EXPECT_EQ(describe(found), "; reads spread over 3 Lustre targets of a file");
  const auto refused = [&](const std::string& body) {
    const FoundLayouts none = ask_stripe_layouts(files, lfs(body));
    EXPECT_TRUE(none.layouts.empty());
    EXPECT_THAT(describe(none), HasSubstr("Lustre layout not known"));
    return none.why_not;
  };
  EXPECT_THAT(refused("exit 1"), HasSubstr("failed"));
  EXPECT_THAT(refused("echo /fsx/m/a.safetensors"), HasSubstr("nothing is said of"));
  EXPECT_THAT(refused(str("head -11 ", (directory_ / "told").native())), HasSubstr("does not name '/fsx/m/b"));
  EXPECT_THAT(ask_stripe_layouts(files, "/nowhere/lfs").why_not, HasSubstr("not installed"));
}

TEST_F(StandInLfs, IsNotAskedWhereThereIsNoLustre) {
  const FoundLayouts found =
      find_stripe_layouts({directory_.native()}, lfs("touch " + (directory_ / "asked").native()));
  EXPECT_TRUE(found.layouts.empty());
  EXPECT_EQ(describe(found), "");
  EXPECT_FALSE(fs::exists(directory_ / "asked"));
}

}  // namespace
}  // namespace firstlight
