// SPDX-License-Identifier: Apache-2.0
// A leaf whose hash is wrong: which bytes, which tensors, and whose fault.
#pragma once
#include <cstdint>
#include <exception>
#include <string>

#include "firstlight/ckpt/load_files.h"

namespace firstlight {

/// The names of the tensors in bytes [begin, end) of a part's data section, the first four of them.
std::string tensors_in(const ArenaLayout& layout, size_t part, uint64_t begin, uint64_t end);

/// Reads the leaf a second time, past the page cache if the file system allows it, and makes the Error{damaged} that
/// names file, byte range and tensors and says whether the storage holds the wrong bytes or only the first read gave
/// them.
std::exception_ptr leaf_failure(const RankFiles& files, size_t part, uint64_t leaf, uint64_t found);

}  // namespace firstlight
