// SPDX-License-Identifier: Apache-2.0
// The parallel load: one list of requests over all ranks, in layer order, tails first; each reader thread checks what
// it has just read.
#include "firstlight/ckpt/load.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/leaf_checks.h"
#include "firstlight/ckpt/load_files.h"
#include "firstlight/ckpt/load_gates.h"
#include "firstlight/ckpt/load_jobs.h"
#include "firstlight/ckpt/load_leaf.h"
#include "firstlight/device/gpus.h"
#include "firstlight/io/pread_reader.h"
#include "firstlight/io/staged_reader.h"

namespace firstlight {

namespace {

double thread_cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

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
  void make_reader();
  void open(const fs::path& out);
  void allocate();
  void publish();
  void plan_jobs();
  void start();
  void on_done(const ReadCompletion& done);
  std::byte* address(const LoadJob& job);
  std::vector<LeafBytes> leaves_of_job(const LoadJob& job);
  void hash_here(LoadJob& job);
  void take(LoadJob& job, std::span<const uint64_t> hashes);
  void check_leaves(const LoadJob& job, std::span<const uint64_t> hashes);
  void count_job(const LoadJob& job);
  void finish();
  void fail(std::exception_ptr cause);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  void rethrow_failure();

  LoadOptions options_;
  Manifest manifest_;
  ModelConfig config_;
  std::vector<std::unique_ptr<RankState>> ranks_;
  std::vector<RankWeights> weights_;
  std::vector<LoadJob> jobs_;
  std::vector<SmallRead> small_reads_;
  uint64_t total_bytes_ = 0;
  double begin_s_ = 0, start_s_ = 0, end_s_ = 0;  // of the load, of the data reads, of all
  std::atomic<uint64_t> done_bytes_{0}, jobs_left_{0};
  std::atomic<uint64_t> hash_ns_{0};

  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  bool published_ = false, finished_ = false;  // weights_ will not change; all is there and right
  std::atomic<bool> failed_{false};            // failure_ is set: to be asked without the mutex

  // After everything that a running request may touch; the reader's destructor waits for the kernel.
  std::unique_ptr<LeafChecks> checks_;  // only where leaves are hashed by a device
  std::unique_ptr<Reader> reader_;
  StagedReader* staged_ = nullptr;  // reader_, if its requests end on a device
  std::unique_ptr<std::stop_callback<std::function<void()>>> on_stop_;
};

RankLoad::RankLoad(const fs::path& out, const LoadOptions& options) : options_(options) {
  begin_s_ = seconds_since_exec();
  const auto t0 = Reader::Clock::now();
  if (options.stop.stop_requested()) throw Interrupted();
  make_reader();
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
    checks_.reset();
    throw;
  }
}

RankLoad::~RankLoad() {
  on_stop_.reset();
  fail(std::make_exception_ptr(Interrupted()));
  reader_.reset();
  checks_.reset();
}

/// On the way to a device: its context and the ring are made beside the reading of manifest and headers.
void RankLoad::make_reader() {
  const int n_threads = options_.n_threads > 0 ? options_.n_threads : usable_cores();
  reader_ = options_.make_reader ? options_.make_reader(n_threads) : std::make_unique<PreadReader>(n_threads);
  if (!reader_) throw Error(ErrorKind::bug, "LoadOptions::make_reader made no reader");
  if (options_.device.kind == Device::Kind::cpu && !options_.make_staging) return;
  auto staged = std::make_unique<StagedReader>(std::move(reader_), [this] {
    start_device(options_.device);  // the caller may have done it already
    const Timeline::Scope ring(options_.timeline, "pinned ring");
    return options_.make_staging ? options_.make_staging(options_.device) : make_staging(options_.device);
  });
  staged_ = staged.get();
  reader_ = std::move(staged);
  if (options_.verify != Verify::full) return;
  checks_ = std::make_unique<LeafChecks>(
      [this] {
        return options_.make_hasher ? options_.make_hasher(options_.device) : make_leaf_hasher(options_.device);
      },
      [this](size_t job, std::span<const uint64_t> hashes, std::exception_ptr failure) {
        if (failed()) return;
        try {
          if (failure) std::rethrow_exception(failure);
          take(jobs_[job], hashes);
          count_job(jobs_[job]);
        } catch (...) {
          fail(std::current_exception());
        }
      });
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
  for (RankFiles& files :
       open_ranks(out, manifest_, config_, options_, staged_ ? staged_->host_reader() : *reader_, small_reads_)) {
    ranks_.push_back(std::make_unique<RankState>());
    ranks_.back()->files = std::move(files);
  }
  small_reads_.clear();
}

void RankLoad::allocate() {
  if (staged_ != nullptr) staged_->wait_until_ready();
  const Timeline::Scope phase(options_.timeline, "arena");
  uint64_t needed = 0;
  for (const auto& rank : ranks_) {
    needed += rank->files.layout.bytes;
    if (staged_ != nullptr) needed += tail_staging_bytes(*rank->files.manifest);
  }
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

void RankLoad::plan_jobs() {
  std::vector<const RankFiles*> files;
  for (const auto& rank : ranks_) {
    files.push_back(&rank->files);
    total_bytes_ += rank->files.manifest->total_bytes();
  }
  jobs_ = plan_load_jobs(files, options_.device, options_.verify == Verify::full);
}

std::byte* RankLoad::address(const LoadJob& job) {
  if (job.kind != LoadJob::Kind::body) return job.staging.data();
  return weights_[job.rank].arena.data() + ranks_[job.rank]->files.layout.region_begin[job.part] + job.begin;
}

void RankLoad::start() {
  std::vector<ReadRequest> requests, to_host;
  for (size_t i = 0; i < jobs_.size(); ++i) {
    const LoadJob& job = jobs_[i];
    RankState& rank = *ranks_[job.rank];
    (staged_ != nullptr && job.kind == LoadJob::Kind::padding ? to_host : requests)
        .push_back({i, rank.files.parts[job.part], job.file_begin(), job.size(), address(job)});
    rank.jobs_left.fetch_add(1, std::memory_order_relaxed);
  }
  jobs_left_.store(jobs_.size(), std::memory_order_relaxed);
  start_s_ = seconds_since_exec();
  const ReadCallback callback = [this](const ReadCompletion& done) { on_done(done); };
  reader_->submit(requests, callback);
  if (!to_host.empty()) staged_->host_reader().submit(to_host, callback);
  if (failed()) reader_->cancel();  // the failure came before there was anything to cancel
}

void RankLoad::on_done(const ReadCompletion& done) {
  LoadJob& job = jobs_[done.id];
  if (failed()) return;
  try {
    if (done.result != static_cast<int64_t>(job.size())) {
      const RankFiles& files = ranks_[job.rank]->files;
      const File& file = *files.parts[job.part];
      std::string what = range_text(file.path(), job.file_begin(), job.file_begin() + job.size());
      what += job.kind == LoadJob::Kind::padding
                  ? " (the header's padding)"
                  : str(" (", tensors_in(files.layout, job.part, job.begin, job.end), ")");
      if (done.result == -EREMOTEIO && staged_ != nullptr && staged_->failure()) {
        std::rethrow_exception(staged_->failure());
      }
      std::rethrow_exception(read_failure(done.result, what, file.size(), options_.deadline_s));
    }
    if (job.kind == LoadJob::Kind::padding) {
      check_padding(job, *ranks_[job.rank]->files.parts[job.part]);
      job.staging = {};
    } else if (options_.verify == Verify::off) {
      take(job, {});
    } else if (checks_) {
      checks_->add(done.id, leaves_of_job(job));  // counts it when that is done
      return;
    } else {
      hash_here(job);
    }
    count_job(job);
  } catch (...) {
    fail(std::current_exception());
  }
}

void RankLoad::count_job(const LoadJob& job) {
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
void RankLoad::take(LoadJob& job, std::span<const uint64_t> hashes) {
  RankState& rank = *ranks_[job.rank];
  if (options_.verify == Verify::full) check_leaves(job, hashes);
  if (job.kind == LoadJob::Kind::tail) {
    place_tail(job, rank.files, weights_[job.rank].arena);
    job.staging = {};
  }
  const uint64_t first = rank.files.manifest->parts[job.part].first_leaf + job.begin / kLeafBytes;
  for (uint64_t leaf = first; leaf < first + leaves_in(job.size()); ++leaf) rank.gates->leaf_done(leaf);
  const uint64_t done = done_bytes_.fetch_add(job.size(), std::memory_order_relaxed) + job.size();
  if (options_.progress) options_.progress(done, total_bytes_);
}

std::vector<LeafBytes> RankLoad::leaves_of_job(const LoadJob& job) {
  std::vector<LeafBytes> leaves;
  for (uint64_t at = 0; at < job.size(); at += kLeafBytes) {
    leaves.push_back({address(job) + at, std::min(kLeafBytes, job.size() - at)});
  }
  return leaves;
}

/// On the thread that has just read the bytes: they are in its core's cache.
void RankLoad::hash_here(LoadJob& job) {
  std::vector<uint64_t> hashes;
  const double begin = thread_cpu_seconds();
  for (const LeafBytes& leaf : leaves_of_job(job)) hashes.push_back(xxh3_64({leaf.data, leaf.size}));
  hash_ns_.fetch_add(static_cast<uint64_t>(1e9 * (thread_cpu_seconds() - begin)), std::memory_order_relaxed);
  take(job, hashes);
}

void RankLoad::check_leaves(const LoadJob& job, std::span<const uint64_t> hashes) {
  RankState& rank = *ranks_[job.rank];
  for (size_t i = 0; i < hashes.size(); ++i) {
    const uint64_t leaf = job.begin / kLeafBytes + i;
    if (hashes[i] == rank.files.expected_leaf(job.part, leaf)) continue;
    std::rethrow_exception(leaf_failure(rank.files, job.part, leaf, hashes[i]));
  }
  rank.leaves_checked.fetch_add(hashes.size(), std::memory_order_relaxed);
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
  if (staged_ != nullptr) staged_->host_reader().wait();
  if (checks_) checks_->wait();
  rethrow_failure();
  LoadReport report;
  report.bytes = total_bytes_;
  report.seconds = end_s_ - begin_s_;
  report.reader = reader_->name();
  report.why = reader_->why();
  report.verify = options_.verify == Verify::full ? "full" : "off";
  report.verify_cpu_seconds = checks_ ? 0 : 1e-9 * static_cast<double>(hash_ns_.load());
  report.verify_device_seconds = checks_ ? checks_->seconds() : 0;
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
