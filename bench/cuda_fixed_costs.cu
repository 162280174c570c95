// SPDX-License-Identifier: Apache-2.0
// What a GPU's start costs before a byte of the model is read, and what its links give: the floors of
// docs/performance.md. Fixed costs are paid once a process, so the program runs itself five times and prints medians
// and spread; the rates are taken five times in each. cuBLASLt is opened as the program proper opens it, with
// declarations of our own.
//   cuda_fixed_costs            the table
//   cuda_fixed_costs --once     one process's figures, a name and a number a line
#include <cuda_runtime.h>
#include <dlfcn.h>
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
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

void report(const char* name, double value) { std::printf("%s\t%.4f\n", name, value); }

/// The few calls and numbers of cublasLt.h that one bf16 product takes.
struct Lt {
  using Handle = void*;
  struct Algo {
    uint64_t data[8];
  };
  struct Heuristic {
    Algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
  };
  static constexpr int kBf16 = 14, kF32 = 0, kCompute32F = 68, kTransA = 3, kWorkspace = 1, kOpT = 1;
  int (*create)(Handle*);
  int (*desc_create)(void**, int compute, int scale_type);
  int (*desc_set)(void*, int attribute, const void*, size_t);
  int (*layout_create)(void**, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*preference_create)(void**);
  int (*preference_set)(void*, int attribute, const void*, size_t);
  int (*heuristic)(Handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted, Heuristic*,
                   int* found);
  int (*matmul)(Handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
                const void* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algo*, void* workspace,
                size_t workspace_bytes, cudaStream_t);

  explicit Lt(void* library) {
    find(library, "cublasLtCreate", create);
    find(library, "cublasLtMatmulDescCreate", desc_create);
    find(library, "cublasLtMatmulDescSetAttribute", desc_set);
    find(library, "cublasLtMatrixLayoutCreate", layout_create);
    find(library, "cublasLtMatmulPreferenceCreate", preference_create);
    find(library, "cublasLtMatmulPreferenceSetAttribute", preference_set);
    find(library, "cublasLtMatmulAlgoGetHeuristic", heuristic);
    find(library, "cublasLtMatmul", matmul);
  }
  template <typename F>
  static void find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
    if (function == nullptr) throw std::runtime_error(std::string(name) + " is not in libcublasLt");
  }
  static void ok(int status, const char* what) {
    if (status != 0) throw std::runtime_error(std::string(what) + ": cuBLASLt status " + std::to_string(status));
  }

  /// Milliseconds of out[n, m] = in[n, k] · weight[m, k]ᵀ with its choice of algorithm, to the end of the kernel.
  double product(Handle handle, void* memory, uint64_t m, uint64_t n, uint64_t k, void* workspace,
                 size_t workspace_bytes) {
    const auto begin = Clock::now();
    void *desc = nullptr, *a = nullptr, *b = nullptr, *c = nullptr, *preference = nullptr;
    ok(desc_create(&desc, kCompute32F, kF32), "description");
    const int transposed = kOpT;
    ok(desc_set(desc, kTransA, &transposed, sizeof transposed), "transposition");
    ok(layout_create(&a, kBf16, k, m, static_cast<int64_t>(k)), "layout");
    ok(layout_create(&b, kBf16, k, n, static_cast<int64_t>(k)), "layout");
    ok(layout_create(&c, kBf16, m, n, static_cast<int64_t>(m)), "layout");
    ok(preference_create(&preference), "preference");
    ok(preference_set(preference, kWorkspace, &workspace_bytes, sizeof workspace_bytes), "workspace");
    Heuristic found{};
    int n_found = 0;
    ok(heuristic(handle, desc, a, b, c, c, preference, 1, &found, &n_found), "heuristic");
    const float one = 1, zero = 0;
    auto* bytes = static_cast<std::byte*>(memory);
    std::byte* out = bytes + 2 * (m * k + n * k);
    ok(matmul(handle, desc, &one, bytes, a, bytes + 2 * m * k, b, &zero, out, c, out, c, &found.algo, workspace,
              workspace_bytes, nullptr),
       "product");
    check(cudaDeviceSynchronize(), "product");
    return ms_since(begin);
  }
};

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
  void* library = nullptr;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    std::fprintf(stderr, "no cuBLASLt: %s\n", dlerror());
  } else {
    report("dlopen of cuBLASLt, ms", ms_since(begin));
    Lt lt(library);
    Lt::Handle handle = nullptr;
    begin = Clock::now();
    Lt::ok(lt.create(&handle), "cublasLtCreate");
    report("cublasLtCreate, ms", ms_since(begin));
    constexpr size_t kWorkspace = 32u << 20;
    void *memory = nullptr, *workspace = nullptr;
    check(cudaMalloc(&memory, size_t{1} << 30), "matrices");
    check(cudaMemset(memory, 0, size_t{1} << 30), "matrices");
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
