// SPDX-License-Identifier: Apache-2.0
// Decode attention over TurboQuant codes and over bf16 pages on a GPU, random data in pages dealt in no order:
// microseconds a layer, GB/s of keys and values, and the share of the rate at which this run reads the same memory
// plainly; then with the rotation by position and the append, as a step has it. Passes are replays of some layers,
// which together are larger than L2. Also: the append alone.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "cuda_bench.cuh"
#include "firstlight/device/buffer.h"
#include "firstlight/device/cuda.h"
#include "firstlight/ops/cuda_ops.h"
#include "firstlight/quant/turboquant.h"

namespace firstlight {
namespace {

using bench::kGpu;
using bench::median_seconds;
static bool near = false;
constexpr uint64_t kMemory = 60'000'000'000, kExactMemory = 2'000'000'000;
constexpr int64_t kWidest = 64 * 128 + 16 * 128;

/// Any 16 bits are a number of moderate size, as bf16 and as a scale: exponents are kept near the middle.
__global__ void fill_kernel(uint64_t* data, int64_t n) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    uint64_t h = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15ull;
    h = (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9ull;
    data[i] = ((h ^ (h >> 32)) & 0x81ff81ff81ff81ffull) | 0x3c003c003c003c00ull;
  }
}

struct Case {
  int n_heads, n_kv_heads, head_dim, batch;
  int64_t context;
  KvKind kind;
  bool centred = false;
};

struct Memory {
  Buffer pages{kGpu, kMemory}, exact{kGpu, kExactMemory};
  Buffer rows{kGpu, static_cast<uint64_t>(64 * kWidest * 2 * 4)};
  Buffer means{kGpu, uint64_t{32} * 2 * 8 * 128 * 4};
};

struct Measured {
  double seconds = 0;  ///< of a layer
  double bytes = 0;    ///< that it reads
  int layers = 0;
};

enum class What : uint8_t { attention, append, both };

Measured measure(const Case& c, Memory& memory, What what) {
  const uint64_t layer_bytes = kv_page_bytes(c.kind, c.n_kv_heads, c.head_dim);
  const uint64_t exact_bytes = kv_page_bytes(KvKind::bf16, c.n_kv_heads, c.head_dim);
  const int64_t each = (c.context + kPageTokens - 1) / kPageTokens, in_use = each * c.batch;
  const int64_t n_exact = 4 * c.batch;
  int n_layers = static_cast<int>(std::min<uint64_t>(kMemory / (layer_bytes * static_cast<uint64_t>(in_use)), 32));
  if (is_compressed(c.kind))
    n_layers = std::min(n_layers, static_cast<int>(kExactMemory / (exact_bytes * static_cast<uint64_t>(n_exact))));
  if (n_layers < 1) return {};
  std::vector<std::vector<int32_t>> pages, exact;
  std::vector<AttentionSpan> spans;
  int64_t dealt = 0;
  for (int64_t s = 0; s < c.batch; ++s) {
    pages.emplace_back();
    exact.emplace_back(static_cast<size_t>(each), -1);
    for (int64_t p = 0; p < each; ++p) {
      pages.back().push_back(static_cast<int32_t>(dealt++ * 7919 % in_use));
      if (is_exact(p, each - 1))
        exact.back()[static_cast<size_t>(p)] = static_cast<int32_t>(s * 4 + (p ? p - each + 4 : 0));
    }
  }
  for (size_t s = 0; s < pages.size(); ++s)
    spans.push_back({static_cast<int64_t>(s), 1, c.context - 1, pages[s].data(), exact[s].data()});
  std::vector<turboquant::Signs> signs;
  for (int i = 0; i < 2 * c.n_kv_heads; ++i)
    signs.push_back(turboquant::signs_of(1, 0, i / 2, i % 2 ? turboquant::Side::value : turboquant::Side::key));
  const std::vector<int> ids(pages.size(), 1);
  std::vector<Likeliest> picked(pages.size());
  const std::vector<double> frequencies(static_cast<size_t>(c.head_dim / 2), 0.01);
  const int64_t cols = int64_t{c.n_heads + 2 * c.n_kv_heads} * c.head_dim, width = int64_t{c.n_heads} * c.head_dim;
  float* q = reinterpret_cast<float*>(memory.rows.data());
  float* heads = q + 64 * kWidest;
  const auto ops = make_cuda_ops(kGpu, {.load_cublaslt = false});
  const double bytes =
      is_compressed(c.kind)
          ? static_cast<double>(c.batch) *
                (static_cast<double>(std::max<int64_t>(0, each - 4)) * static_cast<double>(layer_bytes) +
                 static_cast<double>(std::min<int64_t>(each, 4)) * static_cast<double>(exact_bytes))
          : static_cast<double>(c.batch * each) * static_cast<double>(layer_bytes);
  const int rounds = std::max(1, static_cast<int>(std::min(64.0 / n_layers, 4e10 / (bytes * n_layers))));
  const auto once = [&] {
    if (!ops->begin({.ids = ids, .spans = spans, .wanted = spans, .likeliest = picked}, true)) {
      for (int i = 0; i < rounds * n_layers; ++i) {
        const auto layer = static_cast<uint64_t>(i % n_layers);
        KvLayer kv{memory.pages.data() + layer * layer_bytes * (near ? static_cast<uint64_t>(in_use) : 1),
                   layer_bytes * static_cast<uint64_t>(near ? 1 : n_layers), c.kind, c.n_kv_heads, c.head_dim};
        if (is_compressed(c.kind)) {
          kv.exact = memory.exact.data() + layer * exact_bytes;
          kv.exact_stride = exact_bytes * static_cast<uint64_t>(n_layers);
          kv.signs = signs.data();
          if (c.centred) kv.means = reinterpret_cast<const float*>(memory.means.data()) + layer * 2 * 8 * 128;
        }
        if (what != What::attention)
          ops->rope_and_store({q, c.batch, cols, cols}, c.n_heads, nullptr, nullptr, 1e-5f, frequencies, spans, kv);
        if (what != What::append) {
          ops->attend({q, c.batch, width, cols}, c.n_heads, spans, kv, {heads, c.batch, width, width});
        }
      }
    }
    ops->end();
  };
  for (int i = 0; i < 4; ++i) once();
  return {median_seconds(7, once) / (rounds * n_layers), bytes, rounds * n_layers};
}

/// And what means change: the append, and attention.
void measure_appends(Memory& memory) {
  for (const KvKind kind : {KvKind::bf16, KvKind::tq8, KvKind::tq4, KvKind::tq3}) {
    for (const int batch : {1, 32}) {
      for (const bool centred : {false, true}) {
        if (centred && !is_compressed(kind)) continue;
        const Measured m = measure({32, 8, 128, batch, 4096, kind, centred}, memory, What::append);
        std::printf("append of %2d rows, %-4s%s: %6.2f us a layer\n", batch, std::string(to_string(kind)).c_str(),
                    centred ? ", centred" : "", m.seconds * 1e6);
      }
    }
  }
  for (const int batch : {1, 8}) {
    for (const bool centred : {false, true}) {
      const Measured m = measure({32, 8, 128, batch, 32768, KvKind::tq4, centred}, memory, What::attention);
      std::printf("attention, %d x 32768, tq4%s: %7.2f us\n", batch, centred ? ", centred" : "", m.seconds * 1e6);
    }
  }
}

/// One line a kind; `kinds`: bf16 first, which the others are compared with.
void compare(Memory& memory, double rate, int n_heads, int batch, int64_t context, std::span<const KvKind> kinds) {
  double bf16 = 0;
  for (const KvKind kind : kinds) {
    const Measured m = measure({n_heads, 8, 128, batch, context, kind}, memory, What::attention);
    if (m.layers == 0) continue;
    if (kind == KvKind::bf16) bf16 = m.seconds;
    std::printf("%2d/8 heads of 128, %2d x %6ld, %-4s: %8.2f us, %6.0f GB/s, %5.1f %% of plain read", n_heads, batch,
                context, std::string(to_string(kind)).c_str(), m.seconds * 1e6, m.bytes / m.seconds / 1e9,
                m.bytes / m.seconds / 1e7 / rate);
    if (kind != KvKind::bf16 && bf16 > 0) std::printf(", %.2fx bf16", bf16 / m.seconds);
    const Measured both = measure({n_heads, 8, 128, batch, context, kind}, memory, What::both);
    std::printf("; with rotation and append %8.2f us\n", both.seconds * 1e6);
    std::fflush(stdout);
  }
}

/// `only`: short (contexts to 4,096 and one sequence), long, tq4 (long, that kind alone), near (the same, a layer's
/// pages side by side) or append; else all.
void measure_all(const std::string& only) {
  cuda::use(kGpu);
  near = only == "near";
  Memory memory;
  for (const Buffer* each : {&memory.pages, &memory.exact, &memory.rows, &memory.means})
    fill_kernel<<<4096, 256>>>(reinterpret_cast<uint64_t*>(each->data()), static_cast<int64_t>(each->size() / 8));
  cuda::check(cudaDeviceSynchronize(), "fill memory");
  const double rate = bench::plain_read_rate(memory.pages, 20'000'000'000, 7);
  std::printf("plain read: %.0f GB/s\n", rate);
  constexpr KvKind kAll[] = {KvKind::bf16, KvKind::tq8, KvKind::tq4}, kTq4[] = {KvKind::tq4};
  const bool one_kind = near || only == "tq4";
  if (only.empty() || only == "short") {
    struct Short {
      int batch;
      int64_t context;
    };
    for (const auto [batch, context] : {Short{1, 512},
                                        {2, 512},
                                        {8, 512},
                                        {16, 512},
                                        {32, 512},
                                        {64, 512},
                                        {1, 1024},
                                        {2, 1024},
                                        {1, 2048},
                                        {2, 2048},
                                        {1, 4096},
                                        {2, 4096},
                                        {1, 32000}})
      compare(memory, rate, 32, batch, context, kAll);
  }
  for (const int n_heads : {32, 64}) {
    for (const int batch : {1, 8, 32, 64}) {
      for (const int64_t context : {4096, 32768, 131072}) {
        if (only == "append" || only == "short" || (one_kind && context > 32768)) continue;
        compare(memory, rate, n_heads, batch, context,
                one_kind ? std::span<const KvKind>(kTq4) : std::span<const KvKind>(kAll));
      }
    }
  }
  if (only.empty() || only == "append") measure_appends(memory);
}

}  // namespace
}  // namespace firstlight

int main(int n, char** arguments) {
  return firstlight::bench::run([&] { firstlight::measure_all(n > 1 ? arguments[1] : ""); });
}
