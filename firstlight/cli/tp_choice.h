// SPDX-License-Identifier: Apache-2.0
// How many ranks, where nobody says.
#pragma once
#include <filesystem>
#include <vector>

namespace firstlight::cli {

/// The tps for which `model` has a directory "tpN", ascending; none: no rank checkpoint. Only a guess at what the
/// manifest will say, made before it is read.
std::vector<int> stored_tps(const std::filesystem::path& model);

/// The largest of `tps` (ascending) that has a GPU for each rank, else the smallest; 1 if there are none.
int tp_for(const std::vector<int>& tps, int n_gpus);

}  // namespace firstlight::cli
