// SPDX-License-Identifier: Apache-2.0
// Collectives within recorded work: replayed they count on, and a replay that waits for a rank that never comes ends
// when that rank has failed.
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/comm/comm.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/cuda.h"
#include "firstlight/device/gpus.h"

namespace firstlight {
namespace {

using cuda::check;

/// By the inbox, and in place: between two ranks it takes 1 << 20.
constexpr size_t kFew = 4099, kMany = 1'200'003;

/// A rank's recorded work: a sum of few floats and one of many.
struct Recorded {
  Recorded(Comm& end, Device where)
      : comm(end), device(where), stream(where), few(where, 4 * kFew), many(where, 4 * kMany) {
    put(1.0f);
    check(cudaStreamBeginCapture(queue(), cudaStreamCaptureModeRelaxed), "record");
    comm.all_reduce_sum({reinterpret_cast<float*>(few.data()), kFew}, stream);
    comm.all_reduce_sum({reinterpret_cast<float*>(many.data()), kMany}, stream);
    cudaGraph_t recorded = nullptr;
    check(cudaStreamEndCapture(queue(), &recorded), "record");
    check(cudaGraphInstantiate(&graph, recorded, 0), "prepare");
    check(cudaGraphDestroy(recorded), "forget");
    comm.barrier();
  }
  ~Recorded() { cudaGraphExecDestroy(graph); }
  cudaStream_t queue() const { return static_cast<cudaStream_t>(stream.handle()); }
  void put(float x) const {
    const std::vector<float> values(kMany, x);
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    copy(few.data(), device, bytes, {}, few.size());
    copy(many.data(), device, bytes, {}, many.size());
  }
  void expect(float x) const {
    std::vector<float> a(kFew), b(kMany);
    copy(reinterpret_cast<std::byte*>(a.data()), {}, few.data(), device, few.size());
    copy(reinterpret_cast<std::byte*>(b.data()), {}, many.data(), device, many.size());
    EXPECT_EQ(a, std::vector<float>(kFew, x));
    EXPECT_EQ(b, std::vector<float>(kMany, x));
  }
  Comm& comm;
  const Device device;
  const Stream stream;
  const Buffer few, many;
  cudaGraphExec_t graph = nullptr;
};

class RecordedCudaComms : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus().names.size() < 2) GTEST_SKIP() << "peers are two GPUs at least, here are " << gpus().names.size();
    comms_ = make_cuda_comms(devices_);
    if (!comms_[0]->recordable()) GTEST_SKIP() << comms_[0]->path();
  }
  template <class Fn>
  void on_both(Fn fn) {
    std::thread other([&] { fn(1); });
    fn(0);
    other.join();
  }
  const std::vector<Device> devices_ = {{Device::Kind::cuda, 0}, {Device::Kind::cuda, 1}};
  std::vector<std::unique_ptr<Comm>> comms_;
};

TEST_F(RecordedCudaComms, CountOnWhenTheyAreReplayed) {
  on_both([&](int rank) {
    Recorded work(*comms_[rank], devices_[rank]);
    for (int round = 0; round < 30; ++round) {
      work.put(0x1p-100f);
      for (int i = 0; i < 100; ++i) check(cudaGraphLaunch(work.graph, work.queue()), "replay");
      work.stream.wait();
      work.expect(1.0f);
      comms_[rank]->barrier();
    }
    comms_[rank]->check();
  });
}

TEST_F(RecordedCudaComms, EndWithin2SecondsWhenTheOtherRankFails) {
  std::chrono::steady_clock::time_point failed;
  double seconds = 1e9;
  on_both([&](int rank) {
    Recorded work(*comms_[rank], devices_[rank]);
    if (rank == 0) {
      for (int i = 0; i < 40; ++i) check(cudaGraphLaunch(work.graph, work.queue()), "replay");  // rank 1 never will
      comms_[0]->barrier();
      work.stream.wait();
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - failed).count();
      EXPECT_THROW(comms_[0]->check(), Error);
    } else {
      comms_[1]->barrier();
      failed = std::chrono::steady_clock::now();
      comms_[1]->fail(std::make_exception_ptr(Error(ErrorKind::io, "gone")));
    }
  });
  EXPECT_LT(seconds, 2.0);
  RecordProperty("seconds", std::to_string(seconds));
  comms_[0]->reset();
  on_both([&](int rank) {
    Recorded work(*comms_[rank], devices_[rank]);
    check(cudaGraphLaunch(work.graph, work.queue()), "replay");
    work.stream.wait();
    comms_[rank]->barrier();
    if (rank == 0) work.expect(2.0f);
  });
}

}  // namespace
}  // namespace firstlight
