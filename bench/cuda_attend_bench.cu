// SPDX-License-Identifier: Apache-2.0
// Attention of single rows on a GPU, over random pages dealt in no order: microseconds and GB/s of keys and values
// beside the plain read rate that this run measures first. Passes are replays of 32 or more layers, so launches cost
// what they cost in use; layers together are larger than L2.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "cuda_bench.cuh"
#include "firstlight/device/buffer.h"
#include "firstlight/device/cuda.h"
#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/cuda_ops.h"
#include "firstlight/ops/cuda_ptx.cuh"
#include "firstlight/ops/memory_barrier_cuda.cuh"
#include "firstlight/ops/product_cuda.cuh"

namespace firstlight {
namespace {

using bench::kGpu;
using bench::median_seconds;
constexpr uint64_t kKvBytes = 9'000'000'000;

__global__ void fill_kernel(__nv_bfloat16* data, int64_t n) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    uint64_t h = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15ull;
    h = (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9ull;
    data[i] = __float2bfloat16_rn(static_cast<float>((h >> 40) & 0xffff) / 32768.0f - 1);
  }
}

struct Shape {
  int n_heads, n_kv_heads, head_dim, n_layers;
  uint64_t layer_bytes() const { return uint64_t{2} * static_cast<unsigned>(n_kv_heads * head_dim) * kPageTokens * 2; }
  int64_t n_pages() const { return static_cast<int64_t>(kKvBytes / (layer_bytes() * static_cast<unsigned>(n_layers))); }
};

/// GB/s at which blocks read pieces of the size of a head's keys or values in a page, in no order, by bulk copies
/// through rings in shared memory: as attention's keys lie, and by the fastest means.
constexpr unsigned kPiece = 16384, kPiecesAtOnce = 12;
__global__ void bulk_read_kernel(const std::byte* data, int64_t n, uint32_t* out) {
  extern __shared__ __align__(128) std::byte ring[];
  __shared__ cuda::MemoryBarrier full[kPiecesAtOnce];
  if (threadIdx.x > 0) return;
  const uint64_t policy = cuda::policy_read_once();
  for (auto& barrier : full) barrier.init(1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  uint32_t x = 0;
  const auto ask = [&](int64_t i) {
    const unsigned at = static_cast<unsigned>(i) % kPiecesAtOnce;
    const int64_t piece = (blockIdx.x + i * gridDim.x) * 7919 % n;
    full[at].arrive_and_expect(kPiece);
    cuda::copy_bulk(cuda::shared_address(ring + at * kPiece), data + piece * kPiece, kPiece, full[at], policy);
  };
  const int64_t own = (n - blockIdx.x + gridDim.x - 1) / gridDim.x;
  for (int64_t i = 0; i < kPiecesAtOnce && i < own; ++i) ask(i);
  for (int64_t i = 0; i < own; ++i) {
    full[i % kPiecesAtOnce].wait(static_cast<unsigned>(i / kPiecesAtOnce) & 1);
    x ^= reinterpret_cast<const uint32_t*>(ring)[i % kPiecesAtOnce * (kPiece / 4)];
    if (i + kPiecesAtOnce < own) ask(i + kPiecesAtOnce);
  }
  if (x == 0x12345678) *out = x;
}

double bulk_read_rate(const Buffer& memory, uint64_t bytes) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, 0), "properties");
  Buffer out(kGpu, 256);
  constexpr int kBytes = kPiece * kPiecesAtOnce;
  cuda::check(cudaFuncSetAttribute(bulk_read_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "shared");
  const double s = median_seconds(9, [&] {
    bulk_read_kernel<<<static_cast<unsigned>(properties.multiProcessorCount), 32, kBytes>>>(
        memory.data(), static_cast<int64_t>(bytes / kPiece), reinterpret_cast<uint32_t*>(out.data()));
    cuda::check(cudaDeviceSynchronize(), "bulk read");
  });
  return static_cast<double>(bytes) / s / 1e9;
}

/// Seconds of attention in one layer.
double attention_seconds(const Shape& k, const std::vector<int64_t>& contexts, const Buffer& memory, float* q,
                         float* heads) {
  const int64_t n = static_cast<int64_t>(contexts.size());
  std::vector<std::vector<int32_t>> pages;
  std::vector<AttentionSpan> spans;
  int64_t dealt = 0, tokens = 0;
  for (const int64_t context : contexts) {
    std::vector<int32_t>& own = pages.emplace_back();
    for (int64_t p = 0; p < (context + kPageTokens - 1) / kPageTokens; ++p)
      own.push_back(static_cast<int32_t>(dealt++ * 7919 % k.n_pages()));
    tokens += context;
  }
  for (int64_t s = 0; s < n; ++s)
    spans.push_back({s, 1, contexts[static_cast<size_t>(s)] - 1, pages[static_cast<size_t>(s)].data()});
  const std::vector<int> ids(contexts.size(), 1);
  std::vector<Likeliest> picked(contexts.size());
  const int64_t width = int64_t{k.n_heads} * k.head_dim;
  const double bytes = static_cast<double>(tokens * k.n_kv_heads * k.head_dim * 4 * k.n_layers);
  const int rounds = std::max(static_cast<int>(std::clamp(1e10 / bytes, 1.0, 12.0)), cuda::ceil_div(32, k.n_layers));
  const auto ops = make_cuda_ops(kGpu, {.load_cublaslt = false});
  const auto once = [&] {
    if (!ops->begin({.ids = ids, .spans = spans, .wanted = spans, .likeliest = picked}, true)) {
      for (int i = 0; i < rounds * k.n_layers; ++i) {
        const uint64_t layer = static_cast<unsigned>(i % k.n_layers) * k.layer_bytes();
        ops->attend({q, n, width, width}, k.n_heads, spans,
                    {memory.data() + layer, k.layer_bytes() * static_cast<unsigned>(k.n_layers), KvKind::bf16,
                     k.n_kv_heads, k.head_dim},
                    {heads, n, width, width});
      }
    }
    ops->end();
  };
  for (int i = 0; i < 4; ++i) once();
  return median_seconds(9, once) / (rounds * k.n_layers);
}

struct Case {
  Shape shape;
  std::vector<int64_t> contexts;
};

std::vector<Case> cases() {
  using All = std::vector<int64_t>;
  // Fewer layers leave room for more pages.
  const Shape llama{32, 8, 128, 32}, long_llama{32, 8, 128, 16}, wide_llama{32, 8, 128, 8}, full_llama{32, 8, 128, 2};
  const Shape last_llama{32, 8, 128, 1}, grouped{64, 8, 128, 32}, full_grouped{64, 8, 128, 2}, small{9, 3, 64, 30};
  std::vector<Case> all;
  for (int64_t context = 64; context <= 65536; context *= 2) {
    if (context > 64 && context < 512) continue;
    all.push_back({llama, {context}});
  }
  all.push_back({long_llama, {131072}});
  all.push_back({llama, All(2, 32768)});
  all.push_back({llama, All(4, 512)});
  all.push_back({llama, All(8, 2048)});
  all.push_back({wide_llama, All(8, 32768)});
  for (const size_t n : {16, 32, 64}) all.push_back({llama, All(n, 512)});
  all.push_back({wide_llama, All(32, 4096)});
  all.push_back({wide_llama, All(64, 4096)});
  all.push_back({full_llama, All(8, 131072)});
  all.push_back({full_llama, All(16, 32768)});
  all.push_back({full_llama, All(32, 32768)});
  all.push_back({last_llama, All(64, 32768)});
  All mixed(31, 512);
  mixed.push_back(32768);
  all.push_back({llama, mixed});
  all.push_back({grouped, {32768}});
  all.push_back({grouped, All(32, 512)});
  all.push_back({full_grouped, All(32, 32768)});
  for (const int64_t context : {512, 2048, 8192}) all.push_back({small, {context}});
  all.push_back({small, All(16, 8192)});
  return all;
}

void measure() {
  cuda::use(kGpu);
  Buffer memory(kGpu, kKvBytes), rows(kGpu, 256 * 4096 * 2 * 4);
  fill_kernel<<<2048, 256>>>(reinterpret_cast<__nv_bfloat16*>(memory.data()), static_cast<int64_t>(kKvBytes / 2));
  fill_kernel<<<2048, 256>>>(reinterpret_cast<__nv_bfloat16*>(rows.data()), int64_t{256} * 4096 * 4);
  cuda::check(cudaDeviceSynchronize(), "fill memory");
  float* q = reinterpret_cast<float*>(rows.data());
  cuda::check(cudaMemset(q, 0x3d, 256 * 4096 * 4), "fill q");
  const double rate = bench::plain_read_rate(memory, 8'000'000'000);
  std::printf("plain read: %.0f GB/s; by bulk copies: %.0f GB/s\n", rate, bulk_read_rate(memory, 8'000'000'000));
  for (const Case& c : cases()) {
    const Shape& k = c.shape;
    int64_t tokens = 0;
    for (const int64_t context : c.contexts) tokens += context;
    const double s = attention_seconds(k, c.contexts, memory, q, q + 256 * 4096);
    const double speed = static_cast<double>(tokens * k.n_kv_heads * k.head_dim * 4) / s / 1e9;
    std::printf("decode attention %2d/%d heads of %3d, %2zu rows, %6ld keys%s: %7.2f us %6.0f GB/s %5.1f %%\n",
                k.n_heads, k.n_kv_heads, k.head_dim, c.contexts.size(), c.contexts.back(),
                c.contexts.front() == c.contexts.back() ? " each" : ", others 512", s * 1e6, speed, speed / rate * 100);
  }
}

}  // namespace
}  // namespace firstlight

int main() { return firstlight::bench::run(firstlight::measure); }
