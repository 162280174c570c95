// SPDX-License-Identifier: Apache-2.0
// The CPU back end at SmolLM2-135M's shapes: GB/s of weights or GFLOP/s, and the share of the roof that this run
// measured first (plain read by all threads; multiply-adds from registers: bf16 dot products where the machine has
// them, else fused f32).
#include <benchmark/benchmark.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "firstlight/base/half.h"
#include "firstlight/ops/cpu_ops.h"

namespace firstlight {
namespace {

using Clock = std::chrono::steady_clock;

ThreadPool& pool() {
  static ThreadPool threads(usable_cores());
  return threads;
}
Ops& ops() {
  static const std::unique_ptr<Ops> cpu = make_cpu_ops(pool());
  return *cpu;
}

/// Seconds of the fastest of `times` runs.
template <class F>
double fastest(int times, const F& fn) {
  double best = 1e9;
  for (int i = 0; i < times; ++i) {
    const auto start = Clock::now();
    fn();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

/// Zeroed memory in huge pages, as an arena of weights or of pages is; never freed.
template <class T>
T* huge(size_t n) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = (n * sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;
  void* at = std::aligned_alloc(kHugePage, bytes);
  if (!at) throw std::bad_alloc();
  madvise(at, bytes, MADV_HUGEPAGE);
  std::memset(at, 0, bytes);
  return static_cast<T*>(at);
}

/// bf16 weights of many layers, more than any cache holds.
std::span<const uint16_t> weights() {
  static const std::span<const uint16_t> all = [] {
    constexpr size_t kWeights = size_t{136} << 20;
    auto* w = huge<uint16_t>(kWeights);
    for (size_t i = 0; i < kWeights; ++i)
      w[i] = f32_to_bf16(static_cast<float>(i * 2654435761u % 1000u) * 1e-4f - 0.05f);
    return std::span<const uint16_t>(w, kWeights);
  }();
  return all;
}

typedef uint64_t Wide __attribute__((vector_size(64)));

double read_roof() {  // bytes per second
  static const double roof = [] {
    const auto w = weights();
    const int64_t n = static_cast<int64_t>(w.size() / 32);
    std::vector<Wide> sums(static_cast<size_t>(pool().n_threads()));
    const double seconds = fastest(9, [&] {
      pool().for_range(n, 256, [&](int64_t begin, int64_t end, int thread) {
        const char* at = reinterpret_cast<const char*>(w.data());
        Wide sum{}, other{};
        for (int64_t i = begin; i + 1 < end; i += 2) {
          Wide a, b;
          __builtin_memcpy(&a, at + i * 64, 64);
          __builtin_memcpy(&b, at + i * 64 + 64, 64);
          sum ^= a, other ^= b;
        }
        sums[static_cast<size_t>(thread)] = sum ^ other;
      });
    });
    benchmark::DoNotOptimize(sums);
    return static_cast<double>(n) * 64 / seconds;
  }();
  return roof;
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) double dot_flops(int64_t n) {
  __m512 sums[12], total{};
  for (int i = 0; i < 12; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));  // twelve chains, not one
  __m512i bits = _mm512_set1_epi32(0x3c003c00);
  asm volatile("" : "+v"(bits));
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(bits), reinterpret_cast<__m512bh>(bits));
    }
  }
  for (const auto& sum : sums) total += sum;
  benchmark::DoNotOptimize(total);
  return static_cast<double>(n) * 12 * 64;
}
__attribute__((target("avx2,fma"))) double fused_flops(int64_t n) {
  __m256 sums[12], total{};
  for (int i = 0; i < 12; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  __m256 x = _mm256_set1_ps(1e-3f);
  asm volatile("" : "+x"(x));
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = _mm256_fmadd_ps(x, x, sum);
    }
  }
  for (const auto& sum : sums) total += sum;
  benchmark::DoNotOptimize(total);
  return static_cast<double>(n) * 12 * 16;
}
#endif

double flop_roof() {  // per second, all threads; 0 where unknown
  static const double roof = []() -> double {
#if defined(__x86_64__)
    if (!cpu_level_works(CpuLevel::avx2)) return 0;
    const bool bf16 = cpu_level_works(CpuLevel::avx512_bf16);
    std::vector<double> flops(static_cast<size_t>(pool().n_threads()));
    const double seconds = fastest(9, [&] {
      pool().run(
          [&](int thread) { flops[static_cast<size_t>(thread)] = bf16 ? dot_flops(1000000) : fused_flops(1000000); });
    });
    return std::accumulate(flops.begin(), flops.end(), 0.0) / seconds;
#else
    return 0;
#endif
  }();
  return roof;
}

void report(benchmark::State& state, double bytes, double flops) {
  const double times = static_cast<double>(state.iterations());
  using C = benchmark::Counter;
  if (bytes > 0) {
    state.counters["GB/s"] = C(bytes * times * 1e-9, C::kIsRate);
    state.counters["of_read"] = C(bytes * times / read_roof(), C::kIsRate);
  }
  if (flops > 0) {
    state.counters["GFLOP/s"] = C(flops * times * 1e-9, C::kIsRate);
    state.counters["of_peak"] = C(flop_roof() > 0 ? flops * times / flop_roof() : 0, C::kIsRate);
  }
}

std::vector<float> activations(int64_t n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(random);
  return x;
}

/// Arguments: rows, n, k, silu. Weights move on each time, so that they come from memory as in a model.
void bench_matmul(benchmark::State& state) {
  const int64_t rows = state.range(0), n = state.range(1), k = state.range(2);
  const bool silu = state.range(3) != 0;
  const auto x = activations(rows * k);
  std::vector<float> out(static_cast<size_t>(rows * n));
  const int64_t copies = static_cast<int64_t>(weights().size()) / (n * k);
  int64_t copy = 0;
  for (auto _ : state) {
    const Weight w{weights().data() + copy++ % copies * n * k, DType::bf16, n, k};
    const Matrix<const float> in{x.data(), rows, k, k};
    if (silu) {
      ops().gate_up_silu(in, w, nullptr, {out.data(), rows, n / 2, n / 2});
    } else {
      ops().matmul(in, w, nullptr, {out.data(), rows, n, n});
    }
  }
  report(state, rows < 64 ? 2.0 * static_cast<double>(n * k) : 0, 2.0 * static_cast<double>(rows * n * k));
}

void shapes(benchmark::internal::Benchmark* bench) {
  for (const int64_t rows : {1, 4, 7, 8, 30, 64, 512}) {
    bench->Args({rows, 960, 576, 0});
    bench->Args({rows, 576, 576, 0});
    bench->Args({rows, 3072, 576, 1});
    bench->Args({rows, 576, 1536, 0});
    if (rows < 64) bench->Args({rows, 49152, 576, 0});
  }
}
BENCHMARK(bench_matmul)
    ->ArgNames({"rows", "n", "k", "silu"})
    ->Apply(shapes)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// One sequence's KV pages of one layer, and queries.
struct Attention {
  static constexpr int kHeads = 9, kKvHeads = 3, kHeadDim = 64;
  int64_t rows, position;
  std::vector<int32_t> numbers;
  std::vector<float> q, out;
  KvLayer kv;
  AttentionSpan span;
  Attention(int64_t n_rows, int64_t at, int64_t layers)
      : rows(n_rows),
        position(at),
        q(activations(n_rows * (kHeads + 2 * kKvHeads) * kHeadDim)),
        out(static_cast<size_t>(n_rows * kHeads * kHeadDim)) {
    const int64_t n_pages = (at + n_rows + kPageTokens - 1) / kPageTokens;
    const int64_t elements = 2 * kKvHeads * kPageTokens * kHeadDim;
    static uint16_t* const pages = huge<uint16_t>(size_t{64} << 20);  // for the largest: 2048 tokens of 30 layers
    numbers.resize(static_cast<size_t>(n_pages));
    std::iota(numbers.begin(), numbers.end(), 0);
    kv = {reinterpret_cast<std::byte*>(pages), static_cast<uint64_t>(elements * layers * 2), KvKind::bf16, kKvHeads,
          kHeadDim};
    span = {0, n_rows, at, numbers.data()};
  }
  Matrix<float> qkv() {
    return {q.data(), rows, (kHeads + 2 * kKvHeads) * kHeadDim, (kHeads + 2 * kKvHeads) * kHeadDim};
  }
};

/// Arguments: rows, position of the first.
void bench_attend(benchmark::State& state) {
  constexpr int64_t kLayers = 30;
  Attention a(state.range(0), state.range(1), kLayers);
  const int64_t width = Attention::kHeads * Attention::kHeadDim;
  const KvLayer first = a.kv;
  int64_t layer = 0;
  for (auto _ : state) {
    a.kv.data = first.data + layer++ % kLayers * 2 * 2 * Attention::kKvHeads * kPageTokens * Attention::kHeadDim;
    const Matrix<float> q = a.qkv();
    ops().attend({q.data, q.rows, q.cols, q.stride}, Attention::kHeads, {&a.span, 1}, a.kv,
                 {a.out.data(), a.rows, width, width});
  }
  const double keys =
      static_cast<double>(a.position) + (static_cast<double>(a.rows) + 1) / 2;  // that a row sees, on average
  const double bytes = static_cast<double>(a.position + a.rows) * 2 * 2 * Attention::kKvHeads * Attention::kHeadDim;
  report(state, a.rows == 1 ? bytes : 0, 4.0 * static_cast<double>(a.rows * width) * keys);
}
BENCHMARK(bench_attend)
    ->ArgNames({"rows", "position"})
    ->Args({1, 30})
    ->Args({1, 511})
    ->Args({1, 2047})
    ->Args({30, 0})
    ->Args({512, 0})
    ->Args({512, 1536})
    ->Args({2048, 0})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

void bench_rms_norm(benchmark::State& state) {
  const int64_t rows = state.range(0), n = 576;
  const auto x = activations(rows * n);
  std::vector<float> out(x.size());
  const Weight w{weights().data(), DType::bf16, 1, n};
  for (auto _ : state) ops().rms_norm({x.data(), rows, n, n}, w, 1e-5f, {out.data(), rows, n, n});
}
BENCHMARK(bench_rms_norm)->Arg(1)->Arg(512)->UseRealTime()->Unit(benchmark::kMicrosecond);

void bench_rope_and_store(benchmark::State& state) {
  Attention a(state.range(0), 0, 1);
  std::vector<double> frequencies(Attention::kHeadDim / 2);
  for (size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] = std::pow(1e5, -2.0 * static_cast<double>(i) / Attention::kHeadDim);
  for (auto _ : state) {
    ops().rope_and_store(a.qkv(), Attention::kHeads, nullptr, nullptr, 0, frequencies, {&a.span, 1}, a.kv);
  }
}
BENCHMARK(bench_rope_and_store)->Arg(1)->Arg(512)->UseRealTime()->Unit(benchmark::kMicrosecond);

void bench_barrier(benchmark::State& state) {
  for (auto _ : state) pool().run([](int) {});
}
BENCHMARK(bench_barrier)->UseRealTime()->Unit(benchmark::kMicrosecond);

/// The weights of one token of SmolLM2-135M, in the order of a forward pass, products only; argument: rows.
void bench_token(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const auto x = activations(rows * 3072);
  std::vector<float> out(static_cast<size_t>(rows * 49152));
  constexpr int64_t kLayerWeights = 960 * 576 + 576 * 576 + 3072 * 576 + 576 * 1536;
  const auto in = [&](int64_t k) { return Matrix<const float>{x.data(), rows, k, k}; };
  const auto to = [&](int64_t n) { return Matrix<float>{out.data(), rows, n, n}; };
  for (auto _ : state) {
    const uint16_t* w = weights().data();
    for (int layer = 0; layer < 30; ++layer) {
      const uint16_t* at = w + layer * kLayerWeights;
      ops().matmul(in(576), {at, DType::bf16, 960, 576}, nullptr, to(960));
      ops().matmul(in(576), {at += 960 * 576, DType::bf16, 576, 576}, nullptr, to(576));
      ops().gate_up_silu(in(576), {at += 576 * 576, DType::bf16, 3072, 576}, nullptr, to(1536));
      ops().matmul(in(1536), {at += 3072 * 576, DType::bf16, 576, 1536}, nullptr, to(576));
    }
    const Matrix<const float> last{x.data(), std::min<int64_t>(rows, 7), 576, 576};
    ops().matmul(last, {w + 30 * kLayerWeights, DType::bf16, 49152, 576}, nullptr,
                 {out.data(), last.rows, 49152, 49152});
  }
  const double flops = 2.0 * static_cast<double>(rows) * 30 * static_cast<double>(kLayerWeights);
  report(state, rows < 64 ? 2.0 * (30.0 * static_cast<double>(kLayerWeights) + 49152.0 * 576) : 0, flops);
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(rows * state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK(bench_token)
    ->Arg(1)
    ->Arg(2)
    ->Arg(4)
    ->Arg(7)
    ->Arg(8)
    ->Arg(30)
    ->Arg(64)
    ->Arg(512)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace firstlight

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  benchmark::AddCustomContext("ops", std::string(firstlight::ops().name()));
  benchmark::AddCustomContext("read roof, GB/s", std::to_string(firstlight::read_roof() * 1e-9));
  benchmark::AddCustomContext("multiply-add roof, GFLOP/s", std::to_string(firstlight::flop_roof() * 1e-9));
  benchmark::RunSpecifiedBenchmarks();
}
