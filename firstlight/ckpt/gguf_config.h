// SPDX-License-Identifier: Apache-2.0
// A GGUF's metadata as a ModelConfig, and as the JSON files that a Hugging Face directory would have.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/ckpt/gguf.h"
#include "firstlight/ckpt/model_config.h"

namespace firstlight {

/// Throws Error{bad_input} for missing or impossible values and Error{unsupported}, by name, for other architectures,
/// experts, yarn, sliding windows shorter than the context, and scalings that the Llama family does not have. `dtype`
/// is f32 or f16 if all tensors are, else bf16. The values of a tensor rope_freqs.weight, if there is one, go to
/// `rope_factors`.
ModelConfig gguf_model_config(const GgufMetadata& metadata, const std::vector<GgufTensor>& tensors,
                              std::span<const float> rope_factors);

/// Llama 3.1's scaling from the factors that llama.cpp's converter stored in rope_freqs.weight (one a rotary pair).
/// Known are factor 8 (Llama 3.1) and 32 (Llama 3.2), low 1, high 4, original context 8192; others →
/// Error{unsupported}.
RopeScaling recover_rope_scaling(std::span<const float> factors, double theta, int head_dim);

/// Every token that ends a text: eos, eot and eom of the metadata; sorted, unique.
std::vector<int> gguf_stop_tokens(const GgufMetadata& metadata);

std::string make_config_json(const ModelConfig& config, const GgufMetadata& metadata);
std::string make_generation_config_json(const ModelConfig& config, const GgufMetadata& metadata);

}  // namespace firstlight
