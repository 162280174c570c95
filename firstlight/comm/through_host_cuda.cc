// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/through_host_cuda.h"

#include "firstlight/base/str.h"
#include "firstlight/device/cuda.h"

namespace firstlight {

namespace {

cudaStream_t queue_of(const Stream& stream) { return static_cast<cudaStream_t>(stream.handle()); }

/// Waits for the stream.
void fetch_piece(std::span<const float> data, float* to, const Stream& stream) {
  cuda::check(cudaMemcpyAsync(to, data.data(), data.size_bytes(), cudaMemcpyDeviceToHost, queue_of(stream)),
              "fetch a part of a collective");
  cuda::check(cudaStreamSynchronize(queue_of(stream)), "wait for a part of a collective");
}

void send_whole(const float* from, std::span<float> data, const Stream& stream) {
  cuda::check(cudaMemcpyAsync(data.data(), from, data.size_bytes(), cudaMemcpyHostToDevice, queue_of(stream)),
              "send the result of a collective");
}

}  // namespace

Pinned::~Pinned() { cudaFreeHost(data_); }

void Pinned::reserve(size_t bytes, const Stream& stream) {
  if (bytes <= bytes_) return;
  cuda::check(cudaStreamSynchronize(queue_of(stream)), "wait before pinned memory grows");
  cuda::check(cudaFreeHost(data_), "free pinned memory");
  data_ = nullptr;
  bytes_ = 0;
  cuda::check(cudaHostAlloc(&data_, bytes, cudaHostAllocPortable | cudaHostAllocMapped),
              str("allocate ", bytes, " bytes of pinned memory"));
  bytes_ = bytes;
}

void ThroughHost::all_reduce_sum(Comm& host, Device device, std::span<float> data, const Stream& stream) {
  cuda::use(device);
  mine_.reserve(data.size_bytes(), stream);
  fetch_piece(data, mine_.as<float>(), stream);
  host.all_reduce_sum({mine_.as<float>(), data.size()}, {});
  send_whole(mine_.as<float>(), data, stream);
}

}  // namespace firstlight
