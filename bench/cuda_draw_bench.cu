// SPDX-License-Identifier: Apache-2.0
// Draws from rows of 128,256 logits on a GPU, by filter, beside what they stand for: the rows' way to pinned host
// memory and draw_from() there, by one thread. Medians; logits are normal, spread as a model's are (top-p 0.95 keeps
// hundreds).
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "cuda_bench.cuh"
#include "firstlight/ops/draw_cuda.cuh"

namespace firstlight {
namespace {

constexpr int kVocab = 128'256, kMostRows = 32;

double median_us(int times, const std::function<void()>& fn) { return bench::median_seconds(times, fn) * 1e6; }

/// Microseconds of one of many launches behind one another.
double launch_us(float* logits, int n_rows, const cuda::DrawTables& tables, int* ids) {
  constexpr int kLaunches = 100;
  const auto all = [&] {
    for (int i = 0; i < kLaunches; ++i)
      cuda::draw_rows(logits, kVocab, n_rows, tables.draws(), tables.history(), ids, nullptr);
    cuda::check(cudaDeviceSynchronize(), "draw");
  };
  all();
  return median_us(9, all) / kLaunches;
}

void measure() {
  const size_t n = size_t{kVocab} * kMostRows;
  cuda::DeviceScratch logits, ids;
  cuda::PinnedScratch fetched;
  logits.reserve(n * 4, nullptr);
  ids.reserve(kMostRows * 4, nullptr);
  fetched.reserve(n * 4, nullptr);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> rows(n);
  for (float& x : rows) x = normal(random);
  std::vector<int> history(32'000);
  for (int& id : history) id = static_cast<int>(random() % kVocab);
  cuda::check(cudaMemcpy(logits.as<float>(), rows.data(), n * 4, cudaMemcpyHostToDevice), "send logits");
  struct Case {
    const char* name;
    SamplingOptions options;
  };
  for (const Case& c :
       {Case{"greedy", {}}, Case{"temperature 0.8", {.temperature = 0.8}},
        Case{"and top-k 50", {.temperature = 0.8, .top_k = 50}},
        Case{"and top-p 0.95", {.temperature = 0.8, .top_p = 0.95}},
        Case{"and both", {.temperature = 0.8, .top_k = 50, .top_p = 0.95}},
        Case{"and a penalty of 32,000 ids", {.temperature = 0.8, .top_p = 0.95, .repetition_penalty = 1.0001}}}) {
    for (const int n_rows : {1, 8, 32}) {
      const std::vector<Draw> draws(static_cast<size_t>(n_rows), {c.options, history, 3});
      cuda::DrawTables tables;
      tables.send(draws, nullptr);
      const double on_gpu = launch_us(logits.as<float>(), n_rows, tables, ids.as<int>());
      const double way = median_us(9, [&] {
        cuda::check(cudaMemcpy(fetched.as<float>(), logits.as<float>(),
                               size_t{kVocab} * 4 * static_cast<size_t>(n_rows), cudaMemcpyDeviceToHost),
                    "fetch logits");
      });
      const double on_cpu = median_us(3, [&] {
        for (int i = 0; i < n_rows; ++i) {
          const auto begin = rows.begin() + std::ptrdiff_t{i} * kVocab;
          std::vector<float> row(begin, begin + kVocab);
          draw_from(row, draws[static_cast<size_t>(i)]);
        }
      });
      std::printf("%-28s %2d rows: %6.1f us on the GPU; fetched %7.1f us, and then by one thread %8.0f us\n", c.name,
                  n_rows, on_gpu, way, on_cpu);
    }
  }
}

}  // namespace
}  // namespace firstlight

int main() { return firstlight::bench::run(firstlight::measure); }
