// SPDX-License-Identifier: Apache-2.0
// Products of 8 rows and more: blocks of 64 packed rows (in L2) against all rows of w, which streams past at about one
// byte a cycle, 48 columns at a time; the tile is then turned to row-major on its way out.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

constexpr int64_t kPanelColumns = 48;  // a multiple of both tile widths and of all lane counts

FIRSTLIGHT_INLINE bool dots_bf16(const Product& p) { return FIRSTLIGHT_BF16_DOT && p.w_is_bf16; }
FIRSTLIGHT_INLINE int64_t steps_of(const Product& p) { return dots_bf16(p) ? (p.k + 1) / 2 : p.k; }

inline int64_t packed_bytes(const Product& p) { return kBlockRows * steps_of(p) * 4; }

inline int64_t matmul_scratch_bytes(const Product& p) {
  const int64_t panels = 2 * kPanelColumns * kBlockRows * 4;
  return panels + (p.w_is_bf16 && !dots_bf16(p) ? kPanelColumns * p.k * 4 : 0);
}

inline void widen(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load(x + i));
  for (; i < n; ++i) out[i] = bf16_to_f32(x[i]);
}

inline void pack(const Product& p, int64_t block, void* packed) {
  const float* x = p.x + block * kBlockRows * p.x_stride;
  const int64_t rows = std::min(kBlockRows, p.rows - block * kBlockRows);
#if FIRSTLIGHT_BF16_DOT
  if (p.w_is_bf16) return pack_block<Bf16Step>(x, p.x_stride, rows, p.k, static_cast<uint32_t*>(packed));
#endif
  pack_block<F32Step>(x, p.x_stride, rows, p.k, static_cast<float*>(packed));
}

/// panel[c][row] = the product with w's row n0 + c, c < n.
template <class Step>
void panel_of(const Product& p, int64_t rows, const void* packed, int64_t n0, int64_t n, float* wide, float* panel) {
  constexpr int64_t kBytes = 4 / Step::kValues;
  const char* base = static_cast<const char*>(p.w) + n0 * p.k * kBytes;
  if (p.w_is_bf16 && Step::kValues == 1) {
    widen(static_cast<const uint16_t*>(p.w) + n0 * p.k, n * p.k, wide);
    base = reinterpret_cast<const char*>(wide);
  }
  // The last group of a panel fetches the next panel's first; the end of w may be passed: a prefetch cannot fault.
  const int64_t column_bytes = p.k * kBytes;
  const TileColumns columns{base, column_bytes, 4, n, rows <= 2 * kLanes ? 12 * column_bytes : 6 * column_bytes};
  const int64_t steps = (p.k + Step::kValues - 1) / Step::kValues;
  for (int64_t sub = 0; sub * kTileRows < rows; ++sub) {
    const int vectors = vectors_of(rows, sub);
    const auto* x = static_cast<const typename Step::Word*>(packed) + sub * kTileRows * steps;
    tile_columns<Step>(vectors, x, vectors * kLanes, columns, p.k / Step::kValues, p.k % Step::kValues != 0,
                       panel + sub * kTileRows, kBlockRows, nullptr);
  }
}

FIRSTLIGHT_INLINE void add_bias(const float* bias, int64_t n, float* panel) {
  for (int64_t c = 0; c < n; ++c) {
    for (int64_t r = 0; r < kBlockRows; r += kLanes)
      store(panel + c * kBlockRows + r, load(panel + c * kBlockRows + r) + bias[c]);
  }
}

inline void matmul(const Product& p, int64_t block, const void* packed, int64_t n_begin, int64_t n_end, void* scratch) {
  const int64_t row0 = block * kBlockRows, rows = std::min(kBlockRows, p.rows - row0);
  const bool silu_pair = p.epilogue == Epilogue::silu;
  float* panel = static_cast<float*>(scratch);
  float* up = panel + kPanelColumns * kBlockRows;
  float* wide = up + kPanelColumns * kBlockRows;
  for (int64_t n0 = n_begin; n0 < n_end; n0 += kPanelColumns) {
    const int64_t n = std::min(kPanelColumns, n_end - n0);
    for (int half = 0; half < (silu_pair ? 2 : 1); ++half) {
      float* to = half ? up : panel;
      const int64_t first = half * p.n + n0;
#if FIRSTLIGHT_BF16_DOT
      if (p.w_is_bf16) {
        panel_of<Bf16Step>(p, rows, packed, first, n, nullptr, to);
      } else {
        panel_of<F32Step>(p, rows, packed, first, n, wide, to);
      }
#else
      panel_of<F32Step>(p, rows, packed, first, n, wide, to);
#endif
      if (p.bias) add_bias(p.bias + first, n, to);
    }
    if (silu_pair) {
      for (int64_t i = 0; i < n * kBlockRows; i += kLanes) store(panel + i, silu(load(panel + i)) * load(up + i));
    }
    float* out = p.out + row0 * p.out_stride + n0;
    if (p.epilogue == Epilogue::add) {
      store_transposed<true>(panel, rows, n, out, p.out_stride);
    } else {
      store_transposed<false>(panel, rows, n, out, p.out_stride);
    }
  }
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
