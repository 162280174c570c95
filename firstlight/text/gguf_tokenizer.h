// SPDX-License-Identifier: Apache-2.0
// The tokenizer in a GGUF's metadata, without the GGUF: the fields as they stand there.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "firstlight/text/tokenizer.h"

namespace firstlight {

/// The metadata keys "tokenizer.ggml.…"; what a file lacks stays empty.
struct GgufTokenizerFields {
  std::string model;                ///< "gpt2" (byte-level BPE) or "llama" (SentencePiece by scores)
  std::string pre;                  ///< "gpt-2", "smollm", "llama-bpe", "qwen2", …; of no meaning for "llama"
  StringTable tokens;               ///< by id
  std::vector<float> scores;        ///< by id; needed for "llama"
  std::vector<int32_t> token_type;  ///< by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  StringTable merges;               ///< one string "left right" a merge, by rank; needed for "gpt2"
  std::optional<int64_t> bos_id, eos_id, unk_id;
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

/// Throws Error{bad_input} for fields that disagree, Error{unsupported} naming an unknown model or `pre`.
TokenizerSpec make_gguf_tokenizer_spec(GgufTokenizerFields fields);

}  // namespace firstlight
