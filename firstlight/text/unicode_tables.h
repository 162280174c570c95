// SPDX-License-Identifier: Apache-2.0
// The generated tables as they stand in unicode_class_table.cc and unicode_nfc_table.cc. For unicode.cc and nfc.cc
// only.
#pragma once
#include <cstddef>
#include <cstdint>

namespace firstlight {

/// Runs of (length << 8 | CharClass bits) from U+0000 to U+10FFFF.
extern const uint32_t kCharClassRuns[];
extern const size_t kNumCharClassRuns;

/// Records in order of code point: (difference to the last record's code point) << 4 | composes_again << 3 | n, then n
/// code points. A record that composes again holds one level (a pair); the others hold the full decomposition.
extern const uint32_t kDecompositions[];
extern const size_t kNumDecompositionWords;

/// In order of code point: (difference to the last code point) << 8 | canonical combining class.
extern const uint32_t kCombiningClasses[];
extern const size_t kNumCombiningClasses;

}  // namespace firstlight
