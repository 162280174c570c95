// SPDX-License-Identifier: Apache-2.0
// firstlight bench load --peers: other loaders' time for the same checkpoint, each in fresh Python processes.
#pragma once
#include <stop_token>
#include <string>
#include <vector>

#include "firstlight/ckpt/manifest.h"
#include "firstlight/cli/bench_load.h"

namespace firstlight::cli {

class Peers {
 public:
  /// Tries each loader once on the checkpoint's files: tp 1's, of which each of `tp` ranks takes its share. `gpu`: into
  /// GPUs 0 to tp - 1, else host memory. Blocks for as long as that takes. Throws Error{not_found} if there is no
  /// `python`, or no tp 1 stored; Interrupted.
  Peers(Context& context, const fs::path& out, const Manifest& manifest, const std::string& python, int tp, bool gpu);
  /// Of those that gave every byte; with a warm page cache, nothing verified. run() throws Error{device} with the
  /// loader's last words if it fails now. They borrow this object.
  const std::vector<BenchSeries>& series() const { return series_; }
  /// Why the others are not among them, a sentence each.
  const std::string& note() const { return note_; }

 private:
  /// What is run for them (bench/load_peers.py, inside the program), as a temporary file.
  struct Script {
    Script();
    ~Script();
    Script(const Script&) = delete;
    Script& operator=(const Script&) = delete;
    std::string path;
  };
  struct Once {
    double seconds = 0;
    uint64_t bytes = 0;
    std::string version;
  };
  Once load_once(const std::string& loader) const;

  std::string python_;
  Script script_;
  std::stop_token stop_;
  std::vector<std::string> files_;
  int tp_;
  bool gpu_;
  std::vector<BenchSeries> series_;
  std::string note_;
};

}  // namespace firstlight::cli
