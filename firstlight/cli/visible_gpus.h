// SPDX-License-Identifier: Apache-2.0
// Which GPUs a command will need, told before the driver is asked: it makes contexts one after another, and a context
// takes 0.23 s where one GPU is visible, 0.33 s where two are.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace firstlight::cli {

/// The GPUs that this process would see, as CUDA_VISIBLE_DEVICES names them: its entries if it is set (up to the first
/// that is empty or negative, as CUDA reads it), else one for each device file nvidia0, nvidia1, … in `devices`.
std::vector<std::string> visible_gpus(const std::optional<std::string>& variable,
                                      const std::filesystem::path& devices = "/dev");

/// The tps for which `model` has a directory "tpN", ascending; none: no rank checkpoint. Only a guess at what the
/// manifest will say.
std::vector<int> stored_tps(const std::filesystem::path& model);

/// The largest of `tps` (ascending) that has a GPU for each rank, else the smallest; 1 if there are none.
int tp_for(const std::vector<int>& tps, int n_gpus);

/// How many GPUs, from the first, `device` ("auto", "cuda", "cuda:N") asks for with `tp` ranks. "cpu": 0.
int gpus_needed(std::string_view device, int tp);

/// Hides all but the first n of `visible` from this process's driver. Before the first call of CUDA and of a thread.
void show_gpus(const std::vector<std::string>& visible, int n);

}  // namespace firstlight::cli
