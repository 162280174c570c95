// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/context.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/base/utf8.h"

namespace firstlight::cli {

void say(const Context& context, std::string_view line) {
  if (context.quiet) return;
  const std::string text = printable(line);
  std::fprintf(stderr, "%s\n", text.c_str());
}

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno(errno, "write", "standard output");
    text.remove_prefix(static_cast<size_t>(n));
  }
}

void print_json(const nlohmann::ordered_json& value) {
  // Text of a model may hold anything: what is not UTF-8 becomes U+FFFD instead of an exception.
  print(value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

void say_failure(bool json, std::string_view kind, std::string_view what) {
  const char* over = ::isatty(STDERR_FILENO) == 1 ? "\r\033[K" : "";  // a progress bar may stand there
  const std::string line = str(over, "firstlight: ", printable(what), "\n");
  static_cast<void>(!::write(STDERR_FILENO, line.data(), line.size()));
  if (!json) return;
  try {
    print_json({{"error", {{"kind", kind}, {"message", what}}}});
  } catch (const Error&) {  // stdout is gone: the exit code says enough
  }
}

uint64_t parse_size(std::string_view text, std::string_view option) {
  const auto refuse = [&]() -> uint64_t {
    throw Error(ErrorKind::bad_input,
                str(option, ": '", text, "' is not a size; write 2GiB, 512MB or a number of bytes"));
  };
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || !(number >= 0)) refuse();
  std::string unit(end, text.data() + text.size());
  while (!unit.empty() && unit.front() == ' ') unit.erase(0, 1);
  static constexpr struct {
    std::string_view name;
    double bytes;
  } kUnits[] = {{"", 1},       {"B", 1},        {"k", 1024.0},   {"K", 1024.0},   {"M", 0x1p20},   {"G", 0x1p30},
                {"T", 0x1p40}, {"KiB", 1024.0}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"kB", 1e3},
                {"KB", 1e3},   {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12}};
  for (const auto& known : kUnits) {
    if (unit == known.name) {
      const double bytes = number * known.bytes;
      if (bytes >= 0x1p63) refuse();
      return static_cast<uint64_t>(std::llround(bytes));
    }
  }
  return refuse();
}

struct ProgressBar::Impl {
  using Clock = std::chrono::steady_clock;
  bool active = false;
  Clock::time_point start = Clock::now();
  Clock::time_point drawn = start;
  std::mutex mutex;
  bool visible = false;
  std::string what;
  uint64_t base = 0;  // bytes already there when this phase was first seen: they must not flatter the rate
};

ProgressBar::ProgressBar(const Context& context) : impl_(std::make_unique<Impl>()) {
  impl_->active = !context.quiet && isatty(STDERR_FILENO) == 1;
}

ProgressBar::~ProgressBar() { clear(); }

void ProgressBar::clear() {
  if (!impl_->active) return;
  const std::lock_guard lock(impl_->mutex);
  if (impl_->visible) std::fputs("\r\033[K", stderr);
  impl_->visible = false;
}

void ProgressBar::update(std::string_view what, uint64_t done, uint64_t total) {
  Impl& p = *impl_;
  if (!p.active || total == 0) return;
  const std::lock_guard lock(p.mutex);
  const auto now = Impl::Clock::now();
  if (p.what != what) {
    p.what = what;
    p.start = now;
    p.base = done;
  }
  const double elapsed = std::chrono::duration<double>(now - p.start).count();
  if (elapsed < 1 || now - p.drawn < std::chrono::milliseconds(100)) return;
  p.drawn = now;
  const double rate = static_cast<double>(done - p.base) / elapsed;
  const double share = static_cast<double>(done) / static_cast<double>(total);
  constexpr int kWidth = 24;
  std::string bar;
  for (int i = 0; i < kWidth; ++i) bar += i < share * kWidth ? "█" : " ";
  std::string left = rate > 0 ? human_seconds(static_cast<double>(total - done) / rate) + " left" : "";
  std::fprintf(stderr, "\r\033[K%s %3.0f %% ▕%s▏ %s of %s, %s/s, %s", p.what.c_str(), 100 * share, bar.c_str(),
               human_bytes(static_cast<double>(done)).c_str(), human_bytes(static_cast<double>(total)).c_str(),
               human_bytes(rate).c_str(), left.c_str());
  std::fflush(stderr);
  p.visible = true;
}

}  // namespace firstlight::cli
