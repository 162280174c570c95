// SPDX-License-Identifier: Apache-2.0
// Random weights, keys, codes and activations on one GPU, and a model of Llama-3-8B's shapes.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <vector>

#include "cuda_pass.cuh"
#include "firstlight/ops/ops.h"
#include "firstlight/quant/turboquant.h"

namespace firstlight::bench {

/// Uniform in ±scale: as many bits as bf16 has, no zeros to compute quickly with.
__global__ static void fill_kernel(__nv_bfloat16* data, int64_t n, float scale) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    uint64_t h = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15ull;
    h = (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9ull;
    data[i] = __float2bfloat16_rn((static_cast<float>((h >> 40) & 0xffff) / 32768.0f - 1) * scale);
  }
}

inline void fill(const Buffer& memory, float scale) {
  fill_kernel<<<2048, 256>>>(reinterpret_cast<__nv_bfloat16*>(memory.data()), static_cast<int64_t>(memory.size() / 2),
                             scale);
  cuda::check(cudaDeviceSynchronize(), "fill memory");
}

inline Buffer random_memory(uint64_t bytes, float scale) {
  Buffer memory(kGpu, bytes);
  fill(memory, scale);
  return memory;
}

struct Memory {
  uint64_t kv_bytes = 9'000'000'000, exact_bytes = 256;
  Buffer weights = random_memory(17'000'000'000, 0.05f);
  Buffer kv = random_memory(kv_bytes, 1.0f);  ///< bf16 in ±1: as codes any bytes are, as scales these are numbers
  Buffer exact = random_memory(exact_bytes, 1.0f);
  Buffer rows = random_memory(2'000'000'000, 1.0f);
  uint64_t weight_at = 0, row_at = 0;
  Weight weight(int64_t rows_of, int64_t cols) {
    const uint64_t bytes = static_cast<uint64_t>(rows_of * cols * 2);
    if (weight_at + bytes > weights.size()) weight_at = 0;  // around: far more than L2 lies between
    const Weight w{weights.data() + weight_at, DType::bf16, rows_of, cols};
    weight_at += (bytes + 4095) / 4096 * 4096;
    return w;
  }
  Matrix<float> matrix(int64_t n, int64_t cols) {
    const Matrix<float> m{reinterpret_cast<float*>(rows.data() + row_at), n, cols, cols};
    row_at += static_cast<uint64_t>((n * cols * 4 + 255) / 256 * 256);
    return m;
  }
};

inline Matrix<const float> constant(Matrix<float> m) { return {m.data, m.rows, m.cols, m.stride}; }

struct KvShape {
  int n_heads, n_kv_heads, head_dim, n_layers;
  KvKind kind = KvKind::bf16;
  uint64_t page_bytes() const { return kv_page_bytes(kind, n_kv_heads, head_dim) * static_cast<unsigned>(n_layers); }
  uint64_t exact_page_bytes() const {
    return kv_page_bytes(KvKind::bf16, n_kv_heads, head_dim) * static_cast<unsigned>(n_layers);
  }
  KvLayer layer(const Memory& memory, int i) const {
    KvLayer kv{memory.kv.data() + page_bytes() / static_cast<unsigned>(n_layers) * static_cast<unsigned>(i),
               page_bytes(), kind, n_kv_heads, head_dim};
    if (!is_compressed(kind)) return kv;
    kv.exact = memory.exact.data() + exact_page_bytes() / static_cast<unsigned>(n_layers) * static_cast<unsigned>(i);
    kv.exact_stride = exact_page_bytes();
    static std::vector<turboquant::Signs> signs;  // of 64 heads, the same in all layers
    for (int s = static_cast<int>(signs.size()); s < 128; ++s)
      signs.push_back(turboquant::signs_of(1, 0, s / 2, s % 2 ? turboquant::Side::value : turboquant::Side::key));
    kv.signs = signs.data();
    return kv;
  }
  int64_t pages(const Memory& m) const { return static_cast<int64_t>(m.kv.size() / page_bytes()); }
};

/// A model of Llama-3-8B's shapes, called as a forward pass calls.
struct Model {
  static constexpr int kLayers = 32, kDim = 4096, kHidden = 14336, kVocab = 128256;
  static constexpr KvShape kKv{32, 8, 128, 32};
  KvShape kv = kKv;
  static constexpr double kLayerWeights = 32.0 * (6144 * 4096.0 + 4096 * 4096.0 + 3 * 4096 * 14336.0);
  struct Layer {
    Weight norm1, qkv, o, norm2, gate_up, down;
  };
  Memory& memory;
  std::vector<Layer> layers;
  Weight norm, head;
  std::vector<double> frequencies = std::vector<double>(64, 0.01);
  explicit Model(Memory& m) : memory(m) {
    memory.weight_at = 0;
    for (int i = 0; i < kLayers; ++i) {
      layers.push_back({memory.weight(1, kDim), memory.weight(6144, kDim), memory.weight(kDim, kDim),
                        memory.weight(1, kDim), memory.weight(2 * kHidden, kDim), memory.weight(kDim, kHidden)});
    }
    norm = memory.weight(1, kDim);
    head = memory.weight(kVocab, kDim);
  }
  void forward(Ops& ops, std::span<const int> ids, Pass& pass, std::vector<float>& logits, bool picks) {
    const int64_t n = static_cast<int64_t>(ids.size());
    memory.row_at = 0;
    Matrix<float> x = memory.matrix(n, kDim), normed = memory.matrix(n, kDim), qkv = memory.matrix(n, 6144),
                  hidden = memory.matrix(n, kHidden), heads = normed;
    ops.embed(ids, head, 0, x);
    for (int i = 0; i < kLayers; ++i) {
      const Layer& w = layers[static_cast<size_t>(i)];
      const bool last = i + 1 == kLayers;
      ops.rms_norm(constant(x), w.norm1, 1e-5f, normed);
      ops.matmul(constant(normed), w.qkv, nullptr, qkv);
      ops.rope_and_store(qkv, 32, nullptr, nullptr, 1e-5f, frequencies, pass.spans, kv.layer(memory, i));
      if (last && pass.wanted.empty()) return;
      ops.attend({qkv.data, n, kDim, 6144}, 32, last ? pass.wanted : pass.spans, kv.layer(memory, i), heads);
      if (last) {
        ops.keep_rows(pass.wanted, x);
        ops.keep_rows(pass.wanted, heads);
        normed.rows = hidden.rows = x.rows;
      }
      ops.matmul_add(constant(heads), w.o, nullptr, x);
      ops.rms_norm(constant(x), w.norm2, 1e-5f, normed);
      ops.gate_up_silu(constant(normed), w.gate_up, nullptr, hidden);
      ops.matmul_add(constant(hidden), w.down, nullptr, x);
    }
    ops.rms_norm(constant(x), norm, 1e-5f, normed);
    if (picks) {
      ops.likeliest(constant(normed), head, 0, pass.picked);
    } else {
      ops.logits(constant(normed), head, {logits.data(), x.rows, kVocab, 200000});
    }
  }
};

}  // namespace firstlight::bench
