// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace firstlight::cli {
namespace {

using Environment = std::map<std::string, std::string>;

std::optional<ProcessRank> rank_in(const Environment& environment) {
  return launched_rank([&](const char* name) {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

/// As torchrun --nproc-per-node 3 sets them.
Environment launched() {
  return {{"RANK", "2"},
          {"WORLD_SIZE", "3"},
          {"LOCAL_RANK", "2"},
          {"LOCAL_WORLD_SIZE", "3"},
          {"MASTER_ADDR", "127.0.0.1"},
          {"MASTER_PORT", "29500"}};
}

TEST(Launch, ALaunchersVariablesNameRankAndGroup) {
  const auto me = rank_in(launched());
  ASSERT_TRUE(me);
  EXPECT_EQ(me->rank, 2);
  EXPECT_EQ(me->size, 3);
  EXPECT_EQ(me->group, "127.0.0.1:29500");
  Environment least = launched();
  least.erase("LOCAL_RANK");
  least.erase("LOCAL_WORLD_SIZE");
  EXPECT_TRUE(rank_in(least));
}

TEST(Launch, OneProcessHasAllRanksAsThreads) {
  EXPECT_FALSE(rank_in({}));
  EXPECT_FALSE(rank_in({{"MASTER_ADDR", "host"}, {"MASTER_PORT", "1"}}));
  EXPECT_FALSE(rank_in({{"RANK", "0"}, {"WORLD_SIZE", "1"}}));
}

TEST(Launch, WhatIsMissingOrWrongIsOneLineThatNamesIt) {
  struct Case {
    const char *name, *value, *words;  // no value: not set
    ErrorKind kind;
  };
  const Case cases[] = {{"RANK", nullptr, "RANK is not set", ErrorKind::bad_input},
                        {"WORLD_SIZE", nullptr, "WORLD_SIZE is not set", ErrorKind::bad_input},
                        {"MASTER_ADDR", nullptr, "MASTER_ADDR is not set", ErrorKind::bad_input},
                        {"MASTER_ADDR", "", "MASTER_ADDR is not set", ErrorKind::bad_input},
                        {"MASTER_PORT", nullptr, "MASTER_PORT is not set", ErrorKind::bad_input},
                        {"RANK", "3", "RANK is '3', expected a number from 0 to 2", ErrorKind::bad_input},
                        {"RANK", "-1", "RANK is '-1'", ErrorKind::bad_input},
                        {"RANK", "1x", "RANK is '1x'", ErrorKind::bad_input},
                        {"WORLD_SIZE", "0", "WORLD_SIZE is '0'", ErrorKind::bad_input},
                        {"MASTER_PORT", "65536", "MASTER_PORT is '65536'", ErrorKind::bad_input},
                        {"LOCAL_RANK", "0", "several hosts", ErrorKind::unsupported},
                        {"LOCAL_WORLD_SIZE", "1", "several hosts", ErrorKind::unsupported}};
  for (const Case& each : cases) {
    Environment environment = launched();
    environment.erase(each.name);
    if (each.value != nullptr) environment[each.name] = each.value;
    try {
      rank_in(environment);
      ADD_FAILURE() << each.words << ": taken";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(each.words));
      EXPECT_EQ(e.kind(), each.kind) << e.what();
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace firstlight::cli
