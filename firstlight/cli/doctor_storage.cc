// SPDX-License-Identifier: Apache-2.0
// The doctor's look at the file system of a directory.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <sstream>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/doctor.h"
#include "firstlight/io/descriptor.h"
#include "firstlight/io/direct_file.h"
#include "firstlight/io/reader_choice.h"
#include "firstlight/io/residency.h"
#include "firstlight/io/stripe_layout.h"

namespace firstlight::cli {

namespace {

using State = Finding::State;

std::string section_of(const fs::path& directory) { return "storage " + directory.native(); }

/// A file of 2 MiB that is gone when this is: what a directory's file system can do is found by doing it.
class TrialFile {
 public:
  explicit TrialFile(const fs::path& directory) : path_((directory / str(".firstlight-doctor.", ::getpid())).native()) {
    const Descriptor out(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    why_not_ = out.get() < 0 ? errno : 0;
    made_ = out.get() >= 0;
    if (!made_) return;
    const std::string page(2u << 20, 'x');
    if (::write(out.get(), page.data(), page.size()) != static_cast<ssize_t>(page.size())) why_not_ = EIO;
    if (::fsync(out.get()) != 0) why_not_ = errno;
  }
  ~TrialFile() {
    if (made_) ::unlink(path_.c_str());
  }
  TrialFile(const TrialFile&) = delete;
  TrialFile& operator=(const TrialFile&) = delete;
  int why_not() const { return why_not_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int why_not_ = 0;
  bool made_ = false;
};

/// A file below the directory, of the first thousand, that is long enough to try reads on.
std::optional<fs::path> some_file(const fs::path& directory) {
  std::error_code failed;
  int n = 0;
  for (const auto& entry : fs::recursive_directory_iterator(directory, failed)) {
    if (++n > 1000) break;
    if (entry.is_regular_file(failed) && entry.file_size(failed) >= (1u << 20)) return entry.path();
  }
  return std::nullopt;
}

void check_reads(const std::shared_ptr<const File>& file, const std::string& section, Findings& found) {
  const DirectFile direct(file);
  if (direct.why_not().empty()) {
    found.push_back({State::good, section, "direct reads",
                     str("yes, aligned to ", direct.alignment().offset, " bytes in the file and ",
                         direct.alignment().memory, " in memory"),
                     ""});
  } else {
    found.push_back({State::warning, section, "direct reads", direct.why_not(),
                     "all reads go through the page cache: pread is the reader for this file system"});
  }
  const bool told = cached_share(*file, 0, 1u << 20).has_value();
  found.push_back({told ? State::good : State::warning, section, "page cache",
                   told ? "the kernel tells what it holds" : "the kernel does not tell what it holds",
                   told ? "" : "auto always reads by pread here; --reader io_uring may be faster for cold files"});
}

std::string depth_of(const ReaderSpeeds& speeds) {
  if (speeds.latency_s == 0) return "";
  return str(", ", human_bytes(speeds.deep), "/s with 32 reads under way, a lone read ",
             human_seconds(speeds.latency_s));
}

/// How a load would order its reads of this file.
Finding read_order(const std::string& section, const fs::path& file, const std::string& lfs) {
  const FoundLayouts found = ask_stripe_layouts({file.native()}, lfs);
  if (!found.why_not.empty()) {
    return {State::warning, section, "read order", str("plain: ", found.why_not),
            "reads are then not spread over the targets on purpose"};
  }
  const StripeLayout& layout = found.layouts.begin()->second;
  const size_t n = layout.n_targets();
  return {n > 1 ? State::good : State::warning, section, "read order",
          str("by stripes: '", file.filename().native(), "' lies on ", n, n == 1 ? " target" : " targets"),
          n > 1 ? "" : "a file on one target comes at that target's rate: set the striping, then shard again"};
}

void check_network(const Mount& mount, const std::string& section, Findings& found) {
  if (!mount.type.starts_with("nfs")) return;
  found.push_back({State::info, section, "NFS",
                   mount.source +
                       ": cold loads of 1.5 GiB and more read past the page cache or through it, as measured; "
                       "pread goes without read-ahead",
                   "mount with nconnect=8 or more and rsize=1048576: one connection rarely fills a fast link"});
}

/// Read-ahead decides how fast pread is on a cold file.
void check_device(const MachineFacts& facts, const fs::path& directory, const std::string& section, Findings& found) {
  struct stat about {};
  if (::stat(directory.c_str(), &about) != 0) return;
  const fs::path device = facts.root / str("sys/dev/block/", major(about.st_dev), ":", minor(about.st_dev));
  fs::path queue = device / "queue";
  if (!fs::exists(queue)) queue = device / "../queue";  // of a partition
  const std::string ahead = first_line(queue / "read_ahead_kb");
  if (ahead.empty()) return;
  const bool rotates = first_line(queue / "rotational") == "1";
  found.push_back({State::info, section, "device",
                   str(rotates ? "rotating or virtual" : "solid state", ", read-ahead ", ahead, " KiB, scheduler ",
                       first_line(queue / "scheduler")),
                   std::atol(ahead.c_str()) < 1024 ? "pread of cold files: blockdev --setra 8192 (4 MiB)" : ""});
}

}  // namespace

/// `lfs getstripe -d DIR`: "stripe_count:  1 stripe_size:   1048576 …"; −1 as a count is all.
Findings check_lustre(const MachineFacts& facts, const fs::path& directory, const std::string& lfs,
                      const std::optional<fs::path>& file) {
  const std::string section = section_of(directory);
  Findings found;
  std::string version = first_line(facts.root / "sys/fs/lustre/version");
  found.push_back({State::info, section, "Lustre client", version.empty() ? "mounted" : version, ""});
  const std::string wanted = str("lfs setstripe -c -1 -S 16M ", directory.native(), " before files are written there");
  const std::string told = output_of_program({lfs, "getstripe", "-d", directory.native()});
  if (told.empty()) {
    found.push_back({State::warning, section, "striping", "not told: lfs is not installed, or failed",
                     "install lustre-client's lfs; then " + wanted});
    return found;
  }
  long count = 0, size = 0;
  std::istringstream words(told);
  for (std::string word; words >> word;) {
    if (word == "stripe_count:") words >> count;
    if (word == "stripe_size:") words >> size;
  }
  const bool good = (count == -1 || count > 1) && size >= (4 << 20);
  found.push_back({good ? State::good : State::warning, section, "striping",
                   str(count == -1 ? "all targets" : str(count, " target(s)"), ", stripes of ",
                       human_bytes(static_cast<double>(size))),
                   good ? "" : wanted + ": one file is then read from many servers at once"});
  if (file) found.push_back(read_order(section, *file, lfs));
  return found;
}

Findings check_storage(const MachineFacts& facts, const fs::path& directory) {
  if (!fs::is_directory(directory)) {
    throw Error(ErrorKind::not_found, str("'", directory.native(), "' is no directory"));
  }
  const std::string section = section_of(directory);
  const Mount mount = mount_of(directory);
  Findings found;
  found.push_back({State::info, section, "file system", str(mount.type, ", ", mount.source, " at ", mount.point), ""});
  found.push_back({State::info, section, "free", human_bytes(static_cast<double>(free_space(directory))), ""});
  if (const auto there = some_file(directory)) {
    check_reads(File::open(*there), section, found);
  } else {
    const TrialFile trial(directory);
    if (trial.why_not() == 0) {
      check_reads(File::open(trial.path()), section, found);
    } else {
      found.push_back({State::warning, section, "direct reads", "not tried: no file of 1 MiB, and none can be written",
                       "name a directory with a model"});
    }
  }
  const SpeedMemory memory(SpeedMemory::default_path());
  std::string note;
  const auto speeds = memory.recall(speed_key(mount), static_cast<int64_t>(time(nullptr)), note);
  const auto speed = [](double each) { return each < 0 ? "not measured" : human_bytes(each) + "/s"; };
  found.push_back(
      {note.empty() ? State::info : State::warning, section, "measured speeds",
       speeds ? str("past the page cache by io_uring ", speed(speeds->speeds.io_uring), ", by pread ",
                    speed(speeds->speeds.pread_direct), "; through it ", speed(speeds->speeds.pread),
                    depth_of(speeds->speeds), ", in '", memory.path().native(), "'")
              : str("none remembered", note.empty() ? "" : "; " + note),
       speeds ? "delete that file to measure anew" : "the first cold load of 1.5 GiB and more measures them"});
  if (mount.type == "lustre") {
    const Findings lustre = check_lustre(facts, directory, "lfs", some_file(directory));
    found.insert(found.end(), lustre.begin(), lustre.end());
  } else {
    found.push_back({State::info, section, "Lustre striping", "none: the directory is on " + mount.type, ""});
  }
  check_network(mount, section, found);
  check_device(facts, directory, section, found);
  return found;
}

}  // namespace firstlight::cli
