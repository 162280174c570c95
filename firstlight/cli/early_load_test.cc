// SPDX-License-Identifier: Apache-2.0
// A load that is begun on a guess: right, wrong, too large, given up.
#include "firstlight/cli/early_load.h"

#include <gtest/gtest.h>

#include "firstlight/ckpt/load_fixture.h"

namespace firstlight::cli {
namespace {

class EarlyLoadTest : public LoadTest {
 protected:
  static LoadOptions options_for(std::vector<Device> devices) {
    LoadOptions options;
    options.tp = static_cast<int>(devices.size());
    options.devices = std::move(devices);
    return options;
  }
  static void expect_all(Load& load, const std::vector<Device>& devices) {
    load.wait();
    for (size_t rank = 0; rank < devices.size(); ++rank) {
      EXPECT_EQ(load.weights()[rank].arena.device(), devices[rank]);
      expect_weights(load.config(), load.weights()[rank]);
    }
  }
  static ErrorKind kind_of_failure(EarlyLoad& early, const std::vector<Device>& devices, uint64_t reserve) {
    try {
      early.finish(devices, reserve)->wait();
    } catch (const Error& error) {
      return error.kind();
    }
    ADD_FAILURE() << "it was loaded";
    return ErrorKind::bug;
  }
  const std::vector<Device> two_{{Device::Kind::cpu, 0}, {Device::Kind::cpu, 1}};
};

TEST_F(EarlyLoadTest, FinishGivesTheLoadOfARightGuess) {
  EarlyLoad early(out_, options_for(two_));
  expect_all(*early.finish(two_, 1000), two_);
}

TEST_F(EarlyLoadTest, AWrongGuessIsLoadedAgainWhereItBelongs) {
  for (const Device guess : {Device{Device::Kind::cpu, 7}, Device{Device::Kind::cuda, 999}}) {
    EarlyLoad early(out_, options_for({guess, guess}));
    expect_all(*early.finish(two_, 1000), two_);
  }
}

TEST_F(EarlyLoadTest, WhatDoesNotFitAndWhatIsDamagedIsSaidByFinish) {
  EarlyLoad large(out_, options_for(two_));
  EXPECT_EQ(kind_of_failure(large, two_, uint64_t{1} << 60), ErrorKind::out_of_memory);
  flip(out_ / read_manifest(out_).find_tp(2)->ranks[1].parts[0].file, 10);
  EarlyLoad damaged(out_, options_for(two_));
  EXPECT_EQ(kind_of_failure(damaged, two_, 1000), ErrorKind::damaged);
}

TEST_F(EarlyLoadTest, OneThatNobodyWantsEnds) {
  for (int round = 0; round < 10; ++round) EarlyLoad(out_, options_for(two_));
}

}  // namespace
}  // namespace firstlight::cli
