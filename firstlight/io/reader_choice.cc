// SPDX-License-Identifier: Apache-2.0
#include "firstlight/io/reader_choice.h"

#include <sys/utsname.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/io/direct_file.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/request_order.h"
#include "firstlight/io/uring_reader.h"

namespace firstlight {

namespace {

constexpr double kWarm = 0.9;                   // from here on the page cache is read, whatever the storage can do
constexpr double kAhead = 1.05;                 // past the page cache must win by this: pread leaves the files in it
constexpr uint64_t kWorthMeasuring = 3u << 29;  // 96 MiB of probe are 6 % of it
// Cold and not measured: past the page cache reads were 1.5 to 2 times as fast on all disks tried so far
// (docs/performance.md), so that they win while less than a third is cached.
constexpr double kUntriedLead = 1.5;
bool is_cold_enough(double cached) { return kUntriedLead * (1 - cached) > kAhead; }

constexpr int kLeastInFlight = 32, kMostInFlight = 256;  // 128 MiB, 1 GiB
constexpr uint64_t kPlannedRequest = 4u << 20;           // as a load to the CPU asks; one to a GPU has its ring's slots

std::string rate(double bytes_per_s) { return human_bytes(bytes_per_s) + "/s"; }

std::string date(int64_t unix_s) {
  const auto t = static_cast<time_t>(unix_s);
  struct tm parts {};
  gmtime_r(&t, &parts);
  std::array<char, 32> text{};
  strftime(text.data(), text.size(), "%Y-%m-%d", &parts);
  return text.data();
}

/// What each gave, and why pread is taken although another gave more.
std::string said(const ReaderSpeeds& speeds, ReaderKind taken, const std::string& basis) {
  const auto one = [](const char* name, double speed) { return speed < 0 ? "" : str(name, rate(speed), ", "); };
  std::string text = str(one("cufile ", speeds.cufile), one("io_uring ", speeds.io_uring),
                         one("pread past the page cache ", speeds.pread_direct), "pread ", rate(speeds.pread), ", ");
  if (speeds.latency_s != 0) text += one("32 reads under way ", speeds.deep);
  text += basis;
  if (taken == ReaderKind::pread && std::max(speeds.past_cache(), speeds.cufile) > speeds.pread)
    text += "; pread is taken: it finds again what is cached, and leaves there what it reads";
  return text;
}

/// Of the bytes that are cached pread needs next to no time; the others read them like all.
ReaderChoice decide(const ReaderSpeeds& speeds, double cached, const std::string& found, const std::string& basis) {
  const ReaderKind past_cache = speeds.uring_is_faster() ? ReaderKind::io_uring : ReaderKind::pread_direct;
  const double past = speeds.past_cache();
  ReaderChoice choice;
  double best = speeds.pread;
  for (const auto& [other, speed] : {std::pair{past_cache, past}, {ReaderKind::cufile, speeds.cufile}}) {
    if (speed * (1 - cached) <= kAhead * best) continue;
    choice.kind = other;
    best = speed * (1 - cached);
  }
  choice.why = str(found, "; ", said(speeds, choice.kind, basis));
  if (speeds.latency_s == 0) return choice;
  choice.in_flight =
      requests_in_flight(std::max(past, 0.0), speeds.latency_s, kPlannedRequest, kLeastInFlight, kMostInFlight);
  choice.why += str("; a read takes ", human_seconds(speeds.latency_s), ": ", choice.in_flight, " under way");
  return choice;
}

/// "", or why `direct` gives no reader now.
std::string why_no_cufile(const DirectReads& direct) {
  try {
    direct.make()->wait_until_ready();
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

/// Cold files that are not worth a measurement, on storage that was not measured.
ReaderChoice choose_unmeasured(const ReaderCandidates& candidates, double cached, const std::string& found,
                               const std::string& what) {
  const std::string few = str(found, "; ", what, " are too few to measure: ");
  if (!candidates.pread_direct) return {ReaderKind::pread, few + "pread is taken"};
  if (!is_cold_enough(cached)) return {ReaderKind::pread, few + "pread is taken where so much is cached"};
  if (candidates.io_uring) return {ReaderKind::io_uring, few + "io_uring is taken for cold files"};
  return {ReaderKind::pread_direct, few + "pread past the page cache is taken for cold files"};
}

std::string why_no_direct_read(std::span<const std::shared_ptr<const File>> files) {
  return files.empty() ? "there is nothing to read" : DirectFile(files[0]).why_not();
}

}  // namespace

std::string speed_key(const Mount& mount) {
  utsname system{};
  uname(&system);
  return str(mount.type, " ", mount.source, " ", system.nodename, " ", system.release);
}

ReaderChoice choose_pread(std::span<const std::shared_ptr<const File>> files, const std::string& why, bool buffered) {
  ReaderChoice choice{.kind = ReaderKind::pread, .why = why};
  const std::optional<Residency> cached = sample_residency(files);
  if (!cached || cached->cached >= kWarm) return choice;
  choice.cold = true;
  if (!buffered && is_cold_enough(cached->cached) && why_no_direct_read(files).empty())
    choice.kind = ReaderKind::pread_direct;
  return choice;
}

ReaderChoice ReaderChooser::choose(std::span<const std::shared_ptr<const File>> files) const {
  const std::optional<Residency> cached = residency ? residency() : sample_residency(files);
  if (!cached) return {ReaderKind::pread, "the kernel does not tell what the page cache holds"};
  const std::string found =
      str("page cache: ", std::lround(100 * cached->cached), " % of ", cached->n_samples, " samples");
  if (cached->cached >= kWarm) {
    const bool memory_alone = !files.empty() && lies_in_memory(*files[0]);
    return {ReaderKind::pread, found + (memory_alone ? "; the file system is memory (tmpfs)" : "")};
  }
  ReaderChoice choice = choose_cold(files, cached->cached, found);
  choice.cold = true;
  return choice;
}

ReaderChoice ReaderChooser::choose_cold(std::span<const std::shared_ptr<const File>> files, double cached,
                                        const std::string& found) const {
  const std::string no_uring = why_no_uring ? why_no_uring() : why_no_io_uring(),
                    why_not = why_no_direct ? why_no_direct() : why_no_direct_read(files);
  if (!why_not.empty() && !direct) return {ReaderKind::pread, str(found, "; ", why_not)};

  const Mount mount = mount_of(files[0]->path());
  const std::string where = str(mount.type, " ", mount.source), key = speed_key(mount);
  const SpeedMemory remembered(memory);
  const auto now = static_cast<int64_t>(time(nullptr));
  const std::string about_uring = no_uring.empty() ? "" : "; io_uring: " + no_uring;
  std::string note;
  const ReaderCandidates candidates{.n_threads = n_threads,
                                    .io_uring = why_not.empty() && no_uring.empty(),
                                    .pread_direct = why_not.empty(),
                                    .direct = direct ? &*direct : nullptr};
  const auto covers = [&](const ReaderSpeeds& speeds) {
    return (!candidates.io_uring || speeds.io_uring >= 0) && (!candidates.pread_direct || speeds.pread_direct >= 0) &&
           (!direct || speeds.cufile >= 0);
  };
  if (auto before = remembered.recall(key, now, note); before && covers(before->speeds)) {
    const std::string basis =
        str("measured on ", where, " on ", date(before->unix_s), " ('", memory.native(), "')", about_uring);
    ReaderSpeeds& speeds = before->speeds;
    if (!direct) speeds.cufile = kNotMeasured;
    if (!candidates.io_uring) {
      if (speeds.uring_is_faster()) speeds.deep = speeds.latency_s = 0;  // these were its own
      speeds.io_uring = kNotMeasured;
    }
    if (!candidates.pread_direct) speeds.pread_direct = kNotMeasured;
    const ReaderChoice choice = decide(speeds, cached, found, basis);
    if (choice.kind != ReaderKind::cufile) return choice;
    const std::string why = why_no_cufile(*direct);
    if (why.empty()) return choice;
    speeds.cufile = 0;
    return decide(speeds, cached, found, str(basis, "; cufile then, not now: ", why));
  }
  if (!note.empty()) note = "; " + note;
  note += about_uring;
  if (!why_not.empty()) note += "; " + why_not;
  uint64_t total = 0;
  for (const auto& file : files) total += file->size();
  if (total < kWorthMeasuring) {
    ReaderChoice choice =
        choose_unmeasured(candidates, cached, found, str(human_bytes(static_cast<double>(total)), " on ", where));
    choice.why += note;
    return choice;
  }
  const auto speeds = measure ? measure() : measure_readers(files, candidates, stop, note);
  if (!speeds) return {ReaderKind::pread, str(found, "; not enough cold bytes to measure readers on ", where, note)};
  const std::string failed = remembered.remember(key, {*speeds, now});
  if (!failed.empty()) note += "; not remembered: " + failed;
  return decide(*speeds, cached, found, str("measured now on ", where, note));
}

// Buffered reads of a cold file (2.5 GB, a disk that gives 2.8 to 3.0 GB/s to O_DIRECT; read-ahead of 128 KiB is what
// one has under way): 2 threads 0.23 GB/s, 8 1.0 to 1.3, 32 2.4 to 3.2. Asking for 64 MiB ahead by fadvise: 0.8 to 1.2.
std::unique_ptr<Reader> make_reader(const ReaderChoice& choice, int n_threads, int n_readers) {
  const int in_flight = std::max(1, choice.in_flight / std::max(1, n_readers));
  if (choice.kind != ReaderKind::io_uring) {
    constexpr int kMostThreads = 64;
    constexpr uint64_t kDirectFrom = 256u << 10;  // headers and hashes lie in the page cache since the last start
    const bool direct = choice.kind == ReaderKind::pread_direct;
    const int sleeping = choice.cold || direct ? std::min(in_flight, kMostThreads) : 0,
              threads = std::max(sleeping, n_threads);
    const std::string why =
        threads > n_threads ? str(choice.why, "; ", threads, " threads wait for storage") : choice.why;
    return std::make_unique<PreadReader>(threads, nullptr, direct ? PreadReader::kDirectName : "pread", why,
                                         direct ? kDirectFrom : PreadReader::kNeverDirect);
  }
  UringOptions options;
  options.n_threads = std::clamp(n_threads, 1, 8);
  options.depth = std::max(1, in_flight / options.n_threads);
  options.why = choice.why;
  return make_uring_reader(options);
}

}  // namespace firstlight
