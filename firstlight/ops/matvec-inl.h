// SPDX-License-Identifier: Apache-2.0
// Products of 1–7 rows: bound by reading w, so w is read once, in order, and widened to f32: with f32 activations the
// products of bf16 weights are exact. Each (row, column) is one chain of fused sums over k in kLanes lanes.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

/// Sums of kColumns rows of w against kRows rows of x, not yet summed over lanes: to[row][column].
template <class W, int kRows, int kColumns>
FIRSTLIGHT_INLINE void dot_rows(const float* x, int64_t x_stride, const W* w, int64_t k, VF (*to)[kLanes]) {
  VF sums[kColumns][kRows];
#pragma GCC unroll 2
  for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 7
    for (int r = 0; r < kRows; ++r) sums[c][r] = VF{};
  }
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    VF wide[kColumns];
    {  // the hardware follows one stream, not two, and rests at each page
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c) __builtin_prefetch(reinterpret_cast<const char*>(w + c * k + i) + 8192, 0, 2);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) wide[c] = load(w + c * k + i);
#pragma GCC unroll 7
    for (int r = 0; r < kRows; ++r) {
      VF xs = load(x + r * x_stride + i);
      if constexpr (kColumns > 1) keep(xs);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sums[c][r] = wide[c] * xs + sums[c][r];
    }
  }
  if (i < k) {
    for (int r = 0; r < kRows; ++r) {
      const VF xs = load_part(x + r * x_stride + i, k - i);
      for (int c = 0; c < kColumns; ++c) sums[c][r] = load_part(w + c * k + i, k - i) * xs + sums[c][r];
    }
  }
#pragma GCC unroll 7
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) to[r][c] = sums[c][r];
  }
}

/// kLanes columns at w (n of them exist): lane c of sums[row] is the product with column c.
template <class W, int kRows>
FIRSTLIGHT_INLINE void dot_lanes(const Product& p, const W* w, int64_t n, VF (&sums)[kRows]) {
  // One column at a time is one stream, which the hardware's prefetchers follow; from 4 rows on, loads of x would bound
  // it.
  constexpr int kColumns = kRows >= 4 && kRows * 2 <= (kLanes == 16 ? 24 : 12) ? 2 : 1;
  VF lanes[kRows][kLanes];
  int64_t c = 0;
  for (; c + kColumns <= n; c += kColumns) {
    VF to[kRows][kLanes];
    dot_rows<W, kRows, kColumns>(p.x, p.x_stride, w + c * p.k, p.k, to);
#pragma GCC unroll 7
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kColumns; ++i) lanes[r][c + i] = to[r][i];
    }
  }
  for (; c < n; ++c) {
    VF to[kRows][kLanes];
    dot_rows<W, kRows, 1>(p.x, p.x_stride, w + c * p.k, p.k, to);
    for (int r = 0; r < kRows; ++r) lanes[r][c] = to[r][0];
  }
  for (; c < kLanes; ++c) {
    for (int r = 0; r < kRows; ++r) lanes[r][c] = VF{};
  }
  for (int r = 0; r < kRows; ++r) sums[r] = sum_each(lanes[r]);
}

template <class W, int kRows>
void matvec_rows(const Product& p, int64_t n_begin, int64_t n_end) {
  const W* w = static_cast<const W*>(p.w);
  for (int64_t n0 = n_begin; n0 < n_end; n0 += kLanes) {
    const int64_t n = std::min<int64_t>(kLanes, n_end - n0);
    VF sums[kRows], up[kRows] = {};
    dot_lanes<W, kRows>(p, w + n0 * p.k, n, sums);
    if (p.epilogue == Epilogue::silu) dot_lanes<W, kRows>(p, w + (p.n + n0) * p.k, n, up);
    const VF bias = p.bias ? load_upto(p.bias + n0, n) : VF{};
    const VF up_bias = p.bias && p.epilogue == Epilogue::silu ? load_upto(p.bias + p.n + n0, n) : VF{};
    for (int r = 0; r < kRows; ++r) {
      float* out = p.out + r * p.out_stride + n0;
      VF v = sums[r] + bias;
      if (p.epilogue == Epilogue::silu) v = silu(v) * (up[r] + up_bias);
      if (p.epilogue == Epilogue::add) v = load_upto(out, n) + v;
      store_upto(out, v, n);
    }
  }
}

template <class W>
void matvec_of(const Product& p, int64_t n_begin, int64_t n_end) {
  switch (p.rows) {
    case 1:
      return matvec_rows<W, 1>(p, n_begin, n_end);
    case 2:
      return matvec_rows<W, 2>(p, n_begin, n_end);
    case 3:
      return matvec_rows<W, 3>(p, n_begin, n_end);
    case 4:
      return matvec_rows<W, 4>(p, n_begin, n_end);
    case 5:
      return matvec_rows<W, 5>(p, n_begin, n_end);
    case 6:
      return matvec_rows<W, 6>(p, n_begin, n_end);
    case 7:
      return matvec_rows<W, 7>(p, n_begin, n_end);
  }
}

inline void matvec(const Product& p, int64_t n_begin, int64_t n_end) {
  p.w_is_bf16 ? matvec_of<uint16_t>(p, n_begin, n_end) : matvec_of<float>(p, n_begin, n_end);
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
