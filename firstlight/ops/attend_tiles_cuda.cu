// SPDX-License-Identifier: Apache-2.0
// Attention of a prompt by tensor cores: a block takes up to 64 rows of one head, 16 a warp, and walks over the pages
// they see (a page is a block of keys), two in shared memory: one in use, the next on its way. Scores stay in registers
// and become the weights' operand as they lie (Dao, FlashAttention-2). q and the weights are rounded to bf16.
#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/attend_tile_rows_cuda.cuh"
#include "firstlight/ops/cuda_kernel.cuh"

namespace firstlight::cuda {

namespace {

constexpr int kWarps = 4;
static_assert(kTileRows == kWarps * 16);

struct TilesParams {
  AttendParams attend;
  const TileOnDevice* tiles;
};

/// 16-byte pieces of a slot are dealt over the banks: eight slots' pieces of one column hit each bank once.
template <int kDim>
__device__ __forceinline__ uint32_t place(int slot, int piece) {
  return static_cast<uint32_t>(slot * kDim * 2 + ((piece ^ (slot & 7)) * 16));
}

/// Starts the copy of a page's keys or values of one head; zeros where no row of the tile sees.
template <int kDim>
__device__ __forceinline__ void fetch_page(const __nv_bfloat16* from, int n_slots, uint32_t to) {
  constexpr int kPieces = kDim / 8;
#pragma unroll
  for (int i = 0; i < kPageTokens * kPieces / (kWarps * 32); ++i) {
    const int at = i * kWarps * 32 + static_cast<int>(threadIdx.x), slot = at / kPieces, piece = at % kPieces;
    copy_async(to + place<kDim>(slot, piece), from + slot * kDim + piece * 8, slot < n_slots);
  }
  copy_async_commit();
}

template <int kDim>
__device__ __forceinline__ void load_query(const Matrix<const float>& q, const TileOnDevice& tile, int head,
                                           TileRows<kDim>& rows) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first + i % 2 * 8;
      float2 x = make_float2(0, 0);
      if (row < tile.n_rows) {
        x = *reinterpret_cast<const float2*>(q.data + (int64_t{tile.row} + row) * q.stride + head * kDim + s * 16 +
                                             i / 2 * 8 + lane % 4 * 2);
      }
      rows.q[s][i] = pack(x.x, x.y);
    }
  }
}

/// Scores become weights; `visible`: of keys from the page's first on, for row lane / 4 (8 more for the one below).
template <int kDim>
__device__ __forceinline__ void weigh(float scale, int visible, float (&scores)[8][4], TileRows<kDim>& rows) {
  const int column = threadIdx.x % 4 * 2;
  const bool masked = __any_sync(0xffffffffu, visible < kPageTokens);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& s = scores[n][half * 2 + i];
        s = !masked || n * 8 + column + i < visible + half * 8 ? s * scale : -INFINITY;
        top = fmaxf(top, s);
      }
    }
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    top = fmaxf(top, rows.maxima[half]);  // finite: every row sees the first key
    const float shrink = power_of_two(rows.maxima[half] - top);
    rows.maxima[half] = top;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) sum += scores[n][half * 2 + i] = power_of_two(scores[n][half * 2 + i] - top);
    }
    rows.divisors[half] = rows.divisors[half] * shrink + sum;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) rows.sums[n][half * 2] *= shrink, rows.sums[n][half * 2 + 1] *= shrink;
  }
}

template <int kDim>
__device__ __forceinline__ void store(const AttendParams& p, const TileOnDevice& tile, int head,
                                      const TileRows<kDim>& rows) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float divisor = rows.divisors[half];
    divisor += __shfl_xor_sync(0xffffffffu, divisor, 1);
    divisor += __shfl_xor_sync(0xffffffffu, divisor, 2);
    const int within = static_cast<int>(threadIdx.x) / 32 * 16 + half * 8 + lane / 4;
    if (within >= tile.n_rows) continue;
    const float scale = 1 / divisor;
    const int64_t row = int64_t{tile.row} + within;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const float a = rows.sums[n][half * 2] * scale, b = rows.sums[n][half * 2 + 1] * scale;
      const int64_t column = int64_t{head} * kDim + n * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(p.out.data + row * p.out.stride + column) = make_float2(a, b);
      if (p.twin) *reinterpret_cast<uint32_t*>(p.twin + row * p.out.cols + column) = pack(a, b);
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kWarps * 32) attend_tiles_kernel(const __grid_constant__ TilesParams params) {
  constexpr uint32_t kBytes = kPageTokens * kDim * 2;  // keys or values of a page
  extern __shared__ uint4 dynamic[];
  const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic));
  wait_for_predecessor();
  let_successor_start();
  const AttendParams& p = params.attend;
  const TileOnDevice tile = params.tiles[blockIdx.y];
  const int head = static_cast<int>(blockIdx.x), kv_head = head / (p.n_heads / p.kv.n_kv_heads);
  const int n_keys = tile.position + tile.n_rows, n_pages = (n_keys + kPageTokens - 1) / kPageTokens;
  const int64_t to_values = int64_t{p.kv.n_kv_heads} * kPageTokens * kDim;
  const auto keys_of = [&](int page) {
    const int64_t at = p.pages[tile.pages + page];
    return reinterpret_cast<const __nv_bfloat16*>(p.kv.data + static_cast<uint64_t>(at) * p.kv.page_stride) +
           int64_t{kv_head} * kPageTokens * kDim;
  };
  const auto keys_at = [&](int page) { return shared + page % 2 * kBytes; };
  const auto values_at = [&](int page) { return shared + (2 + page % 2) * kBytes; };
  const auto pieces_from = [](uint32_t tile) {
    return [tile](int slot, int piece) { return tile + place<kDim>(slot, piece); };
  };

  const __nv_bfloat16* from = keys_of(0);
  fetch_page<kDim>(from, n_keys, keys_at(0));
  fetch_page<kDim>(from + to_values, n_keys, values_at(0));
  TileRows<kDim> rows;
  load_query<kDim>(p.q, tile, head, rows);
  const int first_visible =
      tile.position + 1 + static_cast<int>(threadIdx.x) / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  for (int page = 0; page < n_pages; ++page) {
    const bool more = page + 1 < n_pages;
    const int next_slots = n_keys - (page + 1) * kPageTokens;
    copy_async_wait<1>();  // the keys are there, the values may still be on their way
    __syncthreads();
    if (more) {
      from = keys_of(page + 1);
      fetch_page<kDim>(from, next_slots, keys_at(page + 1));
    } else {
      copy_async_commit();  // groups are counted
    }
    float scores[8][4];
    score(static_cast<int>(threadIdx.x % 32), rows, pieces_from(keys_at(page)), scores);
    weigh<kDim>(p.scale, first_visible - page * kPageTokens, scores, rows);
    copy_async_wait<1>();
    __syncthreads();
    if (more) {
      fetch_page<kDim>(from + to_values, next_slots, values_at(page + 1));
    } else {
      copy_async_commit();
    }
    mix(static_cast<int>(threadIdx.x % 32), scores, pieces_from(values_at(page)), rows);
  }
  store<kDim>(p, tile, head, rows);
}

template <int kDim>
void start(const AttendParams& params, const TileOnDevice* tiles, int n_tiles, cudaStream_t stream) {
  constexpr int kShared = 4 * kPageTokens * kDim * 2;
  if (kShared > 48 * 1024) {
    check(cudaFuncSetAttribute(attend_tiles_kernel<kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
          "shared memory of attention");
  }
  launch("attention of tiles", attend_tiles_kernel<kDim>,
         dim3(static_cast<unsigned>(params.n_heads), static_cast<unsigned>(n_tiles)), kWarps * 32, kShared, stream,
         TilesParams{params, tiles});
}

}  // namespace

void attend_tiles(const AttendParams& params, const TileOnDevice* tiles, int n_tiles, cudaStream_t stream) {
  params.kv.head_dim == 64 ? start<64>(params, tiles, n_tiles, stream) : start<128>(params, tiles, n_tiles, stream);
}

}  // namespace firstlight::cuda
