// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/reader_speeds.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <system_error>
#include <thread>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/buffer.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/reader_choice.h"
#include "firstlight/io/residency.h"

namespace firstlight {

namespace {

constexpr uint64_t kTurnBytes = 16u << 20;
constexpr uint64_t kPieceBytes = 2u << 20;         // so that a turn keeps eight requests under way
constexpr uint64_t kPreadBytes = kTurnBytes / 32;  // a piece for each of its threads
constexpr auto kTurnTime = std::chrono::milliseconds(100);
constexpr int64_t kRememberedFor_s = 30 * 24 * 3600;
constexpr const char* kFirstLine = "firstlight readers 6";

struct Extent {
  std::shared_ptr<const File> file;
  uint64_t offset = 0;
};

/// So many stretches of so many bytes that are not in the page cache, far from each other; fewer if there are not.
std::vector<Extent> cold_extents(std::span<const std::shared_ptr<const File>> files, size_t wanted, uint64_t bytes) {
  std::vector<Extent> all, found;
  for (const auto& file : files) {
    for (uint64_t at = 0; at + bytes <= file->size(); at += bytes) all.push_back({file, at});
  }
  for (size_t part = 0; part < wanted; ++part) {
    for (size_t i = all.size() * part / wanted; i < all.size() * (part + 1) / wanted; ++i) {
      const auto cached = cached_share(*all[i].file, all[i].offset, bytes);
      if (!cached || *cached > 0.02) continue;
      found.push_back(all[i]);
      break;
    }
  }
  return found;
}

/// Until pread's threads, which start one another, are there: a turn takes 6 to 8 ms, and a load has them once.
constexpr std::chrono::milliseconds kThreadsStart{2};

/// Bytes that came within the time, and the seconds they took.
struct Turn {
  uint64_t bytes = 0;
  double seconds = 0;
};

Turn read_once(Reader& reader, const Extent& extent, uint64_t size, const Buffer& into,
               uint64_t piece_bytes = kPieceBytes) {
  std::vector<ReadRequest> requests;
  for (uint64_t at = 0; at < size; at += piece_bytes) {
    requests.push_back({requests.size(), extent.file, extent.offset + at, piece_bytes, into.data() + at});
  }
  std::atomic<uint64_t> bytes = 0;
  const auto begin = Reader::Clock::now();
  reader.set_deadline(begin + kTurnTime);
  reader.submit(requests, [&](const ReadCompletion& done) {
    if (done.result > 0) bytes += static_cast<uint64_t>(done.result);
  });
  reader.wait();
  return {bytes, std::chrono::duration<double>(Reader::Clock::now() - begin).count()};
}

/// A reader each turn: what one has given up at its deadline is nobody else's burden.
Turn take_turn(ReaderKind kind, const ReaderCandidates& candidates, const Extent& extent, const Buffer& into) {
  if (kind != ReaderKind::cufile) {
    const auto reader = make_reader({.kind = kind, .why = "measured", .cold = true}, candidates.n_threads);
    std::this_thread::sleep_for(kThreadsStart);
    return read_once(*reader, extent, kTurnBytes, into, kind == ReaderKind::io_uring ? kPieceBytes : kPreadBytes);
  }
  const std::unique_ptr<DeviceReader> reader = candidates.direct->make();
  reader->wait_until_ready();
  const std::array memory{std::span(into.data(), into.size())};
  reader->use_memory(memory);
  const Turn turn = read_once(*reader, extent, kTurnBytes, into);
  if (reader->failure()) std::rethrow_exception(reader->failure());
  return turn;
}

/// Two of the stretches' first pieces alone, the others whole.
void measure_depth(std::span<const std::shared_ptr<const File>> files, ReaderKind kind, int n_threads,
                   ReaderSpeeds& speeds) {
  constexpr uint64_t kDeepBytes = 32 * kPieceBytes;
  const std::vector<Extent> extents = cold_extents(files, 4, kDeepBytes);
  if (extents.size() < 4) return;
  const Buffer into({}, kDeepBytes);
  std::memset(into.data(), 0, into.size());
  const auto reader = make_reader({.kind = kind, .why = "measured", .cold = true}, n_threads);
  Turn lone, deep;
  for (size_t i = 0; i < extents.size(); ++i) {
    const Turn turn = read_once(*reader, extents[i], i < 2 ? kPieceBytes : kDeepBytes, into);
    Turn& sum = i < 2 ? lone : deep;
    sum.bytes += turn.bytes;
    sum.seconds += turn.seconds;
  }
  if (lone.bytes != 2 * kPieceBytes || deep.bytes == 0) return;  // slower than a turn's time: nothing to plan with
  speeds.latency_s = lone.seconds / 2;
  speeds.deep = static_cast<double>(deep.bytes) / deep.seconds;
}

}  // namespace

std::optional<ReaderSpeeds> measure_readers(std::span<const std::shared_ptr<const File>> files,
                                            const ReaderCandidates& candidates, const std::stop_token& stop,
                                            std::string& note) {
  std::vector<ReaderKind> order;
  if (candidates.io_uring) order.push_back(ReaderKind::io_uring);
  if (candidates.pread_direct) order.push_back(ReaderKind::pread_direct);
  order.push_back(ReaderKind::pread);
  if (candidates.direct) order.push_back(ReaderKind::cufile);
  for (size_t i = order.size(); i > 0; --i) order.push_back(order[i - 1]);
  const std::vector<Extent> extents = cold_extents(files, order.size(), kTurnBytes);
  if (extents.size() < order.size()) return std::nullopt;
  const Mount mount = mount_of(files[0]->path());
  for (const auto& file : files) {
    if (is_nfs(mount)) file->turn_off_read_ahead();  // as a load does
  }
  const Buffer in_host({}, kTurnBytes);
  std::memset(in_host.data(), 0, in_host.size());  // its pages are not part of the measurement
  std::map<ReaderKind, Turn> sums;
  std::optional<Buffer> on_device;
  std::string why_no_cufile;
  size_t turn = 0;
  for (const ReaderKind kind : order) {
    if (stop.stop_requested()) throw Interrupted();
    const Extent& extent = extents[turn++];
    if (kind == ReaderKind::cufile && !why_no_cufile.empty()) continue;
    try {
      if (kind == ReaderKind::cufile && !on_device) on_device.emplace(candidates.direct->device, kTurnBytes);
      const Turn one = take_turn(kind, candidates, extent, kind == ReaderKind::cufile ? *on_device : in_host);
      sums[kind].bytes += one.bytes;
      sums[kind].seconds += one.seconds;
    } catch (const Error& e) {
      if (kind != ReaderKind::cufile) throw;
      why_no_cufile = e.what();
    }
  }
  if (!why_no_cufile.empty()) note += "; cufile: " + why_no_cufile;
  const auto speed = [&](ReaderKind kind) {
    const Turn& sum = sums[kind];
    return sum.seconds > 0 ? static_cast<double>(sum.bytes) / sum.seconds : 0;
  };
  ReaderSpeeds speeds;
  speeds.pread = speed(ReaderKind::pread);
  if (candidates.io_uring) speeds.io_uring = speed(ReaderKind::io_uring);
  if (candidates.pread_direct) speeds.pread_direct = speed(ReaderKind::pread_direct);
  if (candidates.direct) speeds.cufile = why_no_cufile.empty() ? speed(ReaderKind::cufile) : 0;
  if (is_network(mount) && speeds.has_past_cache())
    measure_depth(files, speeds.uring_is_faster() ? ReaderKind::io_uring : ReaderKind::pread_direct,
                  candidates.n_threads, speeds);
  return speeds;
}

fs::path SpeedMemory::default_path() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return fs::path(cache) / "firstlight/readers";
  const char* home = std::getenv("HOME");
  if (home != nullptr && home[0] == '/') return fs::path(home) / ".cache/firstlight/readers";
  return {};
}

std::vector<SpeedMemory::Entry> SpeedMemory::read(std::string& why_not) const {
  std::vector<Entry> entries;
  std::error_code failed;
  if (path_.empty() || !fs::exists(path_, failed)) return entries;
  try {
    std::istringstream lines(read_text(path_, 1u << 20));
    std::string line;
    bool good = std::getline(lines, line) && line == kFirstLine;
    while (good && std::getline(lines, line)) {
      std::istringstream words(line);
      Entry entry;
      ReaderSpeeds& speeds = entry.speeds.speeds;
      double latency_us = 0;
      good = words >> speeds.pread >> speeds.io_uring >> speeds.pread_direct >> latency_us >> speeds.deep >>
                 speeds.cufile >> entry.speeds.unix_s &&
             words.get() == ' ' && std::getline(words, entry.key);
      speeds.latency_s = 1e-6 * latency_us;
      for (const double each : {speeds.pread, speeds.latency_s, speeds.deep}) {
        good = good && std::isfinite(each) && each >= 0;
      }
      for (const double each : {speeds.io_uring, speeds.pread_direct, speeds.cufile})
        good = good && std::isfinite(each) && each >= kNotMeasured;
      entries.push_back(std::move(entry));
    }
    if (good) return entries;
    why_not = str("'", path_.native(), "' is not what this program writes there: ignored");
  } catch (const Error& error) {
    why_not = str(error.what(), ": ignored");
  }
  return {};
}

std::optional<RememberedSpeeds> SpeedMemory::recall(const std::string& key, int64_t now_s, std::string& why_not) const {
  for (const Entry& entry : read(why_not)) {
    const int64_t age = now_s - entry.speeds.unix_s;
    if (entry.key == key && age >= 0 && age <= kRememberedFor_s) return entry.speeds;
  }
  return std::nullopt;
}

std::string SpeedMemory::remember(const std::string& key, RememberedSpeeds speeds) const {
  if (path_.empty()) return "there is no home directory";
  std::string ignored;
  std::vector<Entry> entries = read(ignored);
  std::erase_if(entries, [&](const Entry& entry) { return entry.key == key; });
  entries.push_back({key, speeds});
  std::error_code failed;
  fs::create_directories(path_.parent_path(), failed);
  // Renamed into place, so that nobody reads half of it; not fsynced, which a start would have to wait for.
  const fs::path partial = str(path_.native(), ".", ::getpid());
  std::ofstream out(partial, std::ios::trunc);
  out << kFirstLine << "\n";
  for (const Entry& entry : entries) {
    const ReaderSpeeds& is = entry.speeds.speeds;
    out << std::llround(is.pread) << " " << std::llround(is.io_uring) << " " << std::llround(is.pread_direct) << " "
        << std::llround(1e6 * is.latency_s) << " " << std::llround(is.deep) << " " << std::llround(is.cufile) << " "
        << entry.speeds.unix_s << " " << entry.key << "\n";
  }
  out.close();
  if (out) fs::rename(partial, path_, failed);
  if (out && !failed) return "";
  const std::string why = failed ? failed.message() : "it cannot be written";
  fs::remove(partial, failed);
  return str("'", path_.native(), "': ", why);
}

}  // namespace firstlight
