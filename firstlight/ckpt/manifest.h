// SPDX-License-Identifier: Apache-2.0
// OUT/manifest.json and OUT/READY of a rank checkpoint, version 1 (docs/rank-checkpoint.md).
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/base/dtype.h"
#include "firstlight/io/file.h"

namespace firstlight {

inline constexpr uint64_t kLeafBytes = 1u << 20;  ///< hash unit
inline constexpr uint64_t kDataBegin = 2u << 20;  ///< where the data section of every part starts in its file
inline constexpr uint64_t kPageBytes = 4096;      ///< tensors whose size is no multiple of this stand in the tail
inline constexpr uint64_t kSlotAlignment = 256;   ///< of a tail tensor's slot in the arena

struct ManifestFile {
  uint64_t size = 0;
  std::string xxh3_128;  ///< 32 hex digits, of the whole file
};

/// One part of a rank, in order.
struct ManifestPart {
  std::string file;         ///< relative to OUT: "tp2/rank-00/model-00001-of-00001.safetensors"
  uint64_t data_bytes = 0;  ///< length of the data section (file size − kDataBegin)
  uint64_t tail_begin =
      0;  ///< offset in the data section from which tensors are not page multiples; = data_bytes if there are none
  uint64_t first_leaf = 0;  ///< index of the part's first leaf in leaves.xxh3
  /// The header without its padding: the 8 length bytes and the JSON up to and with its last '}'. A load waits for
  /// these bytes alone (30 kB instead of 2 MiB for 270 tensors); that spaces follow up to kDataBegin it checks beside
  /// the data.
  uint64_t header_bytes = 0;
  std::string header_xxh3;  ///< XXH3-128 of the file's bytes [0, header_bytes), 32 hex digits
};

struct ManifestRank {
  std::string directory;  ///< "tp2/rank-00"
  std::vector<ManifestPart> parts;
  uint64_t total_bytes() const;
};

struct ManifestTp {
  int tp = 1;
  std::vector<ManifestRank> ranks;  ///< [tp]
};

/// How a source tensor is cut.
enum class SliceKind { replicated, q_rows, kv_rows, rows, columns, vocab_rows };
std::string_view to_string(SliceKind kind) noexcept;

struct ManifestTensor {
  std::string name;
  std::vector<int64_t> shape;  ///< of the whole
  DType dtype = DType::bf16;   ///< as stored in the ranks
  SliceKind slice = SliceKind::replicated;
};

struct Manifest {
  int version = 1;
  std::string architecture;  ///< "llama"
  std::string recipe_dtype;  ///< "bf16", "f32", "source"
  std::string source_kind, source_fingerprint;
  std::vector<ManifestTensor> tensors;
  std::vector<ManifestTp> tps;                ///< ascending
  std::map<std::string, ManifestFile> files;  ///< every file under OUT but manifest.json and READY; relative names

  const ManifestTp* find_tp(int tp) const;
};

/// Strict: unknown version → Error{unsupported}; anything malformed, absolute or dotted names, sizes that overflow →
/// Error{bad_input}.
Manifest parse_manifest(std::string_view json, std::string_view path);
std::string to_json(const Manifest& manifest);

/// Whether a conversion has begun in `out`, at least: there is a READY, a manifest.json or a journal.jsonl.
bool holds_checkpoint(const fs::path& out);

/// Reads READY and manifest.json, checks the one against the other. Throws Error{bad_input} if `out` is no rank
/// checkpoint, Error{not_found} if there is no READY ("conversion was not finished: run shard again"), Error{damaged}
/// if READY holds no hash, or another one than the manifest's.
Manifest read_manifest(const fs::path& out);

/// Opens OUT/name, refusing what is not a plain file inside OUT; throws Error{damaged} if its size is not the
/// manifest's, Error{not_found} if it is missing.
std::shared_ptr<const File> open_listed(const fs::path& out, const Manifest& manifest, const std::string& name);
/// The content of a listed file, its hash checked.
std::string read_listed(const fs::path& out, const Manifest& manifest, const std::string& name);

}  // namespace firstlight
