// SPDX-License-Identifier: Apache-2.0
// Causal attention over pages: what its three kernels share.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "firstlight/ops/cuda_pass.cuh"
#include "firstlight/ops/product_cuda.cuh"

namespace firstlight::cuda {

struct AttendParams {
  Matrix<const float> q;
  Matrix<float> out;
  __nv_bfloat16* twin = nullptr;  ///< out as bf16, rows of out.cols; maybe null
  int n_heads = 0;
  KvLayer kv;
  const int32_t* pages = nullptr;
  /// Of each row, [head_dim / 2] (cuda_pass.cuh): rows are as the product left them. Attention turns q and k, which
  /// lies behind all heads of q in their rows, then v, and stores k and v. Rows that are RowSet::alone. Null: all of
  /// that is done.
  const float2* angles = nullptr;
  float scale = 0;  ///< log2(e) / √head_dim: weights are powers of two
};

/// What a chunk says of four neighbouring values of a head: their sums, and the head's maximum and divisor there. All
/// bits set: not written yet. No arithmetic gives that (a NaN of this GPU's is 0x7fffffff), so each word is its own
/// flag, and who merges waits for it without a fence or a count: those cost 1.5 us.
struct alignas(32) ChunkPiece {
  float4 sums;
  float maximum, divisor, unused[2];
};

struct ReadyItem;
/// How the rows of a pass are cut, the same for all layers: worked out once, by a kernel of its own.
struct alignas(16) SinglesPlan {
  int each;          ///< pages for a block
  int n_items;       ///< of all heads
  bool splits_rows;  ///< else there is nothing to merge
};

/// Single rows over bf16 pages, head_dim 64 or 128: keys are cut into chunks, whose partial sums are merged in order.
struct SinglesParams {
  AttendParams attend;
  const RowOnDevice* rows = nullptr;
  int n_rows = 0;
  int group = 0;           ///< query heads of a key/value head
  int heads = 0;           ///< of these, that a block takes together
  int of_group = 0;        ///< blocks for a group
  int head_blocks = 0;     ///< blocks for a row
  int most_chunks = 0;     ///< of any row; with its pages this decides a row's chunks
  int n_chunks = 0;        ///< that the partials provide for
  int n_blocks = 0;        ///< that the GPU holds at a time: how many chunks one takes, which no bit depends on
  int n_sharing = 1;       ///< launches that may be on the GPU at a time: each takes its share of the blocks it holds
  bool olds_hold = false;  ///< the pass writes none of a row's keys but the last kTiledRows: others may be read early
  SinglesPlan* plan = nullptr;
  ReadyItem* items = nullptr;      ///< [n_rows * n_chunks] at most: of a row's first heads, in the order of rows
  ChunkPiece* partials = nullptr;  ///< [n_rows, head blocks, n_chunks, heads * head_dim / 4], all bits set between
};

/// Heads that a block takes together, of one group.
inline constexpr int kHeadsAtOnce = 8;
inline constexpr int kMostChunks = 128;
/// Pages that a chunk has at least, of a row of up to 16; of others twice as many. With 4 everywhere 512 keys take 0.9
/// us longer (5.3) and 32 times 512 keys 0.3 us less (17.5); with 2 everywhere 4,096 keys 1.6 us longer (8.2).
inline constexpr int kLeastPages = 2;
/// Blocks that a multiprocessor shall hold of the kernel for single rows; one alone reads at 85 % of the rate of two.
inline constexpr int kSinglesAtOnce = 2;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// Blocks that the heads of a row are dealt to.
__host__ __device__ inline int n_head_blocks(const AttendParams& p) {
  return p.kv.n_kv_heads * ceil_div(p.n_heads / p.kv.n_kv_heads, kHeadsAtOnce);
}

/// Any kind of pages and head_dim to 256.
void attend_plain(const AttendParams& params, const RowOnDevice* rows, int n_rows, cudaStream_t stream);
/// That the items of so many rows take at most.
int64_t items_bytes(int64_t n_rows, int n_chunks);
/// Writes the plan and the items, which attend_singles() reads.
void plan_singles(const SinglesParams& params, cudaStream_t stream);
void attend_singles(const SinglesParams& params, cudaStream_t stream);
/// Tiles of up to 64 rows by tensor cores: bf16 pages, head_dim 64 or 128; q and the weights are rounded to bf16.
void attend_tiles(const AttendParams& params, const TileOnDevice* tiles, int n_tiles, cudaStream_t stream);

}  // namespace firstlight::cuda
