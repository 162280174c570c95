// SPDX-License-Identifier: Apache-2.0
// The shapes of well-known models, as their config.json files on the Hugging Face hub give them.
#pragma once
#include <string>
#include <string_view>

namespace firstlight {

/// A config.json (bf16) for a name of synth_names(). Throws Error{bad_input} with the list for another.
std::string synth_config(std::string_view name);

}  // namespace firstlight
