// SPDX-License-Identifier: Apache-2.0
// The register tile of products of many rows, used by matmul and by attention. Vectors run along the rows of x: x is
// packed so that the values of consecutive rows at one step of k lie together, w is taken as it lies and broadcast. A
// step is one k in f32, two in bf16 (a pair is one dword: the operand of the dot product). Each sum is one chain over
// k.
#pragma once

namespace firstlight::FIRSTLIGHT_SIMD {

constexpr int kTileVectors = FIRSTLIGHT_TILE_VECTORS;  // vectors of rows in a tile
constexpr int64_t kTileRows = int64_t{kTileVectors} * kLanes;
template <int kVectors>
constexpr int kTileColumns = kVectors * 2 <= kTileVectors ? 12 : 6;  // as many sums as leave registers for x and w
constexpr int64_t kSubBlocks = kBlockRows / kTileRows;

/// Steps in f32: x and w are floats.
struct F32Step {
  using Word = float;
  static constexpr int kValues = 1;
  FIRSTLIGHT_INLINE static VF broadcast(const void* w) { return splat(*static_cast<const float*>(w)); }
  FIRSTLIGHT_INLINE static VF multiply_add(VF x, VF w, VF sum) { return x * w + sum; }
};

#if FIRSTLIGHT_BF16_DOT
/// Steps of two bf16.
struct Bf16Step {
  using Word = uint32_t;
  static constexpr int kValues = 2;
  FIRSTLIGHT_INLINE static VF broadcast(const void* w) {
    int32_t pair;
    std::memcpy(&pair, w, sizeof pair);
    return reinterpret_cast<VF>(_mm512_set1_epi32(pair));
  }
  FIRSTLIGHT_INLINE static VF multiply_add(VF x, VF w, VF sum) {
    return reinterpret_cast<VF>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w)));
  }
};
#endif

/// Columns of w for a tile: column c at step s is at base + c * column + s * step (bytes). `ahead`: what is fetched
/// into L2 meanwhile lies that many bytes behind what is read (0: nothing new); the hardware's prefetchers do not
/// follow this many short streams.
struct TileColumns {
  const char* base = nullptr;
  int64_t column = 0, step = 0;
  int64_t n = 0;
  int64_t ahead = 0;
};

/// Addresses of columns in threes from few registers: c * column = 3 * (c / 3) * column + (c % 3) * column.
template <int kColumns>
struct ColumnPointers {
  const char* third[(kColumns + 2) / 3];
  int64_t column;
  FIRSTLIGHT_INLINE ColumnPointers(const char* base, int64_t stride) : column(stride) {
#pragma GCC unroll 4
    for (int g = 0; g < (kColumns + 2) / 3; ++g) third[g] = base + 3 * g * stride;
  }
  FIRSTLIGHT_INLINE const char* operator()(int c) const { return third[c / 3] + c % 3 * column; }
  FIRSTLIGHT_INLINE void move(int64_t bytes) {
#pragma GCC unroll 4
    for (const char*& p : third) p += bytes;
  }
};

/// out[c * out_stride + row] = scale[row] * out[…] (scale null: 0) + Σ_s x[s * x_stride + row] · w(c, s) for all
/// kColumns columns. `odd`: after the last step one more bf16 of each column follows (k is odd).
template <class Step, int kVectors, int kColumns>
FIRSTLIGHT_INLINE void tile(const typename Step::Word* x, int64_t x_stride, const TileColumns& w, int64_t steps,
                            bool odd, float* out, int64_t out_stride, const float* scale) {
  ColumnPointers<kColumns> column(w.base, w.column);
  VF sums[kColumns][kVectors];
#pragma GCC unroll 12
  for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sums[c][v] = scale ? load(scale + v * kLanes) * load(out + c * out_stride + v * kLanes) : VF{};
    }
  }
  const auto step = [&]() __attribute__((always_inline)) {
    VF xs[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) xs[v] = load_raw(x + v * kLanes);
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) {
      const VF ws = Step::broadcast(column(c));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[c][v] = Step::multiply_add(xs[v], ws, sums[c][v]);
    }
    x += x_stride;
    column.move(w.step);
  };
  int64_t s = 0;
  constexpr int64_t kLineSteps = 16;  // steps of 4 bytes in a cache line
  for (; s + kLineSteps <= steps; s += kLineSteps) {
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) __builtin_prefetch(column(c) + w.ahead, 0, 2);
    for (int i = 0; i < kLineSteps; ++i) step();
  }
  for (; s < steps; ++s) step();
  if (Step::kValues == 2 && odd) {
#pragma GCC unroll 12
    for (int c = 0; c < kColumns; ++c) {
      typename Step::Word last{};
      std::memcpy(&last, column(c), 2);
      const VF ws = Step::broadcast(&last);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[c][v] = Step::multiply_add(load_raw(x + v * kLanes), ws, sums[c][v]);
    }
  }
#pragma GCC unroll 12
  for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(out + c * out_stride + v * kLanes, sums[c][v]);
  }
}

/// All of w's columns for kVectors vectors of rows.
template <class Step, int kVectors>
void tile_columns(const typename Step::Word* x, int64_t x_stride, const TileColumns& w, int64_t steps, bool odd,
                  float* out, int64_t out_stride, const float* scale) {
  constexpr int kColumns = kTileColumns<kVectors>;
  TileColumns some = w;
  int64_t c = 0;
  for (; c + kColumns <= w.n; c += kColumns) {
    some.base = w.base + c * w.column;
    tile<Step, kVectors, kColumns>(x, x_stride, some, steps, odd, out + c * out_stride, out_stride, scale);
  }
  some.ahead = 0;
  for (; c + 3 <= w.n; c += 3) {
    some.base = w.base + c * w.column;
    tile<Step, kVectors, 3>(x, x_stride, some, steps, odd, out + c * out_stride, out_stride, scale);
  }
  for (; c < w.n; ++c) {
    some.base = w.base + c * w.column;
    tile<Step, kVectors, 1>(x, x_stride, some, steps, odd, out + c * out_stride, out_stride, scale);
  }
}

template <class Step>
FIRSTLIGHT_INLINE void tile_columns(int vectors, const typename Step::Word* x, int64_t x_stride, const TileColumns& w,
                                    int64_t steps, bool odd, float* out, int64_t out_stride, const float* scale) {
  switch (vectors) {
    case 1:
      return tile_columns<Step, 1>(x, x_stride, w, steps, odd, out, out_stride, scale);
    case 2:
      return tile_columns<Step, 2>(x, x_stride, w, steps, odd, out, out_stride, scale);
    case 3:
      if constexpr (kTileVectors > 2) return tile_columns<Step, 3>(x, x_stride, w, steps, odd, out, out_stride, scale);
      break;
    case 4:
      if constexpr (kTileVectors > 2) return tile_columns<Step, 4>(x, x_stride, w, steps, odd, out, out_stride, scale);
      break;
  }
}

/// Vectors of rows that sub-block s of a block of `rows` rows has: kTileVectors but for the last.
FIRSTLIGHT_INLINE int vectors_of(int64_t rows, int64_t sub_block) {
  const int64_t left = rows - sub_block * kTileRows;
  return static_cast<int>(std::min<int64_t>(kTileVectors, (left + kLanes - 1) / kLanes));
}

/// kLanes steps of one row; `left` values of it exist (kWhole: enough).
template <class Step, bool kWhole>
FIRSTLIGHT_INLINE VF steps_of_row(const float* from, int64_t left) {
#if FIRSTLIGHT_BF16_DOT
  if constexpr (Step::kValues == 2) {
    VF low, high;
    if constexpr (kWhole) {
      low = load(from), high = load(from + kLanes);
    } else {
      low = load_upto(from, left), high = left > kLanes ? load_upto(from + kLanes, left - kLanes) : VF{};
    }
    return reinterpret_cast<VF>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
  }
#endif
  if constexpr (kWhole) return load(from);
  return load_upto(from, left);
}

/// Packs `rows` ≤ 64 rows of x, k values each: sub-block after sub-block (of kTileRows rows), [steps][vectors *
/// kLanes]; rows and values beyond the end are zeros. A sub-block begins at sub_block * kTileRows * steps words.
template <class Step>
void pack_block(const float* x, int64_t x_stride, int64_t rows, int64_t k, typename Step::Word* to) {
  constexpr int kValues = Step::kValues;
  const int64_t steps = (k + kValues - 1) / kValues;
  for (int64_t row0 = 0; row0 < rows; row0 += kLanes) {
    const int64_t sub = row0 / kTileRows, stride = int64_t{vectors_of(rows, sub)} * kLanes;
    typename Step::Word* at = to + sub * kTileRows * steps + row0 % kTileRows;
    for (int64_t s0 = 0; s0 < steps; s0 += kLanes) {  // kLanes rows by kLanes steps
      const float* from = x + row0 * x_stride + s0 * kValues;
      const int64_t left = k - s0 * kValues;
      VF square[kLanes];
      if (row0 + kLanes <= rows && left >= kLanes * kValues) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) square[r] = steps_of_row<Step, true>(from + r * x_stride, left);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) std::memcpy(at + (s0 + i) * stride, &square[i], sizeof(VF));
      } else {
        for (int r = 0; r < kLanes; ++r)
          square[r] = row0 + r < rows ? steps_of_row<Step, false>(from + r * x_stride, left) : VF{};
        transpose(square);
        for (int i = 0; i < std::min<int64_t>(kLanes, steps - s0); ++i)
          std::memcpy(at + (s0 + i) * stride, &square[i], sizeof(VF));
      }
    }
  }
}

/// out[row * out_stride + c] (+)= from[c * kBlockRows + row] for c < n, row < rows.
template <bool kAdd>
FIRSTLIGHT_INLINE void store_transposed(const float* from, int64_t rows, int64_t n, float* out, int64_t out_stride) {
  for (int64_t c0 = 0; c0 < n; c0 += kLanes) {
    const int64_t columns = std::min<int64_t>(kLanes, n - c0);
    for (int64_t r0 = 0; r0 < rows; r0 += kLanes) {
      VF square[kLanes];
      if (columns == kLanes && r0 + kLanes <= rows) {
#pragma GCC unroll 16
        for (int c = 0; c < kLanes; ++c) square[c] = load(from + (c0 + c) * kBlockRows + r0);
        transpose(square);
        float* to = out + r0 * out_stride + c0;
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r, to += out_stride) store(to, kAdd ? load(to) + square[r] : square[r]);
        continue;
      }
      for (int c = 0; c < kLanes; ++c) square[c] = c < columns ? load(from + (c0 + c) * kBlockRows + r0) : VF{};
      transpose(square);
      for (int r = 0; r < std::min<int64_t>(kLanes, rows - r0); ++r) {
        float* to = out + (r0 + r) * out_stride + c0;
        store_upto(to, kAdd ? load_upto(to, columns) + square[r] : square[r], columns);
      }
    }
  }
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
