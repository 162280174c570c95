// SPDX-License-Identifier: Apache-2.0
// Vectors of FIRSTLIGHT_LANES floats in the compiler's vector extension: + - * are lane-wise, a * b + c is fused where
// the target can. Included once by each kernels_*.cc, inside its target region.
#pragma once

#define FIRSTLIGHT_INLINE inline __attribute__((always_inline))

namespace firstlight::FIRSTLIGHT_SIMD {

constexpr int kLanes = FIRSTLIGHT_LANES;
typedef float VF __attribute__((vector_size(4 * FIRSTLIGHT_LANES)));
typedef int32_t VI __attribute__((vector_size(4 * FIRSTLIGHT_LANES)));
typedef uint32_t VU __attribute__((vector_size(4 * FIRSTLIGHT_LANES)));
typedef uint16_t VH __attribute__((vector_size(2 * FIRSTLIGHT_LANES)));

FIRSTLIGHT_INLINE VF splat(float x) { return VF{} + x; }

template <class V = VF>
FIRSTLIGHT_INLINE V load_raw(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
FIRSTLIGHT_INLINE VU extend(VH h) {  // the compilers' own conversion goes through halves
#if FIRSTLIGHT_LANES == 16
  return reinterpret_cast<VU>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(h)));
#elif FIRSTLIGHT_LANES == 8
  return reinterpret_cast<VU>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(h)));
#else
  return __builtin_convertvector(h, VU);
#endif
}
FIRSTLIGHT_INLINE VF widen_raw(VH h) { return reinterpret_cast<VF>(extend(h) << 16); }
FIRSTLIGHT_INLINE VF load(const float* p) { return load_raw(p); }
FIRSTLIGHT_INLINE VF load(const uint16_t* p) { return widen_raw(load_raw<VH>(p)); }
FIRSTLIGHT_INLINE void store(float* p, VF v) { std::memcpy(p, &v, sizeof v); }

/// Keeps a value that several sums use in a register: the compiler would fold its load into each of them.
FIRSTLIGHT_INLINE void keep(VF& v) {
#if defined(__x86_64__) && FIRSTLIGHT_LANES == 16
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#else
  (void)v;
#endif
}

/// The first n < kLanes values, zeros after them.
template <class T>
FIRSTLIGHT_INLINE VF load_part(const T* p, int64_t n) {
  T part[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
FIRSTLIGHT_INLINE void store_part(float* p, VF v, int64_t n) {
  float part[kLanes];
  store(part, v);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}
/// load or load_part: n ≥ 1 values remain.
template <class T>
FIRSTLIGHT_INLINE VF load_upto(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_part(p, n);
}
FIRSTLIGHT_INLINE void store_upto(float* p, VF v, int64_t n) { n >= kLanes ? store(p, v) : store_part(p, v, n); }

FIRSTLIGHT_INLINE VF max(VF a, VF b) {
#if FIRSTLIGHT_LANES == 16
  return reinterpret_cast<VF>(_mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}

/// 2^x for x ≤ 127; 0 below 2^-126. Error below 2 units in the last place: Taylor's series to degree 6 on [-1/2, 1/2].
FIRSTLIGHT_INLINE VF exp2(VF x) {
  const VF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
  const VF rounded = x + magic;
  const VF f = x - (rounded - magic);
  VF p = splat(1.5403530e-4f);
  p = p * f + splat(1.3333558e-3f);
  p = p * f + splat(9.6181291e-3f);
  p = p * f + splat(5.5504109e-2f);
  p = p * f + splat(2.4022651e-1f);
  p = p * f + splat(6.9314718e-1f);
  p = p * f + splat(1.0f);
  const VF scaled = reinterpret_cast<VF>(reinterpret_cast<VU>(p) + (reinterpret_cast<VU>(rounded) << 23));
  return x >= splat(-126.0f) ? scaled : VF{};
}

/// x / (1 + e^-x).
FIRSTLIGHT_INLINE VF silu(VF x) {
  VF t = x * splat(-1.44269504f);
  t = t < splat(126.0f) ? t : splat(126.0f);
  return x / (splat(1.0f) + exp2(t));
}

template <int kDistance, size_t... kIndex>
FIRSTLIGHT_INLINE VF keep_halves(VF a, VF b,
                                 std::index_sequence<kIndex...>) {  // lane i: a[i] where bit is clear, else b[i]
  return __builtin_shufflevector(
      a, b, (static_cast<int>(kIndex) & kDistance ? kLanes + static_cast<int>(kIndex) : static_cast<int>(kIndex))...);
}
template <int kDistance, size_t... kIndex>
FIRSTLIGHT_INLINE VF
swap_halves(VF a, VF b, std::index_sequence<kIndex...>) {  // lane i: a[i + d] where bit is clear, else b[i - d]
  return __builtin_shufflevector(a, b,
                                 (static_cast<int>(kIndex) & kDistance ? kLanes + static_cast<int>(kIndex) - kDistance
                                                                       : static_cast<int>(kIndex) + kDistance)...);
}
template <int kDistance, size_t... kIndex>
FIRSTLIGHT_INLINE VF low_halves(VF a, VF b,
                                std::index_sequence<kIndex...>) {  // lane i: a[i] where bit is clear, else b[i - d]
  return __builtin_shufflevector(a, b,
                                 (static_cast<int>(kIndex) & kDistance ? kLanes + static_cast<int>(kIndex) - kDistance
                                                                       : static_cast<int>(kIndex))...);
}
template <int kDistance, size_t... kIndex>
FIRSTLIGHT_INLINE VF high_halves(VF a, VF b,
                                 std::index_sequence<kIndex...>) {  // lane i: a[i + d] where bit is clear, else b[i]
  return __builtin_shufflevector(a, b,
                                 (static_cast<int>(kIndex) & kDistance ? kLanes + static_cast<int>(kIndex)
                                                                       : static_cast<int>(kIndex) + kDistance)...);
}
using Lanes = std::make_index_sequence<kLanes>;

/// Lane i of the result is the sum of v[i]'s lanes.
template <int kDistance = kLanes / 2>
FIRSTLIGHT_INLINE VF sum_each(VF (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kDistance; ++i) {
    const VF a = v[i], b = v[i + kDistance];
    v[i] = keep_halves<kDistance>(a, b, Lanes{}) + swap_halves<kDistance>(a, b, Lanes{});
  }
  if constexpr (kDistance > 1) return sum_each<kDistance / 2>(v);
  return v[0];
}

/// v[i][j] ↔ v[j][i].
template <int kDistance = kLanes / 2>
FIRSTLIGHT_INLINE void transpose(VF (&v)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kDistance) continue;
    const VF a = v[i], b = v[i + kDistance];
    v[i] = low_halves<kDistance>(a, b, Lanes{});
    v[i + kDistance] = high_halves<kDistance>(a, b, Lanes{});
  }
  if constexpr (kDistance > 1) transpose<kDistance / 2>(v);
}

FIRSTLIGHT_INLINE float largest(VF v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int d = kLanes / 2; d > 0; d /= 2) {
    for (int i = 0; i < d; ++i) lanes[i] = lanes[i] > lanes[i + d] ? lanes[i] : lanes[i + d];
  }
  return lanes[0];
}

FIRSTLIGHT_INLINE float sum(VF v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int d = kLanes / 2; d > 0; d /= 2) {
    for (int i = 0; i < d; ++i) lanes[i] += lanes[i + d];
  }
  return lanes[0];
}

FIRSTLIGHT_INLINE VI iota() {
  VI v{};
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

}  // namespace firstlight::FIRSTLIGHT_SIMD
