// SPDX-License-Identifier: Apache-2.0
// A checkpoint as its publisher made it: a Hugging Face directory of safetensors, or a GGUF file (split or not), seen
// in one way: Hugging Face tensor names, Hugging Face row order, plain element types.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "firstlight/base/dtype.h"
#include "firstlight/ckpt/model_config.h"
#include "firstlight/io/file.h"

namespace firstlight {

struct SourceTensor {
  std::string name;            ///< Hugging Face's: "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  ///< row-major, outermost first; 1 or 2 dimensions
  std::string stored_type;     ///< as the file says: "BF16", "Q4_1"
  DType dtype = DType::bf16;   ///< what read_rows gives without conversion: the stored type, f32 for quantised blocks
  bool quantised = false;
  uint64_t stored_bytes = 0;
  bool only_loaded = false;  ///< `shard` keeps its type, whichever it is: nothing will compute with it
};

/// An auxiliary file of the checkpoint (config.json, tokenizer.json, generation_config.json, chat_template.jinja, …),
/// copied or, from a GGUF, made from its metadata.
struct AuxFile {
  std::string name;
  std::string content;
};

/// Read-only; all methods may be called from several threads at once.
class Source {
 public:
  virtual ~Source() = default;
  virtual const std::string& path() const = 0;
  virtual std::string_view kind() const = 0;  ///< "safetensors", "gguf"
  virtual const ModelConfig& config() const = 0;
  /// Exactly the tensors of the model, in layer order: embedding, layers (norm, q k v o, norm, gate up down, with
  /// biases and q/k norms), final norm, lm_head unless tied. Everything the architecture needs is there and has the
  /// shape that config() says.
  virtual const std::vector<SourceTensor>& tensors() const = 0;
  virtual const std::vector<AuxFile>& aux_files() const = 0;
  /// Identity for resuming and for adding a tp: kind, file names, sizes, headers, small files, and samples of every
  /// tensor's bytes (source_sample.h). Equal for equal input.
  virtual std::string fingerprint() const = 0;

  /// Reads rows [row_begin, row_end) of a tensor (all of a 1-D tensor is one row) as `as` (f32, bf16, or the tensor's
  /// own dtype), rows contiguous, into `out` of exactly that many bytes. f16 → bf16 goes through f32, rounding to
  /// nearest even; GGUF blocks are dequantised to f32 bit for bit as the Python package gguf does, q/k rows
  /// un-permuted. Throws Error{bad_input, io} naming file and range (bad_input: the file has changed).
  virtual void read_rows(const SourceTensor& tensor, int64_t row_begin, int64_t row_end, DType as,
                         std::span<std::byte> out) const = 0;

  /// Where a row lies if the bytes in the file are what read_rows(…, as, …) would give: for who reads past the page
  /// cache. Nothing if they must be converted or reordered.
  struct Place {
    const File* file = nullptr;  ///< open as long as the source
    uint64_t offset = 0;
  };
  virtual std::optional<Place> place_of(const SourceTensor& tensor, int64_t row, DType as) const {
    static_cast<void>(tensor), static_cast<void>(row), static_cast<void>(as);
    return std::nullopt;
  }
};

/// `path`: an HF directory or a .gguf (any part of a split one). Throws Error{not_found, bad_input, unsupported}.
std::unique_ptr<Source> open_source(const fs::path& path);

/// What kind of MODEL a path is.
enum class ModelKind { hf_directory, gguf, rank_checkpoint };
/// Throws Error{not_found} or Error{bad_input} "… is neither …".
ModelKind model_kind(const fs::path& path);

}  // namespace firstlight
