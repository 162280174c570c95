// SPDX-License-Identifier: Apache-2.0
// A cache of TurboQuant codes on a GPU: what its kernels are given.
#pragma once
#include "firstlight/ops/attend_cuda.cuh"
#include "firstlight/ops/rope_cuda.cuh"
#include "firstlight/quant/turboquant_page.h"

namespace firstlight::cuda {

/// Coordinate i of what a head's keys (side 0) or values (1) are stored without.
__device__ __forceinline__ float mean_of(const KvLayer& kv, int side, int kv_head, int i) {
  return kv.means ? __ldg(kv.means + (side * kv.n_kv_heads + kv_head) * kv.head_dim + i) : 0.0f;
}

/// A key or value that is not finite: which one.
struct CodeFault {
  int position, kv_head, side;  ///< side: 0 key, 1 value
  static constexpr unsigned long long kNone = ~0ull;
  /// Orders faults by position.
  __host__ __device__ unsigned long long packed() const {
    return static_cast<unsigned long long>(position) << 32 | static_cast<unsigned>(kv_head * 2 + side);
  }
  static CodeFault of(unsigned long long packed) {
    const int low = static_cast<int>(packed & 0xffffffffu);
    return {static_cast<int>(packed >> 32), low / 2, low % 2};
  }
};

struct StoreCodesParams {
  RopeParams rope;
  const int32_t* exact = nullptr;
  turboquant::PageShape shape{};
  const turboquant::Signs* signs = nullptr;  ///< on the GPU
  unsigned long long* fault = nullptr;       ///< the first one's packed(), kNone before
  uint32_t* fault_seen = nullptr;            ///< in host memory: there is one
};
/// head_dim 64, 128 or 256.
void rope_and_store_codes(const StoreCodesParams& params, cudaStream_t stream);
/// The same bytes, sooner of many rows. takes_quads(): it is worth it, and codes have 4 or 8 bits, head_dim is 64 or
/// 128, and q, k and v, pages and exact pages lie at multiples of 16 bytes.
bool takes_quads(const StoreCodesParams& params);
void rope_and_store_quads(const StoreCodesParams& params, cudaStream_t stream);

/// Layers whose own tokens become codes in one launch.
inline constexpr int kOwnLayers = 32;
inline constexpr int64_t kOwnFloats = 4 << 20;  ///< and the most memory for them, 16.8 MB, but of a layer at least
/// Rows, each its sequence's only one, whose keys and values attention has stored exactly, in several layers of one
/// shape. Nobody reads their codes before the next pass.
struct StoreOwnsParams {
  struct Layer {
    std::byte* data = nullptr;
    const turboquant::Signs* signs = nullptr;  ///< on the GPU
  } layers[kOwnLayers];
  int most_layers = 0;  ///< that `own` has room for
  int n_layers = 0, n_rows = 0, n_kv_heads = 0;
  uint64_t page_stride = 0;
  turboquant::PageShape shape{};
  const RowOnDevice* rows = nullptr;
  const int32_t* pages = nullptr;
  const float* own = nullptr;  ///< [most_layers][layer_floats]: [n_rows, k and v, n_kv_heads, head_dim]
  int64_t layer_floats = 0;
  unsigned long long* fault = nullptr;  ///< as in StoreCodesParams
  uint32_t* fault_seen = nullptr;
};
/// head_dim 64 or 128.
void store_own_codes(const StoreOwnsParams& params, cudaStream_t stream);

struct AttendCodesParams {
  AttendParams attend;
  turboquant::PageShape shape{};
  const int32_t* exact = nullptr;            ///< of the exact pages, as `attend.pages` of the others
  const turboquant::Signs* signs = nullptr;  ///< on the GPU
};
template <int kDim_, int kKeyBits_, int kValueBits_>
struct CodeShape {
  static constexpr int kDim = kDim_, kKeyBits = kKeyBits_, kValueBits = kValueBits_;
};
/// fn(the CodeShape): of codes of 4 or 8 bits, head_dim 64 or 128.
template <class Fn>
void with_code_shape(const turboquant::PageShape& shape, const Fn& fn) {
  const bool is_small = shape.head_dim == 64;
  if (shape.key_bits == 4) return is_small ? fn(CodeShape<64, 4, 4>{}) : fn(CodeShape<128, 4, 4>{});
  if (shape.value_bits == 4) return is_small ? fn(CodeShape<64, 8, 4>{}) : fn(CodeShape<128, 8, 4>{});
  is_small ? fn(CodeShape<64, 8, 8>{}) : fn(CodeShape<128, 8, 8>{});
}
/// Any kind of codes and rows, at a speed of no account: a warp a key.
void attend_codes_plain(const AttendCodesParams& params, const RowOnDevice* rows, int n_rows, cudaStream_t stream);
/// Tiles of up to 64 rows by tensor cores: codes of 4 or 8 bits, head_dim 64 or 128. For GPUs without
/// HopperAttention::attend_codes(), which is quicker.
void attend_code_tiles(const AttendCodesParams& params, const TileOnDevice* tiles, int n_tiles, cudaStream_t stream);

struct RowPart;
/// Single rows over codes of 4 or 8 bits, head_dim 64 or 128.
struct CodeSinglesParams {
  AttendCodesParams codes;
  const RowOnDevice* rows = nullptr;
  int n_rows = 0;
  int group = 0;               ///< query heads of a key/value head
  int of_group = 0;            ///< blocks for a group
  int head_blocks = 0;         ///< blocks for a row's part
  int held = 0;                ///< parts of rows that the GPU holds at a time
  int exact_units = 0;         ///< pages of codes that an exact page counts for
  bool olds_hold = false;      ///< the pass writes no page of codes that a row reads, and the table of parts is there
  int n_blocks = 0;            ///< that the GPU holds at a time
  int most_parts = 0;          ///< that the sums and the table provide for
  ChunkPiece* sums = nullptr;  ///< [parts, head_blocks, kHeadsAtOnce, head_dim / 4], all bits set between
  float* own = nullptr;        ///< with attend.angles: where keys and values go, less their means (StoreOwnsParams)
  RowPart* parts = nullptr;    ///< the table, which plan_code_parts() makes
};
/// Parts of a row at most.
inline constexpr int kMostParts = 128;
/// Times that parts may fill the GPU.
inline constexpr int kMostRounds = 3;
inline constexpr int kRowPartBytes = 64;
/// Of parts, for all layers of a pass that have the same rows and shapes; no later launch starts before it has ended.
void plan_code_parts(const CodeSinglesParams& params, cudaStream_t stream);
bool takes_code_singles(const AttendCodesParams& params);
/// Blocks that the GPU holds at a time: a row's wait for one another's sums, so no more may be launched.
int code_blocks_held(const AttendCodesParams& params);
void attend_code_singles(const CodeSinglesParams& params, cudaStream_t stream);

}  // namespace firstlight::cuda
