// SPDX-License-Identifier: Apache-2.0
// Whole passes of a model of Llama-3-8B's shapes on one GPU, over bf16 pages and over codes, on random data: steps of
// many sequences, prompts in chunks with attention's share, and how many tokens really fit. Beside the plain read rate
// that this run measures first: `cuda_steps_bench [steps] [short] [warps] [prompts] [attention] [room]`, all without
// arguments.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_model.cuh"
#include "firstlight/base/error.h"
#include "firstlight/device/cuda.h"
#include "firstlight/kv/page_pool.h"
#include "firstlight/ops/cuda_ops.h"

namespace firstlight {
namespace {

using namespace bench;
constexpr uint64_t kKvBytes = 69'000'000'000, kExactBytes = 3'000'000'000;
constexpr double kWeightBytes = 2.0 * (Model::kLayerWeights + 128256 * 4096.0);
double plain_rate = 0;  // GB/s

const char* name_of(KvKind kind) { return to_string(kind).data(); }

/// Bytes of keys and values that a step reads of a sequence.
double read_bytes(const KvShape& kv, int64_t context) {
  const int64_t pages = (context + kPageTokens - 1) / kPageTokens;
  if (!is_compressed(kv.kind)) return static_cast<double>(context) / kPageTokens * static_cast<double>(kv.page_bytes());
  const int64_t exact = std::min<int64_t>(pages, kExactTail + 1);
  return static_cast<double>(exact) * static_cast<double>(kv.exact_page_bytes()) +
         static_cast<double>(pages - exact) * static_cast<double>(kv.page_bytes());
}

/// Seconds of a step of n sequences; 0 if their pages do not fit, which is said.
double step(Model& model, int n, int64_t context, bool any_gpu = false) {
  const KvShape& kv = model.kv;
  const double pages = static_cast<double>(n) * static_cast<double>((context + kPageTokens - 1) / kPageTokens);
  if (pages * static_cast<double>(kv.page_bytes()) > static_cast<double>(model.memory.kv.size())) {
    std::printf("step of %2d x %5ld, %-4s: its pages take %.1f GB\n", n, context, name_of(kv.kind),
                pages * static_cast<double>(kv.page_bytes()) / 1e9);
    return 0;
  }
  Pass pass(n, 1, context - 1, kv.pages(model.memory), is_compressed(kv.kind));
  std::vector<float> logits;
  const auto ops = make_cuda_ops(kGpu, {.load_cublaslt = false, .any_gpu = any_gpu});
  const auto forward = [&](std::span<const int> ids) { model.forward(*ops, ids, pass, logits, true); };
  double s = 0;
  try {
    s = pass.seconds(*ops, forward, true);
  } catch (const Error& error) {
    std::printf("step of %2d x %5ld, %-4s: %s\n", n, context, name_of(kv.kind), error.what());
    return 0;
  }
  const double bytes = kWeightBytes + n * read_bytes(kv, context);
  std::printf("step of %2d x %5ld, %-4s: %7.3f ms, %6.1f tokens/s, %5.1f %% of the read rate\n", n, context,
              name_of(kv.kind), s * 1e3, n / s, bytes / plain_rate / 1e7 / s);
  const bool is_number = std::all_of(pass.picked.begin(), pass.picked.end(), [](const auto& p) { return p.id >= 0; });
  if (!is_number) std::printf("  its logits are not numbers\n");
  std::fflush(stdout);
  return s;
}

/// What steps over one kind leave in pages need not be numbers to the other.
void compare(Model& model, std::span<const int> rows, std::span<const int64_t> contexts) {
  std::vector<double> tq4;
  model.kv.kind = KvKind::tq4;
  fill(model.memory.kv, 1.0f);
  for (const int64_t context : contexts) {
    for (const int n : rows) tq4.push_back(step(model, n, context));
  }
  model.kv.kind = KvKind::bf16;
  fill(model.memory.kv, 1.0f);
  auto of_tq4 = tq4.begin();
  for (const int64_t context : contexts) {
    for (const int n : rows) {
      const double bf16 = step(model, n, context);
      if (bf16 > 0 && *of_tq4 > 0) std::printf("  tq4 at %.3f of the speed of bf16\n", bf16 / *of_tq4);
      ++of_tq4;
    }
  }
}

/// Seconds of chunk after chunk of a prompt: `fn` computes one. Every `stride`th chunk stands for its neighbours.
double chunks(Model& model, int64_t n_tokens, int64_t chunk, int64_t stride, bool fast,
              const std::function<void(Ops&, std::span<const int>, Pass&)>& fn) {
  const auto ops = make_cuda_ops(kGpu);
  const auto seconds = [&](int64_t begin) {
    const int64_t rows = std::min(chunk, n_tokens - begin);
    Pass pass(1, rows, begin, model.kv.pages(model.memory), is_compressed(model.kv.kind));
    if (fast) pass.spans[0].exact_from = std::max<int64_t>(0, begin / kPageTokens + 1 - kExactTail);
    if (begin + rows < n_tokens) pass.wanted.clear();
    return pass.once(*ops, [&](auto ids) { fn(*ops, ids, pass); });
  };
  for (const int64_t begin : {int64_t{0}, (n_tokens - 1) / chunk * chunk}) seconds(begin);
  double sum = 0;
  const int64_t n_chunks = (n_tokens + chunk - 1) / chunk;
  for (int64_t first = 0; first < n_chunks; first += stride) {
    const int64_t stands_for = std::min(stride, n_chunks - first);
    sum += static_cast<double>(stands_for) * seconds((first + stands_for / 2) * chunk);
  }
  return sum;
}

/// Prompts in chunks, as `run` takes them (512) and larger.
void prompts(Model& model) {
  std::vector<float> logits;
  const auto whole = [&](Ops& ops, auto ids, Pass& pass) { model.forward(ops, ids, pass, logits, true); };
  const auto attention = [&](Ops& ops, auto ids, Pass& pass) {
    const int64_t n = static_cast<int64_t>(ids.size());
    model.memory.row_at = 0;
    const Matrix<float> qkv = model.memory.matrix(n, 6144), heads = model.memory.matrix(n, Model::kDim);
    for (int i = 0; i < Model::kLayers; ++i)
      ops.attend({qkv.data, n, Model::kDim, 6144}, 32, pass.spans, model.kv.layer(model.memory, i), heads);
  };
  for (const int64_t n : {2048, 8192, 32000}) {
    const double flops = 2.0 * static_cast<double>(n) * static_cast<double>(n) * Model::kDim * Model::kLayers;
    for (const int64_t chunk : {512, 2048}) {
      double bf16 = 0;
      for (const auto& [kind, fast] :
           {std::pair{KvKind::bf16, false}, std::pair{KvKind::tq4, false}, std::pair{KvKind::tq4, true}}) {
        model.kv.kind = kind;
        const double s = chunks(model, n, chunk, 1, fast, whole),
                     of_attention = chunks(model, n, chunk, std::max<int64_t>(1, n / chunk / 8), fast, attention);
        std::printf("prompt of %5ld by %4ld, %-4s%s: %8.1f ms, %6.0f tokens/s; attention alone %7.1f ms (%.0f TFLOP/s)",
                    n, chunk, name_of(kind), fast ? " fast" : "", s * 1e3, static_cast<double>(n) / s,
                    of_attention * 1e3, flops / of_attention / 1e12);
        if (kind == KvKind::bf16) bf16 = s;
        if (kind != KvKind::bf16) std::printf(", %.3f of the speed of bf16", bf16 / s);
        std::printf("\n");
        std::fflush(stdout);
      }
    }
  }
}

/// Attention of one prompt in one pass: the work that other libraries' figures are of.
void attention(Model& model) {
  for (const int64_t n : {8192, 32768}) {
    model.memory.row_at = 0;
    const Matrix<float> qkv = model.memory.matrix(n, 6144), heads = model.memory.matrix(n, Model::kDim);
    for (const KvKind kind : {KvKind::bf16, KvKind::tq4}) {
      model.kv.kind = kind;
      Pass pass(1, n, 0, model.kv.pages(model.memory), is_compressed(kind));
      pass.wanted.clear();
      const auto ops = make_cuda_ops(kGpu);
      if (is_compressed(kind) &&
          static_cast<uint64_t>(n / kPageTokens + 1) * model.kv.exact_page_bytes() > model.memory.exact.size())
        continue;  // all its pages would be exact ones at once
      const double s = pass.seconds(*ops, [&](auto) {
        for (int i = 0; i < 4; ++i)
          ops->attend({qkv.data, n, Model::kDim, 6144}, 32, pass.spans, model.kv.layer(model.memory, i), heads);
      }) / 4;
      std::printf("prefill attention of %5ld rows, 32/8 heads of 128, %-4s: %9.1f us, %5.1f TFLOP/s\n", n,
                  name_of(kind), s * 1e6, 2.0 * static_cast<double>(n) * static_cast<double>(n) * 4096 / s / 1e12);
      std::fflush(stdout);
    }
  }
}

/// Sequences of so many tokens that find room in `bytes`, taken from the pools as the engine takes them.
int64_t tokens_in(const KvShape& kv, uint64_t bytes, int64_t each) {
  const int64_t pages_each = (each + kPageTokens - 1) / kPageTokens;
  // Exact pages for as many sequences as the codes have room for.
  const uint64_t exact_each = is_compressed(kv.kind) ? (kExactTail + 2) * kv.exact_page_bytes() : 0;
  const auto n = static_cast<int64_t>(bytes / (static_cast<uint64_t>(pages_each) * kv.page_bytes() + exact_each));
  const int64_t n_exact = is_compressed(kv.kind) ? exact_pages_for(n, 512, n * pages_each) : 0;
  const auto exact_bytes = static_cast<uint64_t>(n_exact) * kv.exact_page_bytes();
  const Buffer exact(kGpu, std::max<uint64_t>(exact_bytes, 256));
  const Buffer codes(kGpu, bytes - exact_bytes);
  PagePool pool(static_cast<int64_t>(codes.size() / kv.page_bytes())), exact_pool(n_exact);
  std::vector<PageTable> tables;
  for (;;) {
    PageTable& table = tables.emplace_back(pool, is_compressed(kv.kind) ? &exact_pool : nullptr);
    if (!table.try_reserve(each)) break;
    if (!is_compressed(kv.kind)) continue;
    for (int64_t at = 0; at < each; at += 512) {  // as a prompt's chunks do
      table.hold_exact(at, std::min(each, at + 512));
      table.release_exact(std::min(each, at + 512));
    }
  }
  return static_cast<int64_t>(tables.size() - 1) * each;
}

void room() {
  for (const int64_t each : {32768, 131072}) {
    int64_t bf16 = 0;
    for (const KvKind kind : {KvKind::bf16, KvKind::tq8, KvKind::tq4}) {
      KvShape kv = Model::kKv;
      kv.kind = kind;
      const int64_t n = tokens_in(kv, 100'000'000'000, each);
      if (kind == KvKind::bf16) bf16 = n;
      std::printf("100 GB for sequences of %6ld tokens, %-4s: %9ld tokens in %3ld sequences, %.2f times bf16\n", each,
                  name_of(kind), n, n / each, static_cast<double>(n) / static_cast<double>(bf16));
    }
  }
}

}  // namespace
}  // namespace firstlight

int main(int argc, char** argv) {
  using namespace firstlight;
  return bench::run([&] {
    const auto wanted = [&](std::string_view part) { return bench::wanted(argc, argv, part); };
    cuda::use(kGpu);
    if (wanted("room")) room();
    Memory memory{.kv_bytes = kKvBytes, .exact_bytes = kExactBytes};
    Model model(memory);
    plain_rate = plain_read_rate(memory.weights, 8'000'000'000);
    std::printf("plain read: %.0f GB/s\n", plain_rate);
    if (wanted("steps")) {
      compare(model, std::array{1, 8, 16, 32}, std::array<int64_t, 1>{32000});
    }
    if (wanted("short")) {
      compare(model, std::array{1, 2, 4, 8, 16, 32, 64}, std::array<int64_t, 2>{512, 4096});
    }
    if (wanted("warps")) {
      std::puts("as on a GPU without Hopper's products of warpgroups:");
      for (const int n : {1, 8, 16, 32, 64}) step(model, n, 512, true);
    }
    if (wanted("attention")) attention(model);
    if (wanted("prompts")) prompts(model);
  });
}
