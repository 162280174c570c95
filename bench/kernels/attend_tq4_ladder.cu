// SPDX-License-Identifier: Apache-2.0
// Decode attention over codes of 4 bits, from a plain kernel to the program's own in six steps: what each bought. 32
// query and 8 key/value heads of 128; random codes in pages dealt in no order. A line a step: microseconds a layer, the
// share of the rate at which this run reads the same memory plainly, and the largest error beside double precision,
// relative to the largest number of the result. Arguments: batch x keys, as 8x32768 (default: three of them).
#include <cuda_bf16.h>

#include <cstdio>
#include <random>
#include <string>

#include "bench/cuda_bench.cuh"
#include "bench/kernels/tq4_ladder_dp4a.cuh"
#include "bench/kernels/tq4_ladder_mma.cuh"
#include "bench/kernels/tq4_ladder_oracle.cuh"
#include "bench/kernels/tq4_ladder_plain.cuh"
#include "firstlight/base/error.h"
#include "firstlight/ops/cuda_ops.h"

namespace firstlight::ladder {
namespace {

using bench::kGpu;
constexpr int kKvHeads = 8, kHeads = kKvHeads * kGroup, kExactPages = 4;  // the first, and the last three
constexpr int kMostLayers = 32, kLaunches = 32;                           // launches: of a replay
constexpr uint64_t kMemory = 8'000'000'000, kLayerPage = uint64_t{kKvHeads} * kShape.bytes();
constexpr uint64_t kExactPage = uint64_t{2} * kKvHeads * kPageTokens * kDim * 2;  // keys and values in bf16

__device__ uint32_t hash(uint64_t i) {
  uint64_t h = i * 0x9E3779B97F4A7C15ull;
  h = (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9ull;
  return static_cast<uint32_t>(h >> 32 ^ h);
}
/// Codes are any bits; scales, in fp16 of 64 times their value, 1.25 to 5: keys are about as long as queries.
__global__ void fill_codes(uint32_t* words, int64_t n) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride)
    words[i] = i % (kShape.bytes() / 4) < kShape.key_scales_at() / 4 ? hash(i) : (hash(i) & 0x07ff07ffu) + 0x3d003d00u;
}
/// Numbers of either sign from .125 to 2.
__global__ void fill_exact(uint32_t* words, int64_t n) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride)
    words[i] = (hash(~i) & 0x81ff81ffu) | 0x3e003e00u;
}

template <class T>
Buffer on_gpu(const std::vector<T>& data) {
  Buffer buffer(kGpu, data.size() * sizeof(T));
  cuda::check(cudaMemcpy(buffer.data(), data.data(), data.size() * sizeof(T), cudaMemcpyDefault), "to the GPU");
  return buffer;
}
template <class T>
std::vector<T> on_host(const void* from, size_t n) {
  std::vector<T> data(n);
  cuda::check(cudaMemcpy(data.data(), from, n * sizeof(T), cudaMemcpyDefault), "from the GPU");
  return data;
}

/// Pages of all cases; random, so that cases may share them.
struct Memory {
  Buffer pages{kGpu, kMemory}, exact{kGpu, 64 * kExactPages*kMostLayers*kExactPage};
  double rate = 0;  ///< GB/s, plain
  Memory() {
    fill_codes<<<4096, 256>>>(reinterpret_cast<uint32_t*>(pages.data()), static_cast<int64_t>(pages.size() / 4));
    fill_exact<<<4096, 256>>>(reinterpret_cast<uint32_t*>(exact.data()), static_cast<int64_t>(exact.size() / 4));
    cuda::check(cudaDeviceSynchronize(), "fill memory");
    rate = bench::plain_read_rate(pages, kMemory, 7);
  }
};

struct Case {
  int batch, n_pages, n_layers;
  std::vector<turboquant::Signs> signs;            ///< [key/value head][key, value]
  std::vector<std::vector<int32_t>> pages, exact;  ///< numbers, of each sequence
  std::vector<float> q, rotated_q;                 ///< [batch, kHeads, kDim]
  double bytes = 0;                                ///< of codes alone

  Case(int batch, int64_t keys) : batch(batch), n_pages(static_cast<int>(keys / kPageTokens)) {
    const int in_use = batch * n_pages;
    bytes = static_cast<double>(in_use) * static_cast<double>(kLayerPage);
    n_layers = static_cast<int>(std::clamp(2e9 / bytes, 2.0, double{kMostLayers}));  // together larger than L2
    for (int i = 0; i < 2 * kKvHeads; ++i)
      signs.push_back(
          turboquant::signs_of(turboquant::kSeed, 0, i / 2, i % 2 ? turboquant::Side::value : turboquant::Side::key));
    for (int s = 0; s < batch; ++s) {
      pages.emplace_back(), exact.emplace_back(n_pages, -1);
      for (int p = 0; p < n_pages; ++p) {
        pages[s].push_back(static_cast<int32_t>(int64_t{s * n_pages + p} * 7919 % in_use));
        if (is_exact(p, n_pages - 1)) exact[s][p] = s * kExactPages + (p > 0 ? p - n_pages + kExactPages : 0);
      }
    }
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (int row = 0; row < batch * kHeads; ++row) {
      Numbers x(kDim);
      for (double& each : x) each = normal(random);
      q.insert(q.end(), x.begin(), x.end());
      const Numbers y = rotated(signs[2 * (row % kHeads / kGroup)], Numbers(q.end() - kDim, q.end()));
      rotated_q.insert(rotated_q.end(), y.begin(), y.end());
    }
  }
};

/// Of three heads of layer 0, in double: where each begins in the result, and what it is.
using Wanted = std::vector<std::pair<size_t, Numbers>>;
Wanted wanted_of(const Case& c, const Memory& memory, bool with_exact) {
  Wanted wanted;
  const std::pair<int, int> checked[] = {{0, 0}, {c.batch / 2, 13}, {c.batch - 1, kHeads - 1}};
  for (const auto& [s, head] : checked) {
    const int kv_head = head / kGroup, first = kv_head * kPageTokens * kDim;
    std::vector<PageOnHost> pages;
    for (int p = 0; p < c.n_pages; ++p) {
      const uint64_t at = static_cast<uint64_t>(c.pages[s][p]) * c.n_layers * kLayerPage;
      pages.push_back({on_host<uint8_t>(memory.pages.data() + at + kv_head * kShape.bytes(), kShape.bytes()), {}, {}});
      if (!with_exact || c.exact[s][p] < 0) continue;
      const uint64_t exact_at = static_cast<uint64_t>(c.exact[s][p]) * c.n_layers * kExactPage;
      const auto numbers = on_host<__nv_bfloat16>(memory.exact.data() + exact_at, kExactPage / 2);
      for (int i = first; i < first + kPageTokens * kDim; ++i) {
        pages[p].keys.push_back(__bfloat162float(numbers[i]));
        pages[p].values.push_back(__bfloat162float(numbers[kKvHeads * kPageTokens * kDim + i]));
      }
    }
    const size_t row = static_cast<size_t>(s * kHeads + head) * kDim;
    const auto head_of = [row](const std::vector<float>& x) { return Numbers(&x[row], &x[row] + kDim); };
    const turboquant::Signs* back = with_exact ? &c.signs[2 * kv_head + 1] : nullptr;
    wanted.emplace_back(row, attend_in_double(head_of(c.q), head_of(c.rotated_q), back, pages));
  }
  return wanted;
}

/// The largest error, relative to the largest number.
double error_of(const Wanted& wanted, const std::vector<float>& out) {
  double error = 0, largest = 0;
  for (const auto& [row, numbers] : wanted) {
    for (size_t i = 0; i < kDim; ++i) {
      const double off = std::abs(static_cast<double>(out[row + i]) - numbers[i]);
      error = off <= error ? error : off;  // NaN stays
      largest = std::max(largest, std::abs(numbers[i]));
    }
  }
  return error / largest;
}

/// All steps stay below: products of 15 bits and weights of 14 are the coarsest.
constexpr double kMostError = 1e-3;

/// Throws Error{bug} for a step that is wrong.
void print(const char* step, const Memory& memory, double seconds, double bytes, double error) {
  std::printf("%-58s %9.2f us, %5.1f %% of plain read, error %.1e\n", step, seconds * 1e6,
              bytes / seconds / 1e7 / memory.rate, error);
  std::fflush(stdout);
  if (!(error <= kMostError)) throw Error(ErrorKind::bug, std::string("wrong: step ") + step);
}

using Kernel = void (*)(Params);

/// One of steps 1 to 5, and the merge behind it: replays of a graph of some layers. `turns`: warps for a part.
void measure(const char* step, const Case& c, const Memory& memory, const Wanted& wanted, Kernel kernel,
             int shared_bytes, int turns) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  cuda::check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), step);
  cudaDeviceProp gpu{};
  cuda::check(cudaGetDeviceProperties(&gpu, 0), "properties");
  int blocks = 0;
  cuda::check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, kBlockWarps * 32, shared_bytes), step);
  const int held = blocks * kBlockWarps * gpu.multiProcessorCount / turns, rows = c.batch * kKvHeads;
  const int n_parts = std::clamp(held / rows, 1, c.n_pages);
  std::vector<int32_t> numbers;
  for (const auto& each : c.pages) numbers.insert(numbers.end(), each.begin(), each.end());
  const Buffer numbers_there = on_gpu(numbers), q = on_gpu(c.rotated_q);
  Buffer pieces(kGpu, sizeof(Piece) * n_parts * c.batch * kHeads), out(kGpu, c.q.size() * 4);
  Params p{.pages = nullptr,  // of each layer
           .stride = kLayerPage * c.n_layers,
           .numbers = reinterpret_cast<const int32_t*>(numbers_there.data()),
           .q = reinterpret_cast<const float*>(q.data()),
           .pieces = reinterpret_cast<Piece*>(pieces.data()),
           .out = reinterpret_cast<float*>(out.data()),
           .scale = 1.4426950408889634f / std::sqrt(static_cast<float>(kDim)),
           .batch = c.batch,
           .n_kv_heads = kKvHeads,
           .n_pages = c.n_pages,
           .n_parts = n_parts};
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreate(&stream), "stream");
  const auto layer = [&](int i) {
    p.pages = reinterpret_cast<const uint8_t*>(memory.pages.data()) + i % c.n_layers * kLayerPage;
    const int warps = rows * n_parts * turns;
    kernel<<<(warps + kBlockWarps - 1) / kBlockWarps, kBlockWarps * 32, shared_bytes, stream>>>(p);
    merge_kernel<<<c.batch * kHeads, kDim, 0, stream>>>(p);
  };
  layer(0);
  cuda::check(cudaStreamSynchronize(stream), step);
  const double error = error_of(wanted, on_host<float>(out.data(), c.q.size()));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < kLaunches; ++i) layer(i);
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&replay, graph, 0), "graph");
  const auto once = [&] {
    cuda::check(cudaGraphLaunch(replay, stream), step);
    cuda::check(cudaStreamSynchronize(stream), step);
  };
  once();
  print(step, memory, bench::median_seconds(7, once) / kLaunches, c.bytes, error);
  cudaGraphExecDestroy(replay), cudaGraphDestroy(graph), cudaStreamDestroy(stream);
}

/// Step 6, which also rotates, and reads four pages of a sequence exactly.
void measure_program(const char* step, const Case& c, const Memory& memory) {
  std::vector<AttentionSpan> spans;
  for (int s = 0; s < c.batch; ++s)
    spans.push_back({s, 1, int64_t{c.n_pages} * kPageTokens - 1, c.pages[s].data(), c.exact[s].data()});
  const std::vector<int> ids(spans.size(), 1);
  std::vector<Likeliest> picked(spans.size());
  constexpr int64_t kWidth = kHeads * kDim;
  Buffer q = on_gpu(c.q), out(kGpu, c.q.size() * 4);
  const Matrix<const float> queries{reinterpret_cast<const float*>(q.data()), c.batch, kWidth, kWidth};
  const Matrix<float> results{reinterpret_cast<float*>(out.data()), c.batch, kWidth, kWidth};
  const auto pass = [&](Ops& ops, int launches) {
    if (!ops.begin({.ids = ids, .spans = spans, .wanted = spans, .likeliest = picked}, true)) {
      for (int i = 0; i < launches; ++i) {
        const auto layer = static_cast<uint64_t>(i % c.n_layers), n_layers = static_cast<uint64_t>(c.n_layers);
        KvLayer kv{const_cast<std::byte*>(memory.pages.data()) + layer * kLayerPage, kLayerPage * n_layers, KvKind::tq4,
                   kKvHeads, kDim};
        kv.exact = const_cast<std::byte*>(memory.exact.data()) + layer * kExactPage;
        kv.exact_stride = kExactPage * n_layers;
        kv.signs = c.signs.data();
        ops.attend(queries, kHeads, spans, kv, results);
      }
    }
    ops.end();
  };
  pass(*make_cuda_ops(kGpu, {.load_cublaslt = false}), 1);
  const double error = error_of(wanted_of(c, memory, true), on_host<float>(out.data(), c.q.size()));
  const auto ops = make_cuda_ops(kGpu, {.load_cublaslt = false});  // one that has recorded no pass of one layer
  for (int i = 0; i < 4; ++i) pass(*ops, kLaunches);
  const double bytes =
      c.bytes + static_cast<double>(c.batch) * kExactPages * static_cast<double>(kExactPage - kLayerPage);
  print(step, memory, bench::median_seconds(7, [&] { pass(*ops, kLaunches); }) / kLaunches, bytes, error);
}

void climb(int batch, int64_t keys, const Memory& memory) {
  const Case c(batch, keys);
  std::printf("%d x %ld keys, %d layers of %.0f MB\n", batch, keys, c.n_layers, c.bytes / 1e6);
  const Wanted wanted = wanted_of(c, memory, false);
  measure("1: a warp a key and head, table, f32", c, memory, wanted, plain_kernel<1>, 0, kGroup);
  measure("2: the group's heads share what is read", c, memory, wanted, plain_kernel<kGroup>, 0, 1);
  measure("3: whole numbers: dp4a, a lane a key, a page's softmax", c, memory, wanted, dot_kernel, 0, 1);
  measure("4: 8-bit tensor cores, pages from global memory", c, memory, wanted, mma_kernel<GlobalPages>, 0, 1);
  measure("5: bulk copies into each warp's ring", c, memory, wanted, mma_kernel<RingPages>, RingPages::kSharedBytes, 1);
  measure_program("6: the program's: also rotates, sums by flags, exact pages", c, memory);
}

void climb_all(int n, char** arguments) {
  cuda::use(kGpu);
  const Memory memory;
  std::printf("plain read: %.0f GB/s\n", memory.rate);
  std::vector<std::string> cases(arguments + 1, arguments + n);
  if (cases.empty()) cases = {"1x4096", "8x32768", "32x32768"};
  for (const std::string& each : cases) {
    int batch = 0, keys = 0;
    const bool read = std::sscanf(each.c_str(), "%dx%d", &batch, &keys) == 2;
    if (!read || batch < 1 || batch > 64 || keys < 8 * kPageTokens || keys % kPageTokens != 0 ||
        int64_t{batch} * keys > 1 << 20)
      throw Error(ErrorKind::bad_input, each +
                                            ": expected BATCHxKEYS, of at most 64 sequences, pages of 64 keys, 8 at "
                                            "least, and 1,048,576 keys in all");
    climb(batch, keys, memory);
  }
}

}  // namespace
}  // namespace firstlight::ladder

int main(int n, char** arguments) {
  return firstlight::bench::run([&] { firstlight::ladder::climb_all(n, arguments); });
}
