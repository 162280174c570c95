// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/bench_peers.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>

#include "firstlight/base/child.h"
#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/session.h"
#include "firstlight/io/descriptor.h"

namespace firstlight::cli {

namespace {

constexpr const char* kLoaders[] = {"safetensors", "fastsafetensors", "instanttensor-mmap", "instanttensor-buffered",
                                    "runai"};

constexpr std::string_view kScript =
#include "firstlight/cli/load_peers.inc"  // made of bench/load_peers.py
    ;

void write_script(std::string& path) {
  const Descriptor file(::mkostemps(path.data(), 3, O_CLOEXEC));
  if (file.get() < 0) throw_errno(errno, "make", path);
  for (size_t at = 0; at < kScript.size();) {
    const ssize_t n = ::write(file.get(), kScript.data() + at, kScript.size() - at);
    if (n < 0 && errno != EINTR) throw_errno(errno, "write", path);
    if (n > 0) at += static_cast<size_t>(n);
  }
}

std::string last_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.find_last_of('\n') + 1);
}

/// What a Python program died of: the first line that names an error (a launcher of ranks says more behind it), else
/// the last.
std::string error_line(const std::string& text) {
  const size_t at = text.find("Error: ");
  if (at == std::string::npos) return last_line(text);
  const size_t begin = text.rfind('\n', at) + 1;
  return text.substr(begin, text.find('\n', at) - begin);
}

}  // namespace

Peers::Peers(Context& context, const fs::path& out, const Manifest& manifest, const std::string& python, int tp,
             bool gpu)
    : python_(python), stop_(context.stop), tp_(gpu ? tp : 1), gpu_(gpu) {
  const ManifestTp* whole = manifest.find_tp(1);
  if (whole == nullptr)
    throw Error(ErrorKind::not_found, "--peers: they load whole checkpoints, and tp 1 is not stored");
  const uint64_t bytes = whole->ranks.at(0).total_bytes();
  for (const ManifestPart& part : whole->ranks.at(0).parts) files_.push_back((out / part.file).native());
  for (const char* loader : kLoaders) {
    say(context, str("peer: ", loader, " …"));
    try {
      const Once once = load_once(loader);
      if (tp_ == 1 && once.bytes != bytes) {
        throw Error(ErrorKind::device, str("it gave ", once.bytes, " bytes of tensors, the files hold ", bytes));
      }
      say(context, str("  ", loader, " ", once.version, ": ", human_bytes(static_cast<double>(bytes) / once.seconds),
                       "/s, its first load, not counted"));
      series_.push_back({str(loader, " ", once.version, tp_ > 1 ? str(", ", tp_, " ranks") : ""), "warm", "off", false,
                         bytes, [this, loader] { return load_once(loader).seconds; }});
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::device) throw;
      note_ += str("Not measured: ", loader, " (", e.what(), "). ");
    }
  }
}

Peers::Script::Script() : path((fs::temp_directory_path() / "firstlight-peers-XXXXXX.py").native()) {
  write_script(path);
}

Peers::Script::~Script() { ::unlink(path.c_str()); }

Peers::Once Peers::load_once(const std::string& loader) const {
  std::vector<std::string> arguments{python_};
  if (tp_ > 1) {
    for (const std::string& word : {std::string("-m"), std::string("torch.distributed.run"),
                                    std::string("--standalone"), str("--nproc-per-node=", tp_)}) {
      arguments.push_back(word);
    }
  }
  for (const std::string& word : {script_.path, loader, std::string(gpu_ ? "cuda" : "cpu")}) arguments.push_back(word);
  arguments.insert(arguments.end(), files_.begin(), files_.end());
  if (stop_.stop_requested()) throw Interrupted();
  const ChildEnd end = run_child(python_, arguments, /*with_stderr=*/true);
  if (stop_.stop_requested()) throw Interrupted();  // Ctrl-C reached the child, too
  const auto told = nlohmann::ordered_json::parse(last_line(end.out), nullptr, false);
  if (told.is_object() && told.contains("refused"))
    throw Error(ErrorKind::device, told.at("refused").get<std::string>());
  if (end.exit_code != 0 || !told.is_object()) {
    const std::string words = error_line(end.err);
    throw Error(ErrorKind::device, words.empty() ? str("exit code ", end.exit_code) : words);
  }
  return {told.at("seconds").get<double>(), told.at("bytes").get<uint64_t>(), told.at("version").get<std::string>()};
}

}  // namespace firstlight::cli
