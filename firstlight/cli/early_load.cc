// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/early_load.h"

#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"

namespace firstlight::cli {

EarlyLoad::EarlyLoad(fs::path out, LoadOptions options) : out_(std::move(out)), options_(std::move(options)) {
  LoadOptions early = options_;
  early.reserve = [reserve = reserve_.get_future().share()] { return reserve.get(); };
  begun_ = start_future("the load", [out = out_, early] { return load_rank_checkpoint(out, early); });
}

EarlyLoad::~EarlyLoad() {
  if (!answered_) reserve_.set_exception(std::make_exception_ptr(Interrupted()));
  if (begun_.valid()) begun_.wait();
}

std::unique_ptr<Load> EarlyLoad::finish(const std::vector<Device>& devices, uint64_t reserve_bytes) {
  answered_ = true;
  if (devices == options_.devices) {
    reserve_.set_value(reserve_bytes);
    return begun_.get();
  }
  reserve_.set_exception(std::make_exception_ptr(Interrupted()));
  begun_.wait();  // whatever came of it: its rings are given back before others are made
  begun_ = {};
  options_.devices = devices;
  options_.reserve_bytes = reserve_bytes;
  return load_rank_checkpoint(out_, options_);
}

}  // namespace firstlight::cli
