// SPDX-License-Identifier: Apache-2.0
// What a sum costs between two GPUs of one process each, by rows of 4096 floats: by peer access between the processes,
// and by NCCL, in turn in the same run; recorded, as a pass has them. Also what bringing each of them up takes.
// Usage: cuda_process_comm_bench; the second process is a fork made before there is a context.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/comm/cuda_process_comm.h"
#include "firstlight/device/buffer.h"
#include "firstlight/device/copy.h"
#include "firstlight/device/cuda.h"

namespace firstlight {
namespace {

using cuda::check;
using Clock = std::chrono::steady_clock;

constexpr int kRounds = 15;
constexpr int64_t kWidth = 4096, kMostRows = 2048;

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

struct Way {
  const char* name;
  std::unique_ptr<CudaProcessComm> comm;
};

/// Microseconds of a sum that is not recorded: what the hosts' meetings and calls add where they are longer than it.
double time_queued(CudaProcessComm& comm, const Stream& stream, std::span<float> data) {
  constexpr int kSums = 60;
  comm.all_reduce_sum(data, stream);
  stream.wait();
  comm.barrier();
  const auto begin = Clock::now();
  for (int i = 0; i < kSums; ++i) comm.all_reduce_sum(data, stream);
  stream.wait();
  return 1e6 * since(begin) / kSums;
}

/// Microseconds of a recorded sum, kRounds of them sorted.
std::vector<double> time(CudaProcessComm& comm, const Stream& stream, std::span<float> data) {
  const auto queue = static_cast<cudaStream_t>(stream.handle());
  const int in_graph = data.size() > 1 << 20 ? 10 : 50;
  check(cudaMemsetAsync(data.data(), 0, data.size_bytes(), queue), "clear");
  comm.all_reduce_sum(data, stream);  // what is made by a first call
  check(cudaStreamBeginCapture(queue, cudaStreamCaptureModeRelaxed), "record");
  for (int i = 0; i < in_graph; ++i) comm.all_reduce_sum(data, stream);
  cudaGraph_t recorded = nullptr;
  cudaGraphExec_t graph = nullptr;
  check(cudaStreamEndCapture(queue, &recorded), "record");
  check(cudaGraphInstantiate(&graph, recorded, 0), "prepare");
  check(cudaGraphUpload(graph, queue), "send");
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int round = 0; round < kRounds; ++round) {
    comm.barrier();
    check(cudaEventRecord(begin, queue), "begin");
    check(cudaGraphLaunch(graph, queue), "replay");
    check(cudaEventRecord(end, queue), "end");
    stream.wait();
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "time");
    times.push_back(1e3 * ms / in_graph);
  }
  comm.check();
  check(cudaGraphExecDestroy(graph), "forget");
  check(cudaGraphDestroy(recorded), "forget");
  std::sort(times.begin(), times.end());
  return times;
}

/// Whether the sum of many values is that of rank order to the bit.
bool is_exact(CudaProcessComm& comm, const Stream& stream, const Buffer& memory, size_t n) {
  std::vector<float> terms[2], sum(n);
  for (size_t r = 0; r < 2; ++r) {
    for (size_t i = 0; i < n; ++i)
      terms[r].push_back(static_cast<float>(static_cast<int32_t>(i * 2654435761u + r * 7919u)) *
                         (r == 0 ? 1e-3f : 1e3f));
  }
  const std::vector<float>& mine = terms[static_cast<size_t>(comm.rank())];
  copy(memory.data(), memory.device(), reinterpret_cast<const std::byte*>(mine.data()), {}, 4 * n);
  comm.all_reduce_sum({reinterpret_cast<float*>(memory.data()), n}, stream);
  stream.wait();
  copy(reinterpret_cast<std::byte*>(sum.data()), {}, memory.data(), memory.device(), 4 * n);
  for (size_t i = 0; i < n; ++i) {
    if (sum[i] != terms[0][i] + terms[1][i]) return false;
  }
  return true;
}

int run(const ProcessRank& me) {
  const Device device{Device::Kind::cuda, me.rank};
  cuda::use(device);
  check(cudaFree(nullptr), "context");
  const auto processes = ProcessComm::join(me, {});
  processes->set_spin(4000);
  const Stream stream(device);
  const Buffer memory(device, 4 * kWidth * kMostRows);
  std::vector<Way> ways;
  for (const auto& [name, by] : {std::pair{"ipc", SumsBy::ipc}, {"nccl", SumsBy::nccl}}) {
    processes->barrier();
    const auto begin = Clock::now();
    try {
      auto comm = make_cuda_process_comm(*processes, device, {.by = by});
      const double made = since(begin);
      comm->all_reduce_sum({reinterpret_cast<float*>(memory.data()), 64}, stream);
      stream.wait();
      if (me.rank == 0)
        std::printf("%s: made in %.1f ms, first sum after %.1f ms; %s\n", name, 1e3 * made, 1e3 * since(begin),
                    std::string(comm->path()).c_str());
      ways.push_back({name, std::move(comm)});
    } catch (const Error& e) {
      if (me.rank == 0) std::printf("%s: %s\n", name, e.what());
    }
  }
  for (Way& way : ways) {
    bool exact = true;
    for (const size_t n : {size_t{4099}, size_t{1'200'003}}) exact = is_exact(*way.comm, stream, memory, n) && exact;
    if (me.rank == 0) std::printf("%s: sums are those of rank order to the bit: %s\n", way.name, exact ? "yes" : "NO");
  }
  if (me.rank == 0)
    std::printf("%6s %-6s %9s %20s %9s %10s\n", "rows", "way", "us", "least-most", "GB/s/way", "queued, us");
  for (const int64_t rows : {1, 8, 32, 64, 128, 256, 512, 2048}) {
    for (Way& way : ways) {
      const auto n = static_cast<size_t>(rows * kWidth);
      const std::span<float> data(reinterpret_cast<float*>(memory.data()), n);
      const std::vector<double> times = time(*way.comm, stream, data);
      const double queued = time_queued(*way.comm, stream, data);
      if (me.rank != 0) continue;
      const double us = times[times.size() / 2];
      std::printf("%6lld %-6s %9.2f %10.2f-%9.2f %9.1f %10.1f\n", static_cast<long long>(rows), way.name, us,
                  times.front(), times.back(), 4e-3 * static_cast<double>(n) / us, queued);
    }
  }
  for (Way& way : ways) way.comm->leave();
  processes->leave();
  return 0;
}

}  // namespace
}  // namespace firstlight

int main() {
  const std::string group = firstlight::str("bench ", ::getpid());
  const pid_t child = ::fork();
  int code = 1;
  try {
    code = firstlight::run({child == 0 ? 1 : 0, 2, group});
  } catch (const std::exception& e) {
    std::fprintf(stderr, "rank %d: %s\n", child == 0 ? 1 : 0, e.what());
  }
  if (child != 0) {
    int status = 0;
    ::waitpid(child, &status, 0);
  }
  return code;
}
