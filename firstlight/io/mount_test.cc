// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/mount.h"

#include <gtest/gtest.h>

namespace firstlight {
namespace {

TEST(Mount, WhatComesOverANetworkIsKnownByItsType) {
  for (const char* type : {"lustre", "nfs4", "nfs", "fuse.glusterfs"})
    EXPECT_TRUE(is_network({"/", type, "x"})) << type;
  for (const char* type : {"ext4", "xfs", "tmpfs", "overlay", "fuseblk", ""})
    EXPECT_FALSE(is_network({"/", type, "x"}));
}

TEST(Mount, ALocalDiskIsNeitherNfsNorLustre) {
  EXPECT_FALSE(lies_on_nfs(testing::TempDir()) != is_nfs(mount_of(testing::TempDir())));
  EXPECT_FALSE(lies_on_lustre("/proc") || lies_on_nfs("/proc") || lies_on_nfs("/not/there/at/all"));
}

TEST(Mount, TheLongestMountPointThatHoldsThePathWins) {
  const std::string table =
      "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
      "30 22 0:25 / /data rw shared:5 - lustre 10.0.0.1@tcp:/fsx rw,flock\n"
      "31 22 0:26 / /data/with\\040space rw master:1 propagate_from:2 - nfs4 host:/a\\040b rw\n"
      "no dash\n"
      "32 22 0:27 / /data rw - overlay upper rw\n";
  EXPECT_EQ(find_mount(table, "/data/x").type, "overlay") << "mounted over";
  EXPECT_EQ(find_mount(table, "/database").source, "/dev/vda");
  EXPECT_EQ(find_mount(table, "/data/with space/x").source, "host:/a b");
  EXPECT_EQ(find_mount(table, "/").type, "ext4");
  EXPECT_EQ(find_mount("", "/x").type, "");
  EXPECT_FALSE(mount_of("/not/there/at/all").type.empty());
}

}  // namespace
}  // namespace firstlight
