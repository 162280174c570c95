// SPDX-License-Identifier: Apache-2.0
// A request that failed, or a leaf whose hash is wrong: which bytes, which tensors, and whose fault.
#pragma once
#include <cstdint>
#include <exception>
#include <string>

#include "firstlight/ckpt/load_files.h"
#include "firstlight/ckpt/load_jobs.h"

namespace firstlight {

/// The names of the tensors in bytes [begin, end) of a part's data section, the first four of them.
std::string tensors_in(const ArenaLayout& layout, size_t part, uint64_t begin, uint64_t end);

/// read_failure() of a whole request.
std::exception_ptr job_failure(const LoadJob& job, const RankFiles& files, int64_t result, double deadline_s);

/// Reads the leaf a second time, past the page cache if the file system allows it, and makes the Error{damaged} that
/// names file, byte range and tensors and says whether the storage holds the wrong bytes or only the first read gave
/// them.
std::exception_ptr leaf_failure(const RankFiles& files, size_t part, uint64_t leaf, uint64_t found);

}  // namespace firstlight
