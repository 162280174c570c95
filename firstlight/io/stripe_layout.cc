// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/stripe_layout.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <utility>

#include "firstlight/base/child.h"
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/mount.h"

namespace firstlight {

namespace {

constexpr int kMostTargets = 1 << 16;

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  return begin == std::string_view::npos ? std::string_view()
                                         : text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
}

/// The first word, which is taken off `text`.
std::string_view next_word(std::string_view& text) {
  text = trimmed(text);
  const std::string_view word = text.substr(0, text.find_first_of(" \t"));
  text.remove_prefix(word.size());
  return word;
}

/// Takes in one line after the other. A file begins with a line that is its path; keys follow, and objects, one a line:
/// "- 0: { l_ost_idx: 3, …" in a progressive layout, "3  5  0x5  0" below "obdidx" in a plain one.
class LayoutParser {
 public:
  void take(std::string_view line) {
    line_ = line;
    const std::string_view text = trimmed(line);
    if (text.empty()) return;
    if (line.front() == '/') return begin_file(text);
    if (text.starts_with("obdidx")) {
      in_table_ = true;
    } else if (in_table_) {
      std::string_view left = text;
      add_target(next_word(left));
    } else if (text.starts_with("- ")) {
      take_object(text);
    } else if (const size_t colon = text.find(':'); colon != std::string_view::npos) {
      take_key(text.substr(0, colon), trimmed(text.substr(colon + 1)));
    }
  }

  StripeLayouts end() {
    end_file();
    return std::move(layouts_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw Error(ErrorKind::unsupported, str("lfs getstripe: '", trimmed(line_), "': ", what));
  }

  int64_t number(std::string_view text, int64_t least, int64_t most) const {
    int64_t value = 0;
    const auto [end, wrong] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (wrong != std::errc() || end != text.data() + text.size() || value < least || value > most)
      fail(str("expected a number from ", least, " to ", most));
    return value;
  }

  void begin_file(std::string_view path) {
    end_file();
    path_ = path;
    if (layouts_.contains(path_)) fail("the file is named twice");
  }

  void end_file() {
    end_extent();
    if (path_.empty()) return;
    if (extents_.empty()) fail(str("nothing is said of '", path_, "'"));
    layouts_[path_].extents = std::exchange(extents_, {});
    path_.clear();
    in_table_ = composite_ = false;
  }

  StripedExtent& extent() {
    if (path_.empty()) fail("it stands before any file");
    if (!extent_) extent_.emplace();
    return *extent_;
  }

  void end_extent() {
    if (!extent_) return;
    const uint64_t before = extents_.empty() ? 0 : extents_.back().end;
    if (extent_->begin != before || extent_->end <= extent_->begin) fail("extents do not follow each other from 0 on");
    if (extent_->stripe_bytes == 0) fail(str("no stripe size of '", path_, "'"));
    if (!extent_->targets.empty() && n_targets_ != static_cast<int64_t>(extent_->targets.size()))
      fail(str(n_targets_, " stripes, but ", extent_->targets.size(), " objects are listed of '", path_, "'"));
    if (extent_->targets.empty() && !composite_) fail(str("no object is listed of '", path_, "'"));
    extents_.push_back(std::move(*extent_));
    extent_.reset();
  }

  void take_key(std::string_view key, std::string_view value) {
    if (key == "lcme_id") {  // a part of a progressive layout begins
      end_extent();
      composite_ = true;
      extent();
    } else if (key == "lcme_extent.e_start") {
      extent().begin = static_cast<uint64_t>(number(value, 0, INT64_MAX));
    } else if (key == "lcme_extent.e_end") {
      extent().end = value == "EOF" ? UINT64_MAX : static_cast<uint64_t>(number(value, 1, INT64_MAX));
    } else if (key == "lcm_mirror_count" && number(value, 0, 1 << 16) > 1) {
      fail("the file is mirrored: which copy is read is not known");
    } else if (key == "lmm_stripe_count") {
      extent();
      n_targets_ = number(value, -1, kMostTargets);
    } else if (key == "lmm_stripe_size") {
      extent().stripe_bytes = static_cast<uint64_t>(number(value, 1 << 16, int64_t{1} << 40));
    } else if (key == "lmm_pattern" && value != "raid0" && value != "mdt") {
      fail("expected the pattern raid0");
    } else if (key == "lmm_pattern" && value == "mdt") {
      fail("the bytes are with the metadata server");
    }
  }

  void take_object(std::string_view text) {
    constexpr std::string_view kIndex = "l_ost_idx:";
    const size_t at = text.find(kIndex);
    if (at == std::string_view::npos) fail("expected l_ost_idx");
    std::string_view left = text.substr(at + kIndex.size());
    std::string_view index = next_word(left);
    if (index.ends_with(',')) index.remove_suffix(1);
    add_target(index);
  }

  void add_target(std::string_view index) {
    std::vector<int>& targets = extent().targets;
    if (static_cast<int>(targets.size()) == kMostTargets) fail("too many objects");
    targets.push_back(static_cast<int>(number(index, 0, kMostTargets)));
  }

  std::string_view line_;
  StripeLayouts layouts_;
  std::string path_;
  std::vector<StripedExtent> extents_;
  std::optional<StripedExtent> extent_;
  int64_t n_targets_ = 0;
  bool in_table_ = false, composite_ = false;
};

}  // namespace

int StripeLayout::target_of(uint64_t offset) const {
  for (const StripedExtent& extent : extents) {
    if (offset < extent.begin || offset >= extent.end) continue;
    return extent.targets.empty() ? -1 : extent.targets[offset / extent.stripe_bytes % extent.targets.size()];
  }
  return -1;
}

size_t StripeLayout::n_targets() const {
  std::set<int> all;
  for (const StripedExtent& extent : extents) all.insert(extent.targets.begin(), extent.targets.end());
  return all.size();
}

StripeLayouts parse_getstripe(std::string_view text) {
  LayoutParser parser;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) parser.take(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return parser.end();
}

FoundLayouts ask_stripe_layouts(const std::vector<std::string>& files, const std::string& lfs) {
  std::vector<std::string> command{lfs, "getstripe"};
  for (const std::string& file : files) command.push_back(fs::absolute(file).native());
  const std::string told = output_of_program(command);
  if (told.empty()) return {{}, "lfs is not installed, or failed"};
  try {
    FoundLayouts found{parse_getstripe(told), ""};
    for (size_t i = 2; i < command.size(); ++i) {
      if (!found.layouts.contains(command[i])) return {{}, str("lfs getstripe does not name '", command[i], "'")};
    }
    return found;
  } catch (const Error& e) {
    return {{}, e.what()};
  }
}

FoundLayouts find_stripe_layouts(const std::vector<std::string>& files, const std::string& lfs) {
  if (files.empty() || !lies_on_lustre(files[0])) return {};
  return ask_stripe_layouts(files, lfs);
}

std::string describe(const FoundLayouts& found) {
  if (!found.why_not.empty()) return str("; Lustre layout not known (", found.why_not, "): reads in plain order");
  if (found.layouts.empty()) return "";
  size_t most = 0;
  for (const auto& [path, layout] : found.layouts) most = std::max(most, layout.n_targets());
  return str("; reads spread over ", most, most == 1 ? " Lustre target of a file" : " Lustre targets of a file");
}

std::string output_of_program(const std::vector<std::string>& command) {
  try {
    const ChildEnd end = run_child(command.at(0), command);
    return end.exit_code == 0 ? end.out : "";
  } catch (const Error&) {  // there is no such program
    return "";
  }
}

}  // namespace firstlight
