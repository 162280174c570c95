// SPDX-License-Identifier: Apache-2.0
// A GGUF's tokenizer as the files that Hugging Face's libraries read.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "firstlight/ckpt/gguf.h"

namespace firstlight {

/// tokenizer.json for byte-level BPE ("gpt2") with the pre-tokenizers gpt-2, smollm, llama-bpe and qwen2, and for
/// SentencePiece BPE ("llama"), whose merges follow from its scores. Throws Error{unsupported} naming another model or
/// pre-tokenizer, Error{bad_input} for lists that do not fit together.
std::string make_tokenizer_json(const GgufMetadata& metadata);

/// tokenizer_config.json: class and names of the special tokens.
std::string make_tokenizer_config_json(const GgufMetadata& metadata, int max_context);

/// Whether encoding puts the BOS (EOS) token around a text: the metadata's word, else what llama.cpp does for this kind
/// of tokenizer.
bool gguf_adds_bos(const GgufMetadata& metadata);
bool gguf_adds_eos(const GgufMetadata& metadata);

}  // namespace firstlight
