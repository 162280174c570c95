// SPDX-License-Identifier: Apache-2.0
// For tests only: a batch of sequences over pages of codes, and attention over what these pages hold, in double and
// from the format's description.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "firstlight/ops/reference.h"
#include "firstlight/ops/reference_batch.h"
#include "firstlight/quant/turboquant.h"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight::reference {

/// Of a layer's key/value heads, key then value of each.
inline std::vector<turboquant::Signs> signs_of_heads(uint64_t seed, int layer, int n_kv_heads) {
  std::vector<turboquant::Signs> signs;
  for (int i = 0; i < 2 * n_kv_heads; ++i) {
    const auto side = i % 2 ? turboquant::Side::value : turboquant::Side::key;
    signs.push_back(turboquant::signs_of(seed, layer, i / 2, side));
  }
  return signs;
}

/// Πᵀ x from the definition: Hadamard matrix (-1)^popcount(i & j) / √d, then signs, from the last round to the first.
inline std::vector<double> unrotated(std::vector<double> x, const turboquant::Signs& signs) {
  const size_t d = x.size();
  for (int round = d == 64 ? 2 : 1; round >= 0; --round) {
    std::vector<double> next(d);
    for (size_t i = 0; i < d; ++i) {
      for (size_t j = 0; j < d; ++j) next[i] += (__builtin_popcountll(i & j) % 2 ? -x[j] : x[j]);
      next[i] /= std::sqrt(static_cast<double>(d));
      if (signs.bits[round][i / 64] >> (i % 64) & 1u) next[i] = -next[i];
    }
    x = next;
  }
  return x;
}

inline int level_of(int bits, uint32_t code) {
  static const std::vector<int> kMagnitudes[] = {{}, {}, {6, 20}, {7, 22, 39, 62}, {3, 9, 15, 21, 28, 36, 46, 60}};
  if (bits == 8) return static_cast<int8_t>(code);
  const auto& table = kMagnitudes[bits];
  const int magnitude = table.at(code % table.size());
  return code < table.size() ? magnitude : -magnitude;
}

/// Keys and values of all visible positions, put into pages by rope_and_store with angles of zero.
struct CodeBatch {
  KvKind kind;
  int n_heads, n_kv_heads, head_dim;
  turboquant::PageShape shape;
  std::vector<turboquant::Signs> signs;
  std::vector<float> means;  ///< [k, v][n_kv_heads][head_dim], or none
  std::vector<std::vector<int32_t>> pages;
  std::vector<AttentionSpan> spans;
  std::vector<std::byte> codes, exact;
  uint64_t stride, exact_stride;
  Tensor q;
  int64_t n_rows = 0;

  KvLayer layer() {
    return {codes.data(), stride,       kind,
            n_kv_heads,   head_dim,     exact.data(),
            exact_stride, signs.data(), means.empty() ? nullptr : means.data()};
  }

  CodeBatch(const std::vector<Sequence>& sequences, KvKind of, int heads, int kv_heads, int d, uint32_t page_seed,
            Ops& ops, bool far = false, int64_t chunk = 1000, bool centred = false, bool fresh_exactly = false)
      : kind(of), n_heads(heads), n_kv_heads(kv_heads), head_dim(d), shape{d, kv_bits(of).key, kv_bits(of).value} {
    const auto n_pages = static_cast<size_t>(Batch::count_pages(sequences) + 3);
    stride = static_cast<uint64_t>(kv_heads * shape.bytes()) + 64;
    exact_stride = static_cast<uint64_t>(2 * kv_heads * kPageTokens * d * 2) + 256;
    codes.assign(stride * n_pages, std::byte{0xff});
    exact.assign(exact_stride * n_pages, std::byte{0xff});
    signs = signs_of_heads(7, 3, kv_heads);
    if (centred) means = random_tensor(2 * kv_heads, d, DType::f32, 8).f32;
    std::vector<int32_t> free(n_pages);
    std::iota(free.begin(), free.end(), 0);
    std::shuffle(free.begin(), free.end(), std::mt19937(page_seed));
    for (const Sequence& s : sequences) {
      pages.emplace_back();
      for (int64_t page = 0; page <= (s.position + s.n_rows - 1) / kPageTokens; ++page)
        pages.back().push_back(free.back()), free.pop_back();
      spans.push_back({n_rows, s.n_rows, s.position, nullptr});
      if (fresh_exactly) spans.back().exact_from = std::max<int64_t>(0, s.position / kPageTokens + 1 - kExactTail);
      n_rows += s.n_rows;
    }
    q = random_tensor(n_rows, (heads + 2 * kv_heads) * d, DType::f32, 6);
    if (far) {
      for (int64_t i = 0; i < n_rows * q.cols; ++i) q.f32[static_cast<size_t>(i)] += i % d == 1 ? 8 : 0;
    }
    for (size_t s = 0; s < spans.size(); ++s) {
      spans[s].pages = spans[s].exact = pages[s].data();  // each page has an exact one of its number
      fill(ops, spans[s], sequences[s].position + sequences[s].n_rows, far, chunk);
    }
  }

  void fill(Ops& ops, const AttentionSpan& span, int64_t n_keys, bool far, int64_t chunk) {
    const int64_t width = (n_heads + 2 * n_kv_heads) * head_dim, last = (n_keys - 1) / kPageTokens;
    Tensor all = random_tensor(n_keys, width, DType::f32, static_cast<uint32_t>(100 + n_keys));
    for (int64_t t = 0; far && t < n_keys; ++t) {
      if (!is_exact(t / kPageTokens, last)) continue;
      for (int h = n_heads; h < n_heads + n_kv_heads; ++h)
        all.f32[static_cast<size_t>(t * width + h * head_dim + 1)] = -99;
    }
    const std::vector<double> no_angles(static_cast<size_t>(head_dim / 2), 0.0);
    for (int64_t begin = 0; begin < n_keys; begin += chunk) {
      const int64_t n = std::min(chunk, n_keys - begin);
      const AttentionSpan part{0, n, begin, span.pages, span.exact};
      ops.rope_and_store({all.f32.data() + begin * width, n, width, width}, n_heads, nullptr, nullptr, 1e-5f, no_angles,
                         {&part, 1}, layer());
    }
    for (int64_t page = 0; page <= last; ++page) {  // what no row may read: made not a number
      bool read = false;
      for (int64_t row = 0; row < span.n_rows; ++row)
        read = read || is_exact(page, (span.position + row) / kPageTokens) || page >= span.exact_from;
      const auto number = static_cast<uint64_t>(span.pages[page]);
      if (!read)
        std::fill_n(exact.begin() + static_cast<int64_t>(number * exact_stride), exact_stride, std::byte{0xff});
      if (page == 0) std::fill_n(codes.begin() + static_cast<int64_t>(number * stride), stride, std::byte{0xff});
    }
  }

  std::vector<float> attend(Ops& ops) {
    Tensor out = unwritten(n_rows, int64_t{n_heads} * head_dim);
    ops.attend(q.view(), n_heads, spans, layer(), out.matrix());
    return out.f32;
  }

  static bool reads_exactly(const AttentionSpan& span, int64_t page, int64_t last) {
    return is_exact(page, last) || page >= span.exact_from;
  }
  /// A key (side 0) or value (1) as the pages of a row in page `last` have it.
  const std::vector<double>& stored(const AttentionSpan& span, int64_t last, int side, int kv_head, int64_t t) {
    auto& known = known_[{span.pages[t / kPageTokens] * kPageTokens + t % kPageTokens, 2 * kv_head + side,
                          reads_exactly(span, t / kPageTokens, last)}];
    if (known.empty()) known = read(span, last, side, kv_head, t);
    return known;
  }
  std::vector<double> read(const AttentionSpan& span, int64_t last, int side, int kv_head, int64_t t) {
    std::vector<double> x(static_cast<size_t>(head_dim));
    const int64_t page = t / kPageTokens, slot = t % kPageTokens;
    if (reads_exactly(span, page, last)) {
      const std::byte* at = exact.data() + static_cast<uint64_t>(span.exact[page]) * exact_stride +
                            ((int64_t{side} * n_kv_heads + kv_head) * kPageTokens + slot) * head_dim * 2;
      for (size_t i = 0; i < x.size(); ++i) {
        uint16_t half;
        std::memcpy(&half, at + 2 * i, 2);
        x[i] = bf16_to_f32(half);
      }
      return x;
    }
    const uint8_t* at = reinterpret_cast<const uint8_t*>(codes.data()) +
                        static_cast<uint64_t>(span.pages[page]) * stride + int64_t{kv_head} * shape.bytes();
    const uint8_t* scale = at + (side ? shape.value_scales_at() : shape.key_scales_at()) + 2 * slot;
    const double worth = f16_to_f32(static_cast<uint16_t>(scale[0] | scale[1] << 8)) / 64.0;
    for (int i = 0; i < head_dim; ++i) {
      const uint32_t code = side ? turboquant::value_code(at + shape.values_at() + slot / 4 * shape.quad_bytes(),
                                                          head_dim, shape.value_bits, static_cast<int>(slot % 4), i)
                                 : turboquant::key_code(at + slot * shape.key_bytes(), head_dim, shape.key_bits, i);
      x[static_cast<size_t>(i)] = worth * level_of(side ? shape.value_bits : shape.key_bits, code);
    }
    return unrotated(x, signs[static_cast<size_t>(2 * kv_head + side)]);
  }

  /// Softmax over the visible keys, in double; `rounded`: q as bf16 where it meets an exact page.
  std::vector<double> attended(const AttentionSpan& span, int64_t row, int head, bool rounded) {
    const int64_t n_keys = span.position + row + 1, last = (n_keys - 1) / kPageTokens;
    const int kv_head = head / (n_heads / n_kv_heads);
    std::vector<double> p(static_cast<size_t>(n_keys)), out(static_cast<size_t>(head_dim));
    for (int64_t t = 0; t < n_keys; ++t) {
      const std::vector<double>& key = stored(span, last, 0, kv_head, t);
      for (int i = 0; i < head_dim; ++i) {
        double x = q.at(span.row_begin + row, int64_t{head} * head_dim + i);
        if (rounded && reads_exactly(span, t / kPageTokens, last)) x = bf16_to_f32(f32_to_bf16(static_cast<float>(x)));
        p[static_cast<size_t>(t)] += x * key[static_cast<size_t>(i)] / std::sqrt(static_cast<double>(head_dim));
      }
    }
    const double top = *std::max_element(p.begin(), p.end());
    double total = 0;
    for (double& each : p) total += each = std::exp(each - top);
    for (int64_t t = 0; t < n_keys; ++t) {
      const std::vector<double>& value = stored(span, last, 1, kv_head, t);
      for (size_t i = 0; i < out.size(); ++i) out[i] += p[static_cast<size_t>(t)] / total * value[i];
    }
    const auto mean = static_cast<size_t>((n_kv_heads + kv_head) * head_dim);
    for (size_t i = 0; !means.empty() && i < out.size(); ++i) out[i] += static_cast<double>(means[mean + i]);
    return out;
  }

 private:
  std::map<std::tuple<int64_t, int, bool>, std::vector<double>> known_;
};

}  // namespace firstlight::reference
