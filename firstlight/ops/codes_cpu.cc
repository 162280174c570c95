// SPDX-License-Identifier: Apache-2.0
// Between numbers and TurboQuant codes: keys and values into pages of codes, queries into integers.
#include <algorithm>
#include <array>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/ops/cpu_ops.h"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight {

namespace {

using turboquant::PageShape;

constexpr int kMaxDim = 256;

void put_scale(uint8_t* at, uint16_t scale) {
  at[0] = static_cast<uint8_t>(scale);
  at[1] = static_cast<uint8_t>(scale >> 8);
}

void put_key(const PageShape& shape, const uint8_t* codes, uint8_t* to) {
  if (shape.key_bits == 8) {
    std::copy_n(codes, shape.head_dim, to);
  } else if (shape.key_bits == 4) {
    for (int i = 0; i < shape.head_dim / 2; ++i) to[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  } else {
    for (int i = 0; i < shape.head_dim; ++i) turboquant::put_key_code(to, shape.head_dim, shape.key_bits, i, codes[i]);
  }
}

}  // namespace

/// The keys, then the values of one row, [2 n_kv_heads, head_dim], as codes.
void CpuOps::encode_row(const float* keys_and_values, int64_t position, const AttentionSpan& span, const KvLayer& kv) {
  const KvBits bits = kv_bits(kv.kind);
  const PageShape shape{kv.head_dim, bits.key, bits.value};
  const int slot = static_cast<int>(position % kPageTokens), quad = slot / turboquant::kQuad;
  std::byte* page = kv.data + static_cast<uint64_t>(span.pages[position / kPageTokens]) * kv.page_stride;
  std::array<uint8_t, kMaxDim> codes;
  for (int i = 0; i < 2 * kv.n_kv_heads; ++i) {
    const int head = i % kv.n_kv_heads;
    const bool is_key = i < kv.n_kv_heads;
    uint8_t* at = reinterpret_cast<uint8_t*>(page) + int64_t{head} * shape.bytes();
    uint16_t scale;
    if (!codec_->encode(kv.head_dim, is_key ? bits.key : bits.value, kv.signs[2 * head + (is_key ? 0 : 1)],
                        keys_and_values + int64_t{i} * kv.head_dim, codes.data(), &scale)) {
      throw Error(ErrorKind::bad_input, str("position ", position, ": the ", is_key ? "key" : "value", " of head ",
                                            head, " is not finite, so it has no ", to_string(kv.kind), " codes"));
    }
    if (is_key) {
      put_key(shape, codes.data(), at + slot * shape.key_bytes());
      put_scale(at + shape.key_scales_at() + 2 * slot, scale);
      continue;
    }
    uint8_t* values = at + shape.values_at() + quad * shape.quad_bytes();
    for (int c = 0; c < kv.head_dim; ++c) {
      turboquant::put_value_code(values, kv.head_dim, bits.value, slot % turboquant::kQuad, c,
                                 codes[static_cast<size_t>(c)]);
    }
    put_scale(at + shape.value_scales_at() + 2 * slot, scale);
  }
}

/// Rotates the queries that meet codes and makes integers of them, in the order of expanded keys.
void CpuOps::encode_queries(Matrix<const float> q, int n_heads, std::span<const AttentionSpan> spans, const KvLayer& kv,
                            std::vector<AttentionJob>& jobs) {
  const int64_t d = kv.head_dim, width = n_heads * d;
  const bool evens_first = kv_bits(kv.kind).key == 4;
  int16_t* integers = code_q_.reserve<int16_t>(q.rows * width);
  float* units = code_unit_.reserve<float>(q.rows * n_heads);
  const int group = n_heads / kv.n_kv_heads;
  for (size_t s = 0; s < spans.size(); ++s) {
    const AttentionSpan& span = spans[s];
    AttentionJob& job = jobs[s];
    job.code_q = integers + span.row_begin * width;
    job.code_unit = units + span.row_begin * n_heads;
    job.n_heads = n_heads;
    job.codec = codec_;
    const int64_t first = std::max<int64_t>(0, (kExactTail + 1) * kPageTokens - span.position);  // row that meets codes
    constexpr int64_t kRows = 4;
    if (first >= span.n_rows) continue;
    share((span.n_rows - first + kRows - 1) / kRows, span.n_rows - first <= kRows, [&](int64_t piece, int) {
      std::array<int16_t, kMaxDim> natural;
      for (int64_t i = first + piece * kRows; i < std::min(span.n_rows, first + (piece + 1) * kRows); ++i) {
        const int64_t row = span.row_begin + i;
        for (int head = 0; head < n_heads; ++head) {
          units[row * n_heads + head] =
              codec_->fix_query(kv.head_dim, kv.signs[2 * (head / group)], q.row(row) + head * d, natural.data());
          int16_t* to = integers + row * width + head * d;
          for (int64_t c = 0; c < d; ++c) {
            to[evens_first ? c / 2 + c % 2 * (d / 2) : c] = natural[static_cast<size_t>(c)];
          }
        }
      }
    });
  }
}

}  // namespace firstlight
