// SPDX-License-Identifier: Apache-2.0
// What a GPU's start costs before a byte of the model is read, and what its links give: the floors of
// docs/performance.md. Fixed costs are paid once a process, so the program runs itself five times and prints medians
// and spread; the rates are taken five times in each. cuBLASLt is opened as the program proper opens it.
//   cuda_fixed_costs            the table
//   cuda_fixed_costs --once     one process's figures, a name and a number a line
#include <cuda_runtime.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "firstlight/base/error.h"
#include "firstlight/ops/cublaslt_api.cuh"

namespace {

using Clock = std::chrono::steady_clock;

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

void report(const char* name, double value) { std::printf("%s\t%.4f\n", name, value); }

struct Lt {
  using Api = firstlight::cuda::CublasLtApi;
  Api api = Api::open();

  static void ok(int status, const char* what) {
    if (status != 0) throw std::runtime_error(std::string(what) + ": cuBLASLt status " + std::to_string(status));
  }

  /// Milliseconds of out[n, m] = in[n, k] · weight[m, k]ᵀ with its choice of algorithm, to the end of the kernel.
  double product(void* handle, void* memory, uint64_t m, uint64_t n, uint64_t k, void* workspace,
                 size_t workspace_bytes) {
    const auto begin = Clock::now();
    void *desc = nullptr, *a = nullptr, *b = nullptr, *c = nullptr, *preference = nullptr;
    ok(api.desc_create(&desc, Api::kComputeF32, Api::kF32), "description");
    const int transposed = Api::kTransposed;
    ok(api.desc_set(desc, Api::kTransposeA, &transposed, sizeof transposed), "transposition");
    ok(api.layout_create(&a, Api::kBf16, k, m, static_cast<int64_t>(k)), "layout");
    ok(api.layout_create(&b, Api::kBf16, k, n, static_cast<int64_t>(k)), "layout");
    ok(api.layout_create(&c, Api::kBf16, m, n, static_cast<int64_t>(m)), "layout");
    ok(api.preference_create(&preference), "preference");
    ok(api.preference_set(preference, Api::kMostWorkspace, &workspace_bytes, sizeof workspace_bytes), "workspace");
    Api::Heuristic found{};
    int n_found = 0;
    ok(api.heuristic(handle, desc, a, b, c, c, preference, 1, &found, &n_found), "heuristic");
    const float one = 1, zero = 0;
    auto* bytes = static_cast<std::byte*>(memory);
    std::byte* out = bytes + 2 * (m * k + n * k);
    ok(api.matmul(handle, desc, &one, bytes, a, bytes + 2 * m * k, b, &zero, out, c, out, c, &found.algorithm,
                  workspace, workspace_bytes, nullptr),
       "product");
    check(cudaDeviceSynchronize(), "product");
    return ms_since(begin);
  }
};

/// bf16 within ±2, all bits of the fraction in use: zeros multiply faster than weights do.
__global__ void fill_kernel(uint16_t* data, size_t n) {
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    const uint64_t hash = i * 0x9E3779B97F4A7C15ull >> 40;
    data[i] = static_cast<uint16_t>((hash & 0x80ff) | 0x3f00);
  }
}

__global__ void read_kernel(const uint4* data, size_t n, unsigned* sink) {
  unsigned sum = 0;
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 7 * step < n; i += 8 * step) {
    uint4 words[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) words[j] = __ldcs(data + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += words[j].x ^ words[j].y ^ words[j].z ^ words[j].w;
  }
  for (; i < n; i += step) sum += __ldcs(data + i).x;
  if (sum == 0x12345678) *sink = sum;  // never: keeps the loads alive
}

__global__ void nothing_kernel(int* p) {
  if (p != nullptr) *p = 1;
}

void graphs(cudaStream_t stream) {
  const auto capture = Clock::now();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < 400; ++i) nothing_kernel<<<1, 32, 0, stream>>>(nullptr);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  report("graph of 400 nodes: capture, ms", ms_since(capture));
  const auto instantiate = Clock::now();
  check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  report("graph of 400 nodes: instantiate, ms", ms_since(instantiate));
  for (const char* name : {"graph of 400 nodes: first launch, ms", "graph of 400 nodes: launch, ms"}) {
    const auto launch = Clock::now();
    check(cudaGraphLaunch(executable, stream), "launch");
    check(cudaStreamSynchronize(stream), "launch");
    report(name, ms_since(launch));
  }
}

template <typename F>
void rate(const char* name, double bytes, cudaStream_t stream, const F& work) {
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  work();  // unmeasured
  for (int i = 0; i < 5; ++i) {
    check(cudaEventRecord(begin, stream), "event");
    work();
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), name);
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    report(name, bytes / ms / 1e6);
  }
}

/// The driver clears what was freed, with the engines that copy and behind the call: what host memory comes at until
/// then, and for how long. `host` is pinned.
void clearing(const std::byte* host, size_t host_bytes, cudaStream_t stream) {
  constexpr size_t kFreed = 100'000'000'000, kTarget = size_t{8} << 30;
  void *memory = nullptr, *target = nullptr;
  if (cudaMalloc(&memory, kFreed) != cudaSuccess) {
    cudaGetLastError();
    std::fprintf(stderr, "no 100 GB of the GPU are free: nothing said of copies behind a free\n");
    return;
  }
  auto begin = Clock::now();
  check(cudaFree(memory), "free");
  report("cudaFree of 100 GB, ms", ms_since(begin));
  check(cudaMalloc(&target, kTarget), "8 GiB");
  begin = Clock::now();
  std::vector<std::pair<double, double>> copies;  // ms since the free, GB/s
  for (size_t at = 0; ms_since(begin) < 1500;) {
    const auto copy = Clock::now();
    for (int i = 0; i < 4; ++i, at = (at + host_bytes) % kTarget) {
      check(cudaMemcpyAsync(static_cast<std::byte*>(target) + at, host, host_bytes, cudaMemcpyHostToDevice, stream),
            "copy");
    }
    check(cudaStreamSynchronize(stream), "copy");
    copies.emplace_back(ms_since(begin), 4.0 * static_cast<double>(host_bytes) / ms_since(copy) / 1e6);
  }
  double best = 0, slow_until = 0;
  for (const auto& [at, rate] : copies) best = std::max(best, rate);
  for (const auto& [at, rate] : copies) {
    if (rate < 0.75 * best) slow_until = at;
  }
  const double first = copies[0].second;
  report("pinned host to HBM behind that, GB/s", first);
  report("last copy below 3/4 of the best behind it, ms", slow_until);
  report("pinned host to HBM at last, GB/s", best);
  check(cudaFree(target), "free");
}

void rates(cudaStream_t stream) {
  constexpr size_t kHbm = size_t{8} << 30, kHost = size_t{256} << 20;
  void *hbm = nullptr, *sink = nullptr;
  const auto allocate = Clock::now();
  check(cudaMalloc(&hbm, kHbm), "8 GiB");
  report("cudaMalloc of 8 GiB, ms", ms_since(allocate));
  check(cudaMalloc(&sink, 256), "sink");
  check(cudaMemset(hbm, 1, kHbm), "fill");
  int processors = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0), "processors");
  rate("HBM read, GB/s", kHbm, stream, [&] {
    read_kernel<<<static_cast<unsigned>(processors * 4), 512, 0, stream>>>(static_cast<const uint4*>(hbm), kHbm / 16,
                                                                           static_cast<unsigned*>(sink));
  });
  const auto pin = Clock::now();
  void* host = mmap(nullptr, kHost, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (host == MAP_FAILED) throw std::runtime_error("mmap failed");
  madvise(host, kHost, MADV_HUGEPAGE);
  std::memset(host, 1, kHost);
  check(cudaHostRegister(host, kHost, cudaHostRegisterDefault), "pin");
  report("map, touch and pin 256 MiB, ms", ms_since(pin));
  rate("pinned host to HBM, GB/s", 16.0 * kHost, stream, [&] {
    for (size_t i = 0; i < 16; ++i) {
      cudaMemcpyAsync(static_cast<std::byte*>(hbm) + i * kHost, host, kHost, cudaMemcpyHostToDevice, stream);
    }
  });
  clearing(static_cast<const std::byte*>(host), kHost / 16, stream);
}

void once() {
  auto begin = Clock::now();
  int count = 0;
  check(cudaGetDeviceCount(&count), "count");
  report("driver asked for its GPUs, ms", ms_since(begin));
  begin = Clock::now();
  check(cudaFree(nullptr), "context");
  report("context, ms", ms_since(begin));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  begin = Clock::now();
  nothing_kernel<<<1, 1, 0, stream>>>(nullptr);
  check(cudaStreamSynchronize(stream), "kernel");
  report("first kernel of our own, ms", ms_since(begin));
  graphs(stream);
  begin = Clock::now();
  try {
    Lt lt;
    report("dlopen of cuBLASLt, ms", ms_since(begin));
    void* handle = nullptr;
    begin = Clock::now();
    Lt::ok(lt.api.create(&handle), "cublasLtCreate");
    report("cublasLtCreate, ms", ms_since(begin));
    constexpr size_t kWorkspace = 32u << 20;
    void *memory = nullptr, *workspace = nullptr;
    check(cudaMalloc(&memory, size_t{1} << 30), "matrices");
    fill_kernel<<<1024, 256>>>(static_cast<uint16_t*>(memory), size_t{1} << 29);
    check(cudaDeviceSynchronize(), "matrices");
    check(cudaMalloc(&workspace, kWorkspace), "workspace");
    report("cuBLASLt first product, ms", lt.product(handle, memory, 4096, 64, 4096, workspace, kWorkspace));
    report("cuBLASLt another shape, ms", lt.product(handle, memory, 14336, 64, 4096, workspace, kWorkspace));
    report("cuBLASLt known shape, ms", lt.product(handle, memory, 4096, 64, 4096, workspace, kWorkspace));
    constexpr uint64_t kLarge = 8192;
    lt.product(handle, memory, kLarge, kLarge, kLarge, workspace, kWorkspace);
    for (int i = 0; i < 5; ++i) {
      const double ms = lt.product(handle, memory, kLarge, kLarge, kLarge, workspace, kWorkspace);
      report("bf16 product 8192^3 with its set-up, TFLOP/s", 2.0 * kLarge * kLarge * kLarge / ms / 1e9);
    }
    cudaFree(memory);
  } catch (const firstlight::Error& error) {
    std::fprintf(stderr, "no cuBLASLt: %s\n", error.what());
  }
  rates(stream);
}

/// Runs this program once more and adds its figures.
void run_self(const char* self, std::vector<std::string>& names, std::map<std::string, std::vector<double>>& figures) {
  const std::string command = std::string("'") + self + "' --once";
  const auto begin = Clock::now();
  FILE* out = popen(command.c_str(), "r");
  if (out == nullptr) throw std::runtime_error("cannot run " + command);
  char line[256];
  while (std::fgets(line, sizeof line, out) != nullptr) {
    char* tab = std::strchr(line, '\t');
    if (tab == nullptr) continue;
    const std::string name(line, static_cast<size_t>(tab - line));
    if (!figures.contains(name)) names.push_back(name);
    figures[name].push_back(std::strtod(tab + 1, nullptr));
  }
  if (pclose(out) != 0) throw std::runtime_error("a run failed");
  const std::string whole = "whole process, ms";
  if (!figures.contains(whole)) names.push_back(whole);
  figures[whole].push_back(ms_since(begin));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 1 && std::string(argv[1]) == "--once") {
      once();
      return 0;
    }
    std::vector<std::string> names;
    std::map<std::string, std::vector<double>> figures;
    std::vector<std::string> ignored;
    std::map<std::string, std::vector<double>> first;
    run_self(argv[0], ignored, first);  // driver files come from the disk
    for (int i = 0; i < 5; ++i) run_self(argv[0], names, figures);
    std::printf("%-46s %10s %10s %10s %10s\n", "5 processes", "median", "least", "most", "very first");
    for (const std::string& name : names) {
      std::vector<double>& values = figures[name];
      std::sort(values.begin(), values.end());
      std::printf("%-46s %10.3f %10.3f %10.3f %10.3f\n", name.c_str(), values[values.size() / 2], values.front(),
                  values.back(), first[name].empty() ? 0.0 : first[name][0]);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
