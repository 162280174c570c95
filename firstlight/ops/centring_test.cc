// SPDX-License-Identifier: Apache-2.0
// Means subtracted from keys and values: no result changes by it, and codes of keys that share an offset become as good
// as those of keys that do not.
#include <algorithm>
#include <cmath>

#include "firstlight/ops/codes_testing.h"

namespace firstlight {
namespace {

using reference::Tensor;

constexpr int kQueryHeads = 6, kKeyHeads = 2, kHeadDim = 64;

/// One sequence, stored at once and attended to.
struct CentredCache {
  explicit CentredCache(KvKind of, const std::vector<float>* subtracted = nullptr) : kind(of) {
    if (subtracted) means = subtracted->data();
    signs = reference::signs_of_heads(7, 3, kKeyHeads);
  }

  /// The last n_rows rows of attention over all of qkv.
  std::vector<float> attend(Ops& ops, Tensor qkv, int64_t n_rows, std::span<const double> frequencies) {
    const int64_t n = qkv.rows, n_pages = (n + kPageTokens - 1) / kPageTokens;
    stride = kv_page_bytes(kind, kKeyHeads, kHeadDim);
    exact_stride = kv_page_bytes(KvKind::bf16, kKeyHeads, kHeadDim);
    pages.resize(static_cast<size_t>(n_pages));
    std::iota(pages.begin(), pages.end(), 0);
    codes.assign(stride * pages.size(), std::byte{0xff});
    exact.assign(exact_stride * pages.size(), std::byte{0xff});
    const AttentionSpan all{0, n, 0, pages.data(), pages.data()};
    ops.rope_and_store(qkv.matrix(), kQueryHeads, nullptr, nullptr, 1e-5f, frequencies, {&all, 1}, layer());
    const AttentionSpan last{n - n_rows, n_rows, n - n_rows, pages.data(), pages.data()};
    Tensor out = reference::unwritten(n, int64_t{kQueryHeads} * kHeadDim);
    ops.attend(qkv.view(), kQueryHeads, {&last, 1}, layer(), out.matrix());
    return {out.f32.end() - n_rows * kQueryHeads * kHeadDim, out.f32.end()};
  }

  KvLayer layer() {
    const bool compressed = is_compressed(kind);
    return {codes.data(),
            stride,
            kind,
            kKeyHeads,
            kHeadDim,
            compressed ? exact.data() : nullptr,
            compressed ? exact_stride : 0,
            compressed ? signs.data() : nullptr,
            means};
  }

  /// A key of head 0 as its codes have it, from the format's description.
  std::vector<double> key(int64_t t) const {
    const turboquant::PageShape shape{kHeadDim, kv_bits(kind).key, kv_bits(kind).value};
    const auto* at = reinterpret_cast<const uint8_t*>(codes.data()) + static_cast<uint64_t>(t / kPageTokens) * stride;
    const uint8_t* scale = at + shape.key_scales_at() + 2 * (t % kPageTokens);
    std::vector<double> x(kHeadDim);
    for (int i = 0; i < kHeadDim; ++i) {
      x[static_cast<size_t>(i)] =
          f16_to_f32(static_cast<uint16_t>(scale[0] | scale[1] << 8)) / 64.0 *
          reference::level_of(shape.key_bits, turboquant::key_code(at + t % kPageTokens * shape.key_bytes(), kHeadDim,
                                                                   shape.key_bits, i));
    }
    return reference::unrotated(x, signs[0]);
  }

  KvKind kind;
  const float* means = nullptr;
  std::vector<turboquant::Signs> signs;
  std::vector<int32_t> pages;
  std::vector<std::byte> codes, exact;
  uint64_t stride = 0, exact_stride = 0;
};

Tensor random_rows(int64_t n) {
  return reference::random_tensor(n, int64_t{kQueryHeads + 2 * kKeyHeads} * kHeadDim, DType::f32, 11);
}

/// [k, v][kv head][coordinate], of `size` along a random direction in each head.
std::vector<float> offsets(double size) {
  std::vector<float> out = reference::random_tensor(2 * kKeyHeads, kHeadDim, DType::f32, 12).f32;
  for (auto head = out.begin(); head != out.end(); head += kHeadDim) {
    double square = 0;
    for (auto x = head; x != head + kHeadDim; ++x) square += static_cast<double>(*x) * static_cast<double>(*x);
    for (auto x = head; x != head + kHeadDim; ++x) *x = static_cast<float>(*x * size / std::sqrt(square));
  }
  return out;
}

void add_offsets(const std::vector<float>& offset, Tensor& qkv) {
  for (int64_t t = 0; t < qkv.rows; ++t) {
    for (size_t i = 0; i < offset.size(); ++i)
      qkv.f32[static_cast<size_t>(t * qkv.cols + kQueryHeads * kHeadDim) + i] += offset[i];
  }
}

float farthest(const std::vector<float>& a, const std::vector<float>& b) {
  float most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));  // a NaN would be lost:
  return std::isfinite(std::accumulate(a.begin(), a.end(), 0.0f)) ? most : INFINITY;
}

const std::vector<double> kNoAngles(kHeadDim / 2, 0.0);

class Centring : public reference::EachLevel {};

/// Whatever is subtracted, and with keys that turn with their position: it is subtracted behind the rotation.
TEST_P(Centring, ChangesNoResultOverNumbers) {
  std::vector<double> frequencies;
  for (int i = 0; i < kHeadDim / 2; ++i) frequencies.push_back(std::pow(10000.0, -2.0 * i / kHeadDim));
  const std::vector<float> any = offsets(8);
  for (const int64_t rows : {1, 7, 100}) {
    const auto plain = CentredCache(KvKind::f32).attend(*ops_, random_rows(300), rows, frequencies);
    const auto centred = CentredCache(KvKind::f32, &any).attend(*ops_, random_rows(300), rows, frequencies);
    EXPECT_LT(farthest(centred, plain), 2e-5f) << rows << " rows";
  }
}

TEST_P(Centring, GivesValuesTheirMeanBackOverCodes) {
  const std::vector<float> offset = offsets(100);
  Tensor qkv = random_rows(500);
  for (const int64_t rows : {1, 5, 70}) {
    const auto expected = CentredCache(KvKind::f32).attend(*ops_, random_rows(500), rows, kNoAngles);
    add_offsets(offset, qkv);
    const auto centred = CentredCache(KvKind::tq8, &offset).attend(*ops_, qkv, rows, kNoAngles);
    std::vector<float> moved = expected;
    for (size_t i = 0; i < moved.size(); ++i) {
      const size_t head = i / kHeadDim % kQueryHeads / (kQueryHeads / kKeyHeads);
      moved[i] += offset[(kKeyHeads + head) * kHeadDim + i % kHeadDim];
    }
    EXPECT_LT(farthest(centred, moved), 0.02f) << rows << " rows";
    qkv = random_rows(500);
  }
}

/// Keys of standard deviation 1 around an offset of norm 100: the divergence of a query's weights from those of the
/// exact keys, summed in double from the pages' bytes.
TEST_P(Centring, TakesAnOffsetOutOfKeysBeforeTheyAreRounded) {
  constexpr int64_t kKeys = 320, kQueries = 50;
  const std::vector<float> offset = offsets(100);
  Tensor qkv = random_rows(kKeys);
  add_offsets(offset, qkv);
  const Tensor queries = reference::random_tensor(kQueries, kHeadDim, DType::f32, 13);
  const auto divergence = [&](CentredCache cache) {
    cache.attend(*ops_, qkv, 1, kNoAngles);
    std::vector<std::vector<double>> keys;
    for (int64_t t = 0; t < kKeys; ++t) keys.push_back(cache.key(t));
    double sum = 0;
    for (int64_t q = 0; q < kQueries; ++q) {
      double totals[2] = {}, mean = 0;
      for (int64_t t = 0; t < kKeys; ++t) {
        double exact = 0, coded = 0;
        for (int64_t i = 0; i < kHeadDim; ++i) {
          const double key =
              qkv.at(t, kQueryHeads * kHeadDim + i) - static_cast<double>(offset[static_cast<size_t>(i)]);
          exact += queries.at(q, i) * key / 8;
          coded += queries.at(q, i) *
                   (keys[static_cast<size_t>(t)][static_cast<size_t>(i)] -
                    (cache.means ? 0 : static_cast<double>(offset[static_cast<size_t>(i)]))) /
                   8;
        }
        totals[0] += std::exp(exact);
        totals[1] += std::exp(coded);
        mean += std::exp(exact) * (exact - coded);
      }
      sum += mean / totals[0] - std::log(totals[0]) + std::log(totals[1]);
    }
    return sum / static_cast<double>(kQueries);
  };
  const double without = divergence(CentredCache(KvKind::tq4)), with = divergence(CentredCache(KvKind::tq4, &offset));
  EXPECT_GT(without, 0.2);
  EXPECT_LT(with, without / 10);
  EXPECT_LT(with, 0.01);  // that of keys without an offset: half their variance of .009, and a little
}

INSTANTIATE_TEST_SUITE_P(Levels, Centring, testing::ValuesIn(kCpuLevels), reference::level_name);

}  // namespace
}  // namespace firstlight
