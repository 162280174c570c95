// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt over TurboQuant codes by tensor cores: a block takes up to 64 rows of one head, 16 a warp.
// Codes become bf16 levels (exact) in shared memory, a page at a time, while the next page's codes are on their way to
// registers; scales go into scores and weights. What codes give is rotated back before the exact pages follow. q and
// the weights are rounded to bf16, as over bf16 pages. Pages that a row does not see leave its bits as they are, so
// these do not depend on where its tile begins.
#include "firstlight/ops/attend_codes_tile_page_cuda.cuh"
#include "firstlight/ops/attend_tile_rows_cuda.cuh"
#include "firstlight/ops/codes_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kThreads = kCodeTileThreads;
static_assert(kTileRows == kThreads / 32 * 16);

struct TilesParams {
  AttendCodesParams codes;
  const TileOnDevice* tiles;
};

template <int kDim>
__device__ __forceinline__ auto pieces_of(const uint4* tile) {
  return [tile](int slot, int piece) { return address<kDim>(tile, slot, piece); };
}

/// Scores become weights; of row lane / 4 + 8 half the first visible[half] keys count.
template <int kDim, bool kCodes>
__device__ __forceinline__ void weigh(float scale, const int (&visible)[2], const TileShared<kDim>& shared,
                                      float (&scores)[8][4], TileRows<kDim>& rows) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& s = scores[n][half * 2 + i];
        if (kCodes) s *= shared.key_scales[n * 8 + column + i];
        s = n * 8 + column + i < visible[half] ? s * scale : -INFINITY;
        top = fmaxf(top, s);
      }
    }
    top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));
    top = fmaxf(top, rows.maxima[half]);
    const float base = top == -INFINITY ? 0 : top;  // no key was visible yet
    const float shrink = power_of_two(rows.maxima[half] - base);
    rows.maxima[half] = top;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& s = scores[n][half * 2 + i];
        sum += s = power_of_two(s - base);
        if (kCodes) s *= shared.value_scales[n * 8 + column + i];
      }
    }
    rows.divisors[half] = rows.divisors[half] * shrink + sum;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) rows.sums[n][half * 2] *= shrink, rows.sums[n][half * 2 + 1] *= shrink;
  }
}

/// The warp's rows of q as the first operand; rotated if `signs`.
template <int kDim>
__device__ void load_query(const AttendCodesParams& p, const TileOnDevice& tile, int head, const tq::Signs* signs,
                           TileShared<kDim>& shared, TileRows<kDim>& rows) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t flips = signs ? lane_signs<kDim>(*signs) : 0;
  for (int i = warp * 16; i < warp * 16 + 16; ++i) {
    float x[kDim / 32] = {};
    if (i < tile.n_rows) {
      const float* row = p.attend.q.data + (int64_t{tile.row} + i) * p.attend.q.stride + head * kDim;
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j) x[j] = row[32 * j + lane];
      if (signs) rotate<kDim>(flips, x);
    }
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) shared.row(i)[32 * j + lane] = x[j];
  }
  __syncwarp();
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = *reinterpret_cast<const float2*>(shared.row(warp * 16 + lane / 4 + i % 2 * 8) + s * 16 +
                                                        i / 2 * 8 + lane % 4 * 2);
      rows.q[s][i] = pack(x.x, x.y);
    }
  }
}

/// Sums over codes, rotated back.
template <int kDim>
__device__ void unrotate_sums(const tq::Signs& signs, TileShared<kDim>& shared, TileRows<kDim>& rows) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t flips = lane_signs<kDim>(signs);
  const auto at = [&](int half, int n) {
    return reinterpret_cast<float2*>(shared.row(warp * 16 + lane / 4 + half * 8) + n * 8 + lane % 4 * 2);
  };
  __syncthreads();
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    *at(0, n) = make_float2(rows.sums[n][0], rows.sums[n][1]);
    *at(1, n) = make_float2(rows.sums[n][2], rows.sums[n][3]);
  }
  __syncwarp();
  for (int i = warp * 16; i < warp * 16 + 16; ++i) {
    float x[kDim / 32];
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) x[j] = shared.row(i)[32 * j + lane];
    unrotate<kDim>(flips, x);
#pragma unroll
    for (int j = 0; j < kDim / 32; ++j) shared.row(i)[32 * j + lane] = x[j];
  }
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
    const float2 a = *at(0, n), b = *at(1, n);
    rows.sums[n][0] = a.x, rows.sums[n][1] = a.y, rows.sums[n][2] = b.x, rows.sums[n][3] = b.y;
  }
}

/// An exact page's keys and values; zeros where no row of the tile sees.
template <int kDim>
__device__ __forceinline__ void fetch_exact(const __nv_bfloat16* keys, int64_t to_values, int n_slots,
                                            TileShared<kDim>& shared) {
  constexpr int kPieces = kDim / 8;
#pragma unroll
  for (int i = 0; i < kPageTokens * kPieces / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x), slot = at / kPieces, piece = at % kPieces;
    const __nv_bfloat16* from = keys + slot * kDim + piece * 8;
    copy_async(address<kDim>(shared.keys, slot, piece), from, slot < n_slots);
    copy_async(address<kDim>(shared.values, slot, piece), from + to_values, slot < n_slots);
  }
  copy_async_commit();
}

template <int kDim>
__device__ __forceinline__ void store(const AttendParams& p, const TileOnDevice& tile, int head, int kv_head,
                                      const TileRows<kDim>& rows) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float divisor = rows.divisors[half];
    divisor += __shfl_xor_sync(kWholeWarp, divisor, 1);
    divisor += __shfl_xor_sync(kWholeWarp, divisor, 2);
    const int within = static_cast<int>(threadIdx.x) / 32 * 16 + half * 8 + lane / 4;
    if (within >= tile.n_rows) continue;
    const int64_t row = int64_t{tile.row} + within;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int at = n * 8 + lane % 4 * 2;
      const float a = rows.sums[n][half * 2] / divisor + mean_of(p.kv, 1, kv_head, at),
                  b = rows.sums[n][half * 2 + 1] / divisor + mean_of(p.kv, 1, kv_head, at + 1);
      const int64_t column = int64_t{head} * kDim + at;
      p.out.data[row * p.out.stride + column] = a;
      p.out.data[row * p.out.stride + column + 1] = b;
      if (p.twin) *reinterpret_cast<uint32_t*>(p.twin + row * p.out.cols + column) = pack(a, b);
    }
  }
}

/// Which pages a tile's rows read: those of the lane, lane / 4 and 8 below in the warp's 16.
struct Sight {
  int positions[2], lasts[2], exact_from;
  __device__ explicit Sight(const TileOnDevice& tile) : exact_from(tile.exact_from) {
    const int first = static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    for (int half = 0; half < 2; ++half) {
      positions[half] = tile.position + first + 8 * half;
      lasts[half] = positions[half] / kPageTokens;
    }
  }
  /// Keys of a page that a row sees in its codes, or exactly.
  __device__ __forceinline__ int of_codes(int page, int half) const {
    return page > 0 && page + kExactTail <= lasts[half] && page < exact_from ? kPageTokens : 0;
  }
  __device__ __forceinline__ int exactly(int page, int half) const {
    const bool is_exact = page == 0 || page + kExactTail > lasts[half] || page >= exact_from;
    return is_exact ? positions[half] + 1 - page * kPageTokens : 0;
  }
};

template <int kDim, int kKeyBits, int kValueBits>
__device__ void add_codes(const AttendCodesParams& p, const TileOnDevice& tile, int kv_head, const Sight& sight,
                          int end, TileShared<kDim>& shared, TileRows<kDim>& rows) {
  using Codes = PageCodes<kDim, kKeyBits, kValueBits>;
  const KvLayer& kv = p.attend.kv;
  const ExpandTables tables = shared.tables[threadIdx.x % 4];
  const auto page_at = [&](int page) {
    return reinterpret_cast<const uint8_t*>(kv.data) +
           static_cast<uint64_t>(p.attend.pages[tile.pages + page]) * kv.page_stride +
           int64_t{kv_head} * Codes::kShape.bytes();
  };
  Codes codes;
  codes.load(page_at(1));
  for (int page = 1; page < end; ++page) {
    __syncthreads();
    codes.expand_to(shared, tables);
    __syncthreads();
    if (page + 1 < end) codes.load(page_at(page + 1));
    const int visible[2] = {sight.of_codes(page, 0), sight.of_codes(page, 1)};
    float scores[8][4];
    score(static_cast<int>(threadIdx.x) % 32, rows, pieces_of<kDim>(shared.keys), scores);
    weigh<kDim, true>(p.attend.scale, visible, shared, scores, rows);
    mix(static_cast<int>(threadIdx.x) % 32, scores, pieces_of<kDim>(shared.values), rows);
  }
}

template <int kDim, int kKeyBits, int kValueBits>
__global__ void __launch_bounds__(kThreads) attend_code_tiles_kernel(const __grid_constant__ TilesParams params) {
  extern __shared__ __align__(128) std::byte dynamic[];
  TileShared<kDim>& shared = *reinterpret_cast<TileShared<kDim>*>(dynamic);
  wait_for_predecessor();
  let_successor_start();
  const AttendCodesParams& p = params.codes;
  const KvLayer& kv = p.attend.kv;
  const TileOnDevice tile = params.tiles[blockIdx.y];
  const int head = static_cast<int>(blockIdx.x), kv_head = head / (p.attend.n_heads / kv.n_kv_heads);
  const Sight sight(tile);
  const int n_keys = tile.position + tile.n_rows, first_last = tile.position / kPageTokens,
            last = (n_keys - 1) / kPageTokens;
  if (threadIdx.x < 4) shared.tables[threadIdx.x] = ExpandTables::known();
  TileRows<kDim> rows;
  if (const int end = min(last + 1 - static_cast<int>(kExactTail), tile.exact_from); end > 1) {
    load_query<kDim>(p, tile, head, &p.signs[2 * kv_head], shared, rows);
    __syncthreads();
    add_codes<kDim, kKeyBits, kValueBits>(p, tile, kv_head, sight, end, shared, rows);
    unrotate_sums<kDim>(p.signs[2 * kv_head + 1], shared, rows);
    __syncwarp();
  }
  load_query<kDim>(p, tile, head, nullptr, shared, rows);
  for (int page = 0; page <= last;
       page = page == 0 ? max(1, min(first_last + 1 - static_cast<int>(kExactTail), tile.exact_from)) : page + 1) {
    const auto number = static_cast<uint64_t>(p.exact[tile.pages + page]);
    const auto* keys = reinterpret_cast<const __nv_bfloat16*>(kv.exact + number * kv.exact_stride) +
                       int64_t{kv_head} * kPageTokens * kDim;
    __syncthreads();
    fetch_exact<kDim>(keys, int64_t{kv.n_kv_heads} * kPageTokens * kDim, n_keys - page * kPageTokens, shared);
    copy_async_wait<0>();
    __syncthreads();
    const int visible[2] = {sight.exactly(page, 0), sight.exactly(page, 1)};
    float scores[8][4];
    score(static_cast<int>(threadIdx.x) % 32, rows, pieces_of<kDim>(shared.keys), scores);
    weigh<kDim, false>(p.attend.scale, visible, shared, scores, rows);
    mix(static_cast<int>(threadIdx.x) % 32, scores, pieces_of<kDim>(shared.values), rows);
  }
  store<kDim>(p.attend, tile, head, kv_head, rows);
}

template <int kDim, int kKeyBits, int kValueBits>
void start(const TilesParams& params, int n_tiles, cudaStream_t stream) {
  constexpr int kShared = sizeof(TileShared<kDim>);
  const auto kernel = attend_code_tiles_kernel<kDim, kKeyBits, kValueBits>;
  launch("attention of tiles over codes", kernel,
         dim3(static_cast<unsigned>(params.codes.attend.n_heads), static_cast<unsigned>(n_tiles)), kThreads, kShared,
         stream, params);
}

}  // namespace

void attend_code_tiles(const AttendCodesParams& p, const TileOnDevice* tiles, int n_tiles, cudaStream_t stream) {
  const TilesParams params{p, tiles};
  with_code_shape(p.shape, [&](auto of) {
    using Shape = decltype(of);
    start<Shape::kDim, Shape::kKeyBits, Shape::kValueBits>(params, n_tiles, stream);
  });
}

}  // namespace firstlight::cuda
