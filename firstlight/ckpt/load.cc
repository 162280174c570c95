// SPDX-License-Identifier: Apache-2.0
// The parallel load: one list of requests over all ranks, in layer order, tails first; each reader thread checks what
// it has just read.
#include "firstlight/ckpt/load.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <mutex>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/load_files.h"
#include "firstlight/ckpt/load_gates.h"
#include "firstlight/ckpt/load_leaf.h"
#include "firstlight/io/pread_reader.h"

namespace firstlight {

namespace {

uint64_t leaves_in(uint64_t bytes) { return (bytes + kLeafBytes - 1) / kLeafBytes; }

double thread_cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// One request. `body` and `tail` are bytes [begin, end) of a part's data section, begin a leaf's first; `padding` is
/// of the file, the spaces between header and data.
struct Job {
  enum class Kind { body, tail, padding };
  size_t rank = 0, part = 0;
  uint64_t begin = 0, end = 0;
  Kind kind = Kind::body;
  Buffer staging;  // all but bodies, which go straight to the arena

  uint64_t size() const { return end - begin; }
  uint64_t file_begin() const { return begin + (kind == Kind::padding ? 0 : kDataBegin); }
};

struct RankState {
  RankFiles files;
  std::unique_ptr<LeafGates> gates;
  std::atomic<uint64_t> jobs_left{0};
  std::atomic<uint64_t> leaves_checked{0};
  double end_s = 0;  // written by the thread that does the last job
};

class RankLoad final : public Load {
 public:
  RankLoad(const fs::path& out, const LoadOptions& options);
  ~RankLoad() override;
  const ModelConfig& config() const override { return config_; }
  std::vector<RankWeights>& weights() override { return weights_; }
  LoadReport wait() override;

 private:
  void open(const fs::path& out);
  void allocate();
  void publish();
  void plan_jobs();
  void start();
  void on_done(const ReadCompletion& done);
  std::byte* address(const Job& job);
  void take(Job& job);
  void check_leaves(const Job& job);
  void check_padding(Job& job);
  void count_job(const Job& job);
  void place_tail(Job& job);
  void finish();
  void fail(std::exception_ptr cause);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  void rethrow_failure();

  LoadOptions options_;
  Manifest manifest_;
  ModelConfig config_;
  std::vector<std::unique_ptr<RankState>> ranks_;
  std::vector<RankWeights> weights_;
  std::vector<Job> jobs_;
  std::vector<SmallRead> small_reads_;
  uint64_t total_bytes_ = 0;
  double begin_s_ = 0, start_s_ = 0, end_s_ = 0;  // of the load, of the data reads, of all
  std::atomic<uint64_t> done_bytes_{0}, jobs_left_{0};
  std::atomic<uint64_t> hash_ns_{0};

  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  bool published_ = false, finished_ = false;  // weights_ will not change; all is there and right
  std::atomic<bool> failed_{false};            // failure_ is set: to be asked without the mutex

  // After everything that a running request may touch; its destructor waits for the kernel.
  std::unique_ptr<Reader> reader_;
  std::unique_ptr<std::stop_callback<std::function<void()>>> on_stop_;
};

RankLoad::RankLoad(const fs::path& out, const LoadOptions& options) : options_(options) {
  begin_s_ = seconds_since_exec();
  const auto t0 = Reader::Clock::now();
  if (options.stop.stop_requested()) throw Interrupted();
  const int n_threads = options.n_threads > 0 ? options.n_threads : usable_cores();
  reader_ = options.make_reader ? options.make_reader(n_threads) : std::make_unique<PreadReader>(n_threads);
  if (!reader_) throw Error(ErrorKind::bug, "LoadOptions::make_reader made no reader");
  if (options.deadline_s > 0) {
    const double seconds = std::min(options.deadline_s, 1e9);
    reader_->set_deadline(t0 +
                          std::chrono::duration_cast<Reader::Clock::duration>(std::chrono::duration<double>(seconds)));
  }
  on_stop_ = std::make_unique<std::stop_callback<std::function<void()>>>(
      options.stop, [this] { fail(std::make_exception_ptr(Interrupted())); });
  try {
    open(out);
    allocate();
    publish();
    plan_jobs();
    start();
  } catch (...) {
    on_stop_.reset();
    fail(std::current_exception());
    reader_.reset();  // before the memory that it may still write to
    throw;
  }
}

RankLoad::~RankLoad() {
  on_stop_.reset();
  fail(std::make_exception_ptr(Interrupted()));
  reader_.reset();
}

void RankLoad::open(const fs::path& out) {
  Timeline::Scope manifest_phase(options_.timeline, "manifest");
  manifest_ = read_manifest(out);
  config_ = parse_hf_config(read_listed(out, manifest_, "config.json"));
  if (manifest_.architecture != to_string(config_.architecture)) {
    throw Error(ErrorKind::bad_input,
                str("'", (out / "config.json").native(), "' is of a ", to_string(config_.architecture),
                    " model, the manifest says ", manifest_.architecture));
  }
  manifest_phase.end();
  Timeline::Scope headers_phase(options_.timeline, "headers");
  for (RankFiles& files : open_ranks(out, manifest_, config_, options_, *reader_, small_reads_)) {
    ranks_.push_back(std::make_unique<RankState>());
    ranks_.back()->files = std::move(files);
  }
  small_reads_.clear();
}

void RankLoad::allocate() {
  const Timeline::Scope phase(options_.timeline, "arena");
  uint64_t needed = 0;
  for (const auto& rank : ranks_) needed += rank->files.layout.bytes;
  require_fits(needed, options_.reserve_bytes, free_memory(options_.device), options_.device);
  for (size_t r = 0; r < ranks_.size(); ++r) {
    weights_.push_back(
        make_rank_weights(config_, ranks_[r]->files.layout, options_.device, options_.tp, static_cast<int>(r)));
  }
  for (size_t r = 0; r < ranks_.size(); ++r) {
    ranks_[r]->gates = std::make_unique<LeafGates>(ranks_[r]->files, *weights_[r].ready);
  }
}

/// From here on a failure, from whatever thread, goes to the gates.
void RankLoad::publish() {
  const std::lock_guard lock(failure_mutex_);
  published_ = true;
  if (failure_) std::rethrow_exception(failure_);
}

/// Tails first; then one request of each rank in turn, so that all ranks come to the same layer at the same time; what
/// no tensor needs at the end.
void RankLoad::plan_jobs() {
  std::vector<std::vector<Job>> bodies(ranks_.size());
  std::vector<Job> paddings;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const ManifestRank& rank = *ranks_[r]->files.manifest;
    for (size_t p = 0; p < rank.parts.size(); ++p) {
      const ManifestPart& part = rank.parts[p];
      const bool has_tail = part.tail_begin < part.data_bytes;
      const uint64_t body_end = has_tail ? part.tail_begin / kLeafBytes * kLeafBytes : part.data_bytes;
      if (has_tail) {
        jobs_.push_back({r, p, body_end, part.data_bytes, Job::Kind::tail, Buffer({}, part.data_bytes - body_end)});
      }
      for (uint64_t at = 0; at < body_end; at += kRequestBytes) {
        bodies[r].push_back({r, p, at, std::min(at + kRequestBytes, body_end), Job::Kind::body, {}});
      }
      if (options_.verify == Verify::full && part.header_bytes < kDataBegin) {
        paddings.push_back(
            {r, p, part.header_bytes, kDataBegin, Job::Kind::padding, Buffer({}, kDataBegin - part.header_bytes)});
      }
    }
    total_bytes_ += rank.total_bytes();
  }
  size_t longest = 0;
  for (const auto& body : bodies) longest = std::max(longest, body.size());
  for (size_t i = 0; i < longest; ++i) {
    for (auto& body : bodies) {
      if (i < body.size()) jobs_.push_back(std::move(body[i]));
    }
  }
  std::move(paddings.begin(), paddings.end(), std::back_inserter(jobs_));
}

std::byte* RankLoad::address(const Job& job) {
  if (job.kind != Job::Kind::body) return job.staging.data();
  return weights_[job.rank].arena.data() + ranks_[job.rank]->files.layout.region_begin[job.part] + job.begin;
}

void RankLoad::start() {
  std::vector<ReadRequest> requests;
  for (const Job& job : jobs_) {
    RankState& rank = *ranks_[job.rank];
    requests.push_back({requests.size(), rank.files.parts[job.part], job.file_begin(), job.size(), address(job)});
    rank.jobs_left.fetch_add(1, std::memory_order_relaxed);
  }
  jobs_left_.store(jobs_.size(), std::memory_order_relaxed);
  start_s_ = seconds_since_exec();
  reader_->submit(requests, [this](const ReadCompletion& done) { on_done(done); });
  if (failed()) reader_->cancel();  // the failure came before there was anything to cancel
}

void RankLoad::on_done(const ReadCompletion& done) {
  Job& job = jobs_[done.id];
  if (failed()) return;
  try {
    if (done.result != static_cast<int64_t>(job.size())) {
      const RankFiles& files = ranks_[job.rank]->files;
      const File& file = *files.parts[job.part];
      std::string what = range_text(file.path(), job.file_begin(), job.file_begin() + job.size());
      what += job.kind == Job::Kind::padding ? " (the header's padding)"
                                             : str(" (", tensors_in(files.layout, job.part, job.begin, job.end), ")");
      std::rethrow_exception(read_failure(done.result, what, file.size(), options_.deadline_s));
    }
    if (job.kind == Job::Kind::padding) {
      check_padding(job);
    } else {
      take(job);
    }
    count_job(job);
  } catch (...) {
    fail(std::current_exception());
  }
}

void RankLoad::count_job(const Job& job) {
  RankState& rank = *ranks_[job.rank];
  if (rank.jobs_left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    rank.end_s = seconds_since_exec();
    if (options_.timeline != nullptr) {
      const char* phase = options_.verify == Verify::full ? "read+verify rank " : "read rank ";
      options_.timeline->add(str(phase, job.rank), start_s_, rank.end_s);
    }
  }
  if (jobs_left_.fetch_sub(1, std::memory_order_acq_rel) == 1) finish();
}

/// The bytes of a job are in memory: checks them, puts a tail in its place, opens what waited for them.
void RankLoad::take(Job& job) {
  RankState& rank = *ranks_[job.rank];
  if (options_.verify == Verify::full) check_leaves(job);
  if (job.kind == Job::Kind::tail) place_tail(job);
  const uint64_t first = rank.files.manifest->parts[job.part].first_leaf + job.begin / kLeafBytes;
  for (uint64_t leaf = first; leaf < first + leaves_in(job.size()); ++leaf) rank.gates->leaf_done(leaf);
  const uint64_t done = done_bytes_.fetch_add(job.size(), std::memory_order_relaxed) + job.size();
  if (options_.progress) options_.progress(done, total_bytes_);
}

void RankLoad::check_leaves(const Job& job) {
  RankState& rank = *ranks_[job.rank];
  const std::byte* bytes = address(job);
  const double begin = thread_cpu_seconds();
  for (uint64_t at = job.begin; at < job.end; at += kLeafBytes) {
    const uint64_t found = xxh3_64({bytes + (at - job.begin), std::min(kLeafBytes, job.end - at)});
    if (found == rank.files.expected_leaf(job.part, at / kLeafBytes)) continue;
    std::rethrow_exception(leaf_failure(rank.files, job.part, at / kLeafBytes, found));
  }
  hash_ns_.fetch_add(static_cast<uint64_t>(1e9 * (thread_cpu_seconds() - begin)), std::memory_order_relaxed);
  rank.leaves_checked.fetch_add(leaves_in(job.size()), std::memory_order_relaxed);
}

/// Nothing depends on the padding, but a file with a wrong byte anywhere is not what was written.
void RankLoad::check_padding(Job& job) {
  const std::span<const std::byte> bytes = job.staging.bytes();
  const auto wrong = std::find_if(bytes.begin(), bytes.end(), [](std::byte b) { return b != std::byte{' '}; });
  if (wrong != bytes.end()) {
    const File& file = *ranks_[job.rank]->files.parts[job.part];
    const uint64_t at = job.begin + static_cast<uint64_t>(wrong - bytes.begin());
    throw Error(ErrorKind::damaged, str(range_text(file.path(), at, at + 1), ": the header's padding has byte ",
                                        static_cast<int>(*wrong), ", expected a space (32)"));
  }
  job.staging = {};
}

/// What stands before the tail goes on with its region, the tail's tensors to their slots.
void RankLoad::place_tail(Job& job) {
  const RankFiles& files = ranks_[job.rank]->files;
  const ManifestPart& part = files.manifest->parts[job.part];
  std::byte* arena = weights_[job.rank].arena.data();
  std::memcpy(arena + files.layout.region_begin[job.part] + job.begin, job.staging.data(), part.tail_begin - job.begin);
  for (const ArenaTensor& tensor : files.layout.tensors) {
    if (tensor.part != job.part || !tensor.in_tail) continue;
    std::memcpy(arena + tensor.at, job.staging.data() + (tensor.begin - job.begin), tensor.end - tensor.begin);
  }
  job.staging = {};
}

/// All bytes are there and right. If the files are still those that were opened, the last gates open.
void RankLoad::finish() {
  for (const auto& rank : ranks_) {
    for (const auto& file : rank->files.parts) file->check_unchanged();
    if (rank->files.leaves_file) rank->files.leaves_file->check_unchanged();
  }
  {
    const std::lock_guard lock(failure_mutex_);
    if (failure_) return;
    finished_ = true;
  }
  end_s_ = seconds_since_exec();
  for (const auto& rank : ranks_) {
    rank->gates->release_last();
    rank->files.parts.clear();  // a model that stays loaded keeps no file open
    rank->files.leaves_file.reset();
  }
}

/// The first cause stays. All under the mutex: who finds it set finds gates failed and the queue cancelled, too.
void RankLoad::fail(std::exception_ptr cause) {
  const std::lock_guard lock(failure_mutex_);
  if (failure_ || finished_) return;
  failure_ = cause;
  failed_.store(true, std::memory_order_release);
  if (published_) {
    for (RankWeights& weights : weights_) weights.ready->fail(cause);
  }
  reader_->cancel();
}

void RankLoad::rethrow_failure() {
  const std::lock_guard lock(failure_mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

LoadReport RankLoad::wait() {
  reader_->wait();
  rethrow_failure();
  LoadReport report;
  report.bytes = total_bytes_;
  report.seconds = end_s_ - begin_s_;
  report.reader = reader_->name();
  report.why = reader_->why();
  report.verify = options_.verify == Verify::full ? "full" : "off";
  report.verify_cpu_seconds = 1e-9 * static_cast<double>(hash_ns_.load());
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const RankState& rank = *ranks_[r];
    report.ranks.push_back(
        {static_cast<int>(r), rank.files.manifest->total_bytes(), rank.end_s - start_s_, rank.leaves_checked.load()});
  }
  return report;
}

}  // namespace

std::unique_ptr<Load> load_rank_checkpoint(const fs::path& out, const LoadOptions& options) {
  return std::make_unique<RankLoad>(out, options);
}

}  // namespace firstlight
