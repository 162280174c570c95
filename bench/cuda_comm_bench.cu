// SPDX-License-Identifier: Apache-2.0
// What a sum over two GPUs costs, by rows of 4096 floats, by algorithm, blocks and threads, beside what the link
// carries in the same run; and which calls of one GPU's thread wait while the other GPU's kernel waits for it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "firstlight/comm/peer_cuda.cuh"
#include "firstlight/device/cuda.h"

using firstlight::cuda::check;
using namespace firstlight::peer;

namespace {

constexpr int kRanks = 2;

__global__ void by_inbox(const __grid_constant__ Call call) {
  enter();
  sum_by_inbox(OnGpu{}, call);
}
__global__ void __launch_bounds__(1024) in_place(const __grid_constant__ Call call) {
  enter();
  sum_in_place<2>(OnGpu{}, call);
}
__global__ void fill(float* x, int64_t n, float scale) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x)
    x[i] = scale * static_cast<float>(i % 977 - 488);
}
__global__ void spin(volatile unsigned* stop) {
  while (*stop == 0) __nanosleep(1000);
}
__global__ void nothing() {}

struct Rank {
  cudaStream_t stream;
  float* data;
  Words* inbox;
  Signals* signals;
};

struct Bench {
  Rank ranks[kRanks];
  uint32_t* stop = nullptr;
  static constexpr int64_t kMost = 2048 * 4096;

  Bench() {
    check(cudaHostAlloc(&stop, 4, cudaHostAllocPortable | cudaHostAllocMapped), "stop");
    *stop = 0;
    for (int r = 0; r < kRanks; ++r) {
      check(cudaSetDevice(r), "device");
      check(cudaDeviceEnablePeerAccess(1 - r, 0), "peers");
      Rank& rank = ranks[r];
      check(cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking), "stream");
      check(cudaMalloc(&rank.data, 2 * kMost * 4), "data");
      check(cudaMalloc(&rank.inbox, 2 * kRanks * place_floats(kRanks) * 4), "inbox");
      check(cudaMalloc(&rank.signals, sizeof(Signals)), "signals");
      check(cudaMemset(rank.inbox, 0xff, 2 * kRanks * place_floats(kRanks) * 4), "inbox");
      check(cudaMemset(rank.signals, 0, sizeof(Signals)), "signals");
    }
  }

  Call call_of(int rank, int64_t n) const {
    Call call;
    call.rank = rank;
    call.size = kRanks;
    call.n = n;
    call.stop = stop;
    for (int r = 0; r < kRanks; ++r) {
      call.data[r] = ranks[r].data;
      call.inbox[r] = ranks[r].inbox;
      call.signals[r] = ranks[r].signals;
    }
    return call;
  }

  /// Median of microseconds a sum, in graphs of many.
  double time(void (*kernel)(Call), int64_t n, int blocks, int threads) {
    const int in_graph = n > 1 << 20 ? 10 : 50;
    cudaGraphExec_t graphs[kRanks];
    cudaEvent_t begin, end;
    for (int r = 0; r < kRanks; ++r) {
      check(cudaSetDevice(r), "device");
      fill<<<256, 256, 0, ranks[r].stream>>>(ranks[r].data, n, r == 0 ? 0x1p-100f : -0x1.8p-100f);
      check(cudaStreamBeginCapture(ranks[r].stream, cudaStreamCaptureModeRelaxed), "record");
      cudaLaunchAttribute attribute{};
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(static_cast<unsigned>(blocks));
      config.blockDim = dim3(static_cast<unsigned>(threads));
      config.stream = ranks[r].stream;
      config.attrs = &attribute;
      config.numAttrs = 1;
      for (int i = 0; i < in_graph; ++i) check(cudaLaunchKernelEx(&config, kernel, call_of(r, n)), "launch");
      cudaGraph_t graph;
      check(cudaStreamEndCapture(ranks[r].stream, &graph), "record");
      check(cudaGraphInstantiate(&graphs[r], graph, 0), "prepare");
      check(cudaGraphUpload(graphs[r], ranks[r].stream), "send");
      check(cudaStreamSynchronize(ranks[r].stream), "wait");
    }
    check(cudaSetDevice(0), "device");
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    std::vector<double> times;
    for (int round = 0; round < 15; ++round) {
      check(cudaEventRecord(begin, ranks[0].stream), "begin");
      for (int r = 0; r < kRanks; ++r) {
        check(cudaSetDevice(r), "device");
        check(cudaGraphLaunch(graphs[r], ranks[r].stream), "replay");
      }
      check(cudaSetDevice(0), "device");
      check(cudaEventRecord(end, ranks[0].stream), "end");
      for (int r = 0; r < kRanks; ++r) check(cudaStreamSynchronize(ranks[r].stream), "wait");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "time");
      times.push_back(1e3 * ms / in_graph);
    }
    for (auto graph : graphs) cudaGraphExecDestroy(graph);
    if (*stop != 0) std::printf("gave up\n");
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  /// GB/s each way of copies in both directions at once.
  double link() {
    std::vector<double> rates;
    for (int round = 0; round < 9; ++round) {
      cudaEvent_t begin, end;
      check(cudaSetDevice(0), "device");
      check(cudaEventCreate(&begin), "event");
      check(cudaEventCreate(&end), "event");
      check(cudaEventRecord(begin, ranks[0].stream), "begin");
      for (int i = 0; i < 20; ++i) {
        for (int r = 0; r < kRanks; ++r) {
          check(cudaMemcpyPeerAsync(ranks[1 - r].data + kMost, 1 - r, ranks[r].data, r, kMost * 4, ranks[r].stream),
                "copy");
        }
      }
      check(cudaEventRecord(end, ranks[0].stream), "end");
      for (int r = 0; r < kRanks; ++r) check(cudaStreamSynchronize(ranks[r].stream), "wait");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "time");
      rates.push_back(20e-6 * kMost * 4 / ms);
    }
    std::sort(rates.begin(), rates.end());
    return rates[rates.size() / 2];
  }

  /// Seconds that a call of GPU 1's thread takes while GPU 0 runs a kernel that ends after 300 ms.
  template <class Fn>
  void probe(const char* what, Fn fn) {
    check(cudaSetDevice(0), "device");
    *stop = 0;
    spin<<<1, 1, 0, ranks[0].stream>>>(stop);
    std::thread ends([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      *static_cast<volatile uint32_t*>(stop) = 1;
    });
    double seconds = 0;
    std::thread other([&] {
      check(cudaSetDevice(1), "device");
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const auto begin = std::chrono::steady_clock::now();
      fn();
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    });
    other.join();
    ends.join();
    check(cudaStreamSynchronize(ranks[0].stream), "wait");
    *stop = 0;
    std::printf("%-34s %8.2f ms%s\n", what, 1e3 * seconds, seconds > 0.2 ? "  waits for the other GPU" : "");
  }
};

}  // namespace

int main() {
  Bench bench;
  std::printf("link: %.0f GB/s each way, copies both ways at once\n", bench.link());
  void* memory = nullptr;
  bench.probe("cudaMalloc 64 MB", [&] { check(cudaMalloc(&memory, 64 << 20), "malloc"); });
  bench.probe("cudaFree", [&] { check(cudaFree(memory), "free"); });
  bench.probe("cudaHostAlloc 1 MB", [&] { check(cudaHostAlloc(&memory, 1 << 20, cudaHostAllocDefault), "malloc"); });
  bench.probe("cudaFreeHost", [&] { check(cudaFreeHost(memory), "free"); });
  bench.probe("a kernel's first launch", [&] {
    nothing<<<1, 1, 0, bench.ranks[1].stream>>>();
    check(cudaGetLastError(), "launch");
  });
  bench.probe("cudaStreamSynchronize", [&] { check(cudaStreamSynchronize(bench.ranks[1].stream), "wait"); });
  std::printf("%6s %-9s %7s %7s %9s %9s\n", "rows", "how", "blocks", "threads", "us", "GB/s/way");
  for (const int rows : {1, 8, 32, 64, 128, 192, 256, 512, 2048}) {
    const int64_t n = int64_t{rows} * 4096;
    for (const bool inbox : {true, false}) {
      if (inbox && n > place_floats(kRanks)) continue;
      for (const int threads : {128, 256, 512, 1024}) {
        for (const int blocks : {4, 8, 16, 32, 64, 128}) {
          const int64_t vectors = inbox ? n / 4 : n / 8;
          if (blocks > 1 && (vectors + threads - 1) / threads < blocks) continue;
          if (vectors / (int64_t{blocks} * threads) > (rows > 256 ? 256 : 8)) continue;
          const double us = bench.time(inbox ? by_inbox : in_place, n, blocks, threads);
          std::printf("%6d %-9s %7d %7d %9.2f %9.1f\n", rows, inbox ? "inbox" : "in place", blocks, threads, us,
                      1e-3 * static_cast<double>(n * 4) / us);
        }
      }
    }
  }
  return 0;
}
