// SPDX-License-Identifier: Apache-2.0
// The text side that a GGUF carries in its metadata, taken from there directly: writing it out as tokenizer.json and
// parsing that again would cost tens of milliseconds of a start.
#pragma once
#include "firstlight/ckpt/source.h"
#include "firstlight/cli/model_text.h"
#include "firstlight/text/tokenizer.h"

namespace firstlight::cli {

/// `source` must be a GGUF.
TokenizerSpec gguf_tokenizer_spec(const Source& source);
ModelText gguf_text(const Source& source);

}  // namespace firstlight::cli
