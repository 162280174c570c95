// SPDX-License-Identifier: Apache-2.0
// The CUDA back end at Llama-3-8B's and SmolLM2-135M's shapes, on random data, beside the plain read rate that this run
// measures first, and cuBLASLt's at 8192³; and whole steps of a model of 8B shapes. Passes of single rows are replays.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string_view>
#include <vector>

#include "cuda_model.cuh"
#include "firstlight/device/buffer.h"
#include "firstlight/device/cuda.h"
#include "firstlight/ops/cublaslt_cuda.cuh"
#include "firstlight/ops/cuda_ops.h"
#include "firstlight/ops/product_cuda.cuh"

namespace firstlight {
namespace {

using namespace bench;
double plain_rate = 0, product_rate = 0;  // GB/s, TFLOP/s

void measure_roofs(Memory& memory) {
  plain_rate = bench::plain_read_rate(memory.weights, 8'000'000'000);
  std::printf("plain read: %.0f GB/s\n", plain_rate);
}

/// Products of few rows at the shapes of models' layers: own kernels (SiLU's with x rounded each time, in a kernel of
/// its own), and cuBLASLt's product alone.
void few_rows(Memory& memory, cuda::CublasLt& lt, cudaStream_t stream) {
  struct Shape {
    const char* name;
    int64_t n, k;
    cuda::Join join;
  };
  using enum cuda::Join;
  for (const Shape& shape : {Shape{"8B qkv", 6144, 4096, store},
                             {"8B o", 4096, 4096, add},
                             {"8B gate_up", 28672, 4096, silu},
                             {"8B down", 4096, 14336, add},
                             {"8B head", 128256, 4096, store},
                             {"1B qkv", 3072, 2048, store},
                             {"1B o", 2048, 2048, add},
                             {"1B gate_up", 16384, 2048, silu},
                             {"1B down", 2048, 8192, add},
                             {"SmolLM2 gate_up", 3072, 576, silu},
                             {"SmolLM2 down", 576, 1536, add}}) {
    const double bytes = static_cast<double>(shape.n * shape.k * 2);
    const int launches = static_cast<int>(std::clamp(1e10 / bytes, 20.0, 400.0));
    for (const int64_t rows : {1, 8, 16, 32, 64}) {
      memory.row_at = 0;
      const Matrix<float> x = memory.matrix(rows, shape.k), y = memory.matrix(rows, shape.n),
                          out = shape.join == silu ? Matrix<float>{y.data, rows, shape.n / 2, shape.n / 2} : y;
      Pass pass(static_cast<int>(rows), 1, 0, 64);
      // A recorded shape is known by its rows alone: another bench's recording must not be taken for this one's.
      const auto fresh = make_cuda_ops(kGpu);
      const double own = pass.seconds(*fresh, [&](auto) {
        for (int i = 0; i < launches; ++i) {
          const Weight w = memory.weight(shape.n, shape.k);
          if (shape.join == silu) fresh->gate_up_silu(constant(x), w, nullptr, out);
          if (shape.join == add) fresh->matmul_add(constant(x), w, nullptr, out);
          if (shape.join == store) fresh->matmul(constant(x), w, nullptr, out);
        }
      }) / launches;
      const auto product = [&](const void* w) {
        lt.multiply({x.data, shape.k, rows, w, shape.n, shape.k, y.data, shape.n, false}, stream);
      };
      double library = 0;
      if (lt.ready()) {
        product(memory.weights.data());
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capture");
        for (int i = 0; i < launches; ++i) product(memory.weight(shape.n, shape.k).data);
        cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
        cuda::check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
        library = median_seconds(7,
                                 [&] {
                                   cuda::check(cudaGraphLaunch(exec, stream), "replay");
                                   cuda::check(cudaStreamSynchronize(stream), "replay");
                                 }) /
                  launches;
        cudaGraphExecDestroy(exec);
        cudaGraphDestroy(graph);
      }
      std::printf("%-15s %6ld x %5ld, %2ld rows: own %7.2f us, %5.1f %% of plain read; cuBLASLt %7.2f us\n", shape.name,
                  shape.n, shape.k, rows, own * 1e6, bytes / own / 1e9 / plain_rate * 100, library * 1e6);
    }
  }
}

void attention(Memory& memory) {
  struct Case {
    KvShape shape;
    int n;
    int64_t context;
  };
  const KvShape llama{32, 8, 128, 32}, small{9, 3, 64, 30};
  for (const Case& c : {Case{llama, 1, 512},
                        {llama, 1, 4096},
                        {llama, 1, 32768},
                        {llama, 1, 65536},
                        {llama, 2, 32768},
                        {llama, 32, 512},
                        {small, 1, 2048},
                        {small, 1, 8192},
                        {small, 16, 8192}}) {
    memory.row_at = 0;
    const KvShape& k = c.shape;
    const Matrix<float> q = memory.matrix(c.n, (k.n_heads + 2 * k.n_kv_heads) * k.head_dim),
                        out = memory.matrix(c.n, k.n_heads * k.head_dim);
    Pass pass(c.n, 1, c.context - 1, k.pages(memory));
    const auto ops = make_cuda_ops(kGpu);
    const double bytes = static_cast<double>(c.n * c.context) * 2 * k.n_kv_heads * k.head_dim * 2;
    const int rounds = static_cast<int>(std::clamp(2e10 / (bytes * k.n_layers), 1.0, 20.0));
    const double s = pass.seconds(*ops, [&](auto) {
      for (int i = 0; i < rounds * k.n_layers; ++i)
        ops->attend(constant(q), k.n_heads, pass.spans, k.layer(memory, i % k.n_layers), out);
    }) / (rounds * k.n_layers);
    std::printf("decode attention %2d/%d heads of %3d, %2d x %5ld: %8.2f us %6.0f GB/s %5.1f %% of plain read\n",
                k.n_heads, k.n_kv_heads, k.head_dim, c.n, c.context, s * 1e6, bytes / s / 1e9,
                bytes / s / 1e9 / plain_rate * 100);
  }
  for (const Case& c : {Case{llama, 1, 2048}, {llama, 1, 8192}, {small, 1, 2048}}) {
    memory.row_at = 0;
    const KvShape& k = c.shape;
    const Matrix<float> q = memory.matrix(c.context, (k.n_heads + 2 * k.n_kv_heads) * k.head_dim),
                        out = memory.matrix(c.context, k.n_heads * k.head_dim);
    Pass pass(1, c.context, 0, k.pages(memory));
    const auto ops = make_cuda_ops(kGpu);
    const double s = pass.seconds(*ops, [&](auto) {
      for (int i = 0; i < k.n_layers; ++i) ops->attend(constant(q), k.n_heads, pass.spans, k.layer(memory, i), out);
    }) / k.n_layers;
    const double flops = 2.0 * static_cast<double>(c.context * c.context) * k.n_heads * k.head_dim;  // the visible half
    std::printf("prefill attention %2d/%d heads of %3d, %5ld rows: %8.2f us %6.1f TFLOP/s\n", k.n_heads, k.n_kv_heads,
                k.head_dim, c.context, s * 1e6, flops / s / 1e12);
  }
}

void many_rows(Ops& ops, Memory& memory, cuda::CublasLt& lt, cudaStream_t stream) {
  const int64_t n = 8192;
  const double seconds = median_seconds(9, [&] {
    lt.multiply({memory.rows.data(), n, n, memory.weights.data(), n, n,
                 reinterpret_cast<float*>(memory.rows.data() + 300'000'000 / 256 * 256), n, false},
                stream);
    cuda::check(cudaStreamSynchronize(stream), "product");
  });
  product_rate = 2.0 * n * n * n / seconds / 1e12;
  std::printf("cuBLASLt 8192^3: %.0f TFLOP/s\n", product_rate);
  for (const int64_t rows : {16, 32, 256, 2048}) {
    for (const auto& [w_rows, k] : {std::pair<int64_t, int64_t>{6144, 4096}, {28672, 4096}, {4096, 14336}}) {
      memory.row_at = 0;
      const Matrix<float> x = memory.matrix(rows, k), out = memory.matrix(rows, w_rows),
                          hidden = memory.matrix(rows, w_rows / 2);
      Pass pass(1, rows, 0, 64);
      const double s = pass.seconds(ops, [&, w_rows = w_rows, k = k](auto) {
        for (int i = 0; i < 20; ++i) {
          if (w_rows == 28672) {
            ops.gate_up_silu(constant(x), memory.weight(w_rows, k), nullptr, hidden);
          } else {
            ops.matmul(constant(x), memory.weight(w_rows, k), nullptr, out);
          }
        }
      }) / 20;
      const double flops = 2.0 * static_cast<double>(rows * w_rows * k);
      std::printf("matmul %4ld rows, %5ld x %5ld%s: %8.2f us %6.1f TFLOP/s %5.1f %%, %6.0f GB/s of weights\n", rows,
                  w_rows, k, w_rows == 28672 ? " silu" : "", s * 1e6, flops / s / 1e12,
                  flops / s / 1e12 / product_rate * 100, static_cast<double>(w_rows * k) * 2 / s / 1e9);
    }
  }
}

/// Steps of n sequences, with norms in the products and as kernels of their own.
void decode(Memory& memory) {
  Model model(memory);
  std::vector<float> logits;
  const double weight_bytes = 2.0 * (Model::kLayerWeights + 128256 * 4096.0);
  for (int i = 0; i < 18; ++i) {
    const int n = 1 << i / 3;
    const int64_t context = std::array{512, 4096, 32000}[static_cast<size_t>(i % 3)];
    if ((n > 1 && context > 4096) || (n > 8 && context > 512)) continue;
    for (const bool fold_norms : {true, false}) {
      Pass pass(n, 1, context - 1, Model::kKv.pages(memory));
      const auto ops = make_cuda_ops(kGpu, {.fold_norms = fold_norms});
      const double s = pass.seconds(
          *ops, [&](std::span<const int> ids) { model.forward(*ops, ids, pass, logits, true); }, true);
      const double bytes = weight_bytes + static_cast<double>(n * context) * 32 * 4096;
      std::printf("decode step 8B, %2d x %5ld, %s: %7.3f ms, %7.1f tokens/s, %5.1f %% of the read rate\n", n, context,
                  fold_norms ? "norms folded" : "norms apart ", s * 1e3, n / s, bytes / (plain_rate * 1e9) / s * 100);
    }
  }
}

/// Each kind of op of a step of n sequences alone, once a layer in one replay: where a step's time goes.
void parts(Memory& memory, int n, int64_t context) {
  const Model model(memory);
  Pass pass(n, 1, context - 1, Model::kKv.pages(memory));
  constexpr int kDim = Model::kDim, kHidden = Model::kHidden;
  memory.row_at = 0;
  const Matrix<float> x = memory.matrix(n, kDim), y = memory.matrix(n, kDim), qkv = memory.matrix(n, 6144),
                      hidden = memory.matrix(n, kHidden);
  double empty = 0;
  const auto part = [&](const char* name, int times, double bytes, const auto& op) {
    const auto ops = make_cuda_ops(kGpu, {.fold_norms = false});
    const double s = pass.seconds(
        *ops,
        [&](auto) {
          for (size_t i = 0; i < static_cast<size_t>(times); ++i)
            op(*ops, model.layers[i], Model::kKv.layer(memory, static_cast<int>(i)));
        },
        true);
    if (times == 0) empty = s;
    const double each = (s - empty) / std::max(times, 1);
    std::printf("%2d x %5ld, %-20s: %2d x %7.2f us, %5.1f %% of the read rate\n", n, context, name, times,
                (times ? each : s) * 1e6, times ? bytes / (plain_rate * 1e9) / each * 100 : 0);
  };
  using Layer = Model::Layer;
  part("begin and end", 0, 0, [](Ops&, const Layer&, const KvLayer&) {});
  part("norm", 32, 0, [&](Ops& ops, const Layer& w, auto) { ops.rms_norm(constant(x), w.norm1, 1e-5f, y); });
  part("qkv", 32, 2.0 * 6144 * kDim,
       [&](Ops& ops, const Layer& w, auto) { ops.matmul(constant(y), w.qkv, nullptr, qkv); });
  part("rope and store", 32, 0, [&](Ops& ops, const Layer&, const KvLayer& kv) {
    ops.rope_and_store(qkv, 32, nullptr, nullptr, 1e-5f, model.frequencies, pass.spans, kv);
  });
  part("attention", 32, 4096.0 * static_cast<double>(n * context), [&](Ops& ops, const Layer&, const KvLayer& kv) {
    ops.attend({qkv.data, n, kDim, 6144}, 32, pass.spans, kv, y);
  });
  part("o", 32, 2.0 * kDim * kDim,
       [&](Ops& ops, const Layer& w, auto) { ops.matmul_add(constant(y), w.o, nullptr, x); });
  part("x rounded, gate_up", 32, 4.0 * kHidden * kDim,
       [&](Ops& ops, const Layer& w, auto) { ops.gate_up_silu(constant(y), w.gate_up, nullptr, hidden); });
  part("down", 32, 2.0 * kHidden * kDim,
       [&](Ops& ops, const Layer& w, auto) { ops.matmul_add(constant(hidden), w.down, nullptr, x); });
  part("likeliest", 1, 2.0 * Model::kVocab * kDim,
       [&](Ops& ops, auto, auto) { ops.likeliest(constant(y), model.head, 0, pass.picked); });
}

void prompts(Memory& memory) {
  Model model(memory);
  std::vector<float> logits(64 * 200000);
  for (const int64_t rows : {512, 2048}) {
    Pass pass(1, rows, 0, Model::kKv.pages(memory));
    const auto ops = make_cuda_ops(kGpu);
    const auto step = [&](std::span<const int> ids) { model.forward(*ops, ids, pass, logits, true); };
    const double s = pass.seconds(*ops, step, true);
    const double flops = 2.0 * static_cast<double>(rows) * Model::kLayerWeights;
    std::printf("prompt 8B, %ld tokens: %7.2f ms, %.1f TFLOP/s in products alone, %.1f %% of cuBLASLt's 8192^3\n", rows,
                s * 1e3, flops / s / 1e12, flops / s / 1e12 / product_rate * 100);
  }
}

}  // namespace
}  // namespace firstlight

int main(int argc, char** argv) {
  using namespace firstlight;
  return bench::run([&] {
    const auto wanted = [&](std::string_view part) { return bench::wanted(argc, argv, part); };
    cuda::use(kGpu);
    Memory memory;
    const auto ops = make_cuda_ops(kGpu);
    cuda::CublasLt lt(0);
    if (!lt.ready()) std::printf("%s\n", lt.why().c_str());
    cudaStream_t stream = nullptr;
    cuda::check(cudaStreamCreate(&stream), "stream");
    std::puts(std::string(ops->name()).c_str());
    measure_roofs(memory);
    if (wanted("products")) few_rows(memory, lt, stream);
    if (wanted("attention")) attention(memory);
    if (wanted("matmul") || wanted("steps")) many_rows(*ops, memory, lt, stream);
    if (wanted("decode")) decode(memory);
    if (wanted("parts")) parts(memory, 32, 512);
    if (wanted("steps")) prompts(memory);
  });
}
