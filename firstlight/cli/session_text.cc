// SPDX-License-Identifier: Apache-2.0
// What a session reads beside the weights: the text side, and the small files.
#include "firstlight/base/start_thread.h"
#include "firstlight/ckpt/checked_files.h"
#include "firstlight/cli/session.h"

namespace firstlight::cli {

void Session::start_text(TextFiles files) {
  text_future_ = start_future("the tokenizer", [this, files = std::move(files)] {
    const Timeline::Scope scope(&context_->timeline, "tokenizer");
    return load_text(files);
  });
}

/// "Verified" is to mean all that a start depends on and what lies beside it: the small files of OUT, and the ranks'
/// own configs and indices, which other readers open. SmolLM2: 0.1 ms (median of 40 on a busy machine) of a thread
/// beside the load; tokenizer.json and its image, 2.0 and 1.2 MB, the text side hashes itself.
void Session::start_small_files(const fs::path& out, int tp, bool with_text) {
  small_files_ = start_future("small files", [this, out, tp, with_text] {
    const Timeline::Scope scope(&context_->timeline, "verify small files");
    for (const auto& [name, file] : manifest_->files) {
      const bool read_as_text = with_text && (name == "tokenizer.json" || name == kTokenizerImage);
      if (!read_as_text && is_small_file_of(*manifest_, tp, name)) read_listed(out, *manifest_, name);
    }
  });
}

ModelText& Session::text() {
  if (!text_) text_ = text_future_.get();
  if (small_files_.valid()) small_files_.get();
  return *text_;
}

}  // namespace firstlight::cli
