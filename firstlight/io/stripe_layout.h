// SPDX-License-Identifier: Apache-2.0
// Over which storage targets (OSTs) the bytes of a file on Lustre are spread, as the program lfs tells.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "firstlight/io/file.h"

namespace firstlight {

/// Bytes [begin, end) of a file: stripe i, counted from byte 0 of the file, is on targets[i % targets.size()].
struct StripedExtent {
  uint64_t begin = 0, end = UINT64_MAX;
  uint64_t stripe_bytes = 0;
  std::vector<int> targets;  ///< empty: nothing has been written there
};

/// Of one file. A plain layout has one extent, a progressive one several; no extents: not known.
struct StripeLayout {
  std::vector<StripedExtent> extents;
  /// The target that holds the byte, −1 if that is not known.
  int target_of(uint64_t offset) const;
  /// How many different targets hold bytes of the file.
  size_t n_targets() const;
};

/// By path, as `lfs getstripe FILE …` names it.
using StripeLayouts = std::map<std::string, StripeLayout, std::less<>>;

/// What `lfs getstripe FILE …` has printed, plain and progressive layouts. Strict: a number that is none, a count of
/// targets that does not match the list, extents that overlap, a mirrored file or a pattern other than raid0 is
/// Error{unsupported} naming the line; other keys are passed over.
StripeLayouts parse_getstripe(std::string_view text);

struct FoundLayouts {
  StripeLayouts layouts;
  std::string why_not;  ///< why there are none although it is Lustre: lfs does not run, …
};
/// Runs `lfs` once for all files, if they lie on Lustre; else there are none, and nothing to say. Never throws.
FoundLayouts find_stripe_layouts(const std::vector<std::string>& files, const std::string& lfs = "lfs");
/// The same without asking where they lie.
FoundLayouts ask_stripe_layouts(const std::vector<std::string>& files, const std::string& lfs);

/// For a report: "; reads spread over 32 Lustre targets", "; Lustre layout not known: …", "" where it is no Lustre.
std::string describe(const FoundLayouts& found);

/// What a program prints on standard output; "" if it cannot be started or fails. Never through a shell.
std::string output_of_program(const std::vector<std::string>& command);

}  // namespace firstlight
