// SPDX-License-Identifier: Apache-2.0
// How much of a file the page cache holds, by samples.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "firstlight/io/file.h"

namespace firstlight {

struct Residency {
  int n_samples = 0;
  double cached = 0;  ///< share of the sampled bytes, 0 … 1
};

/// Of bytes [offset, offset + size): by cachestat(2), else (kernels before 6.5, and files of other users) by reads that
/// may not wait; those may start read-ahead. Nothing if the file system answers neither.
std::optional<double> cached_share(const File& file, uint64_t offset, uint64_t size);

/// The file system is memory itself (tmpfs, ramfs): there is no storage below it, and its files are the page cache.
bool lies_in_memory(const File& file);

/// Of all files together: samples of 128 KiB spread over them, at most 32 and one a file.
std::optional<Residency> sample_residency(std::span<const std::shared_ptr<const File>> files);

}  // namespace firstlight
