// SPDX-License-Identifier: Apache-2.0
// Synthetic weights as a Source that lies nowhere: `shard` writes a rank checkpoint of them in one go.
#pragma once
#include <memory>
#include <string>

#include "firstlight/ckpt/shard.h"
#include "firstlight/ckpt/source.h"

namespace firstlight {

/// The config.json of the options: of a known model or their own text, with their number of layers. Throws
/// Error{unsupported} if it does not say bf16.
std::string synth_config(const SynthOptions& options);

/// The same values as synth() writes, element by element. With dtype f8_e4m3 the layers' matrices have that type, and
/// embedding, lm_head, norms and biases are bf16; read_rows() gives each tensor's own type only.
std::unique_ptr<Source> synth_source(const SynthOptions& options);

}  // namespace firstlight
