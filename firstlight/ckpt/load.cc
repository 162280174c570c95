// SPDX-License-Identifier: Apache-2.0
// The parallel load: one list of requests over all ranks, in layer order, tails first; each reader thread checks what
// it has just read.
#include "firstlight/ckpt/load.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <future>
#include <mutex>
#include <utility>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/base/timeline.h"
#include "firstlight/ckpt/load_files.h"
#include "firstlight/ckpt/load_jobs.h"
#include "firstlight/ckpt/load_lane.h"
#include "firstlight/ckpt/load_leaf.h"
#include "firstlight/ckpt/load_rank.h"

namespace firstlight {

namespace {

class RankLoad final : public Load {
 public:
  RankLoad(const fs::path& out, const LoadOptions& options);
  ~RankLoad() override;
  const ModelConfig& config() const override { return config_; }
  std::vector<RankWeights>& weights() override { return weights_; }
  LoadReport wait() override;
  std::vector<ReadLane*> lanes() override;
  void rethrow_failure() override;

 private:
  void open_manifest(const fs::path& out);
  void begin_arenas(const fs::path& out);
  void open_files(const fs::path& out);
  void plan_jobs();
  void submit(bool staged);
  void make_place(LoadLane& lane, const ManifestTp& tp, const std::shared_future<uint64_t>& reserve);
  void lay_out();
  void end_layout();
  void wait_for_layout() const;
  void on_done(const ReadCompletion& done);
  void on_hashed(size_t job, std::span<const uint64_t> hashes, const std::exception_ptr& failure);
  void hash_here(const LoadJob& job);
  void take(const LoadJob& job, std::span<const uint64_t> hashes);
  void count_job(const LoadJob& job);
  void finish();
  void fail(std::exception_ptr cause);
  bool failed() const { return failed_.load(std::memory_order_acquire); }

  LoadOptions options_;
  std::shared_ptr<const Manifest> manifest_;
  ModelConfig config_;
  std::vector<RankFiles> files_;
  HeaderReads headers_;
  std::atomic<bool> has_ended_{false};  // the reading of headers: well, or the load has failed
  std::vector<std::unique_ptr<LoadRank>> ranks_;
  std::vector<RankWeights> weights_;
  std::vector<LoadJob> jobs_;
  std::string order_;  // "; reads spread over …", or why not; "" where there is nothing to say
  uint64_t total_bytes_ = 0;
  double begin_s_ = 0, end_s_ = 0;
  std::atomic<uint64_t> done_bytes_{0}, jobs_left_{0};
  std::atomic<uint64_t> hash_ns_{0};

  std::mutex failure_mutex_;
  std::exception_ptr failure_;
  bool finished_ = false;            // all is there and right
  std::atomic<bool> failed_{false};  // failure_ is set: to be asked without the mutex

  std::vector<std::future<void>> arenas_;  // of each lane's ranks

  std::vector<LoadLane> lanes_;  // after everything that a running request may touch; readers wait for the kernel
  std::unique_ptr<std::stop_callback<std::function<void()>>> on_stop_;
};

RankLoad::RankLoad(const fs::path& out, const LoadOptions& options) : options_(options) {
  begin_s_ = seconds_since_exec();
  const auto t0 = Reader::Clock::now();
  if (options.stop.stop_requested()) throw Interrupted();
  lanes_ = make_lanes(options_);
  weights_.resize(n_loaded_ranks(options_));
  set_deadline(lanes_, t0, options.deadline_s);
  on_stop_ = std::make_unique<std::stop_callback<std::function<void()>>>(
      options.stop, [this] { fail(std::make_exception_ptr(Interrupted())); });
  try {
    open_manifest(out);
    begin_arenas(out);
    open_files(out);
    plan_jobs();
    submit(true);  // fills the rings while devices are being started
    lay_out();
    submit(false);
  } catch (...) {
    on_stop_.reset();
    fail(std::current_exception());
    end_layout();
    arenas_.clear();    // waits
    lanes_.clear();     // before the memory that readers may still write to
    rethrow_failure();  // what failed first: the cause of a header's read that was cancelled
    throw;
  }
}

RankLoad::~RankLoad() {
  on_stop_.reset();
  fail(std::make_exception_ptr(Interrupted()));
  lanes_.clear();
}

void RankLoad::open_manifest(const fs::path& out) {
  const Timeline::Scope phase(options_.timeline, "manifest");
  manifest_ = options_.manifest ? options_.manifest : std::make_shared<const Manifest>(read_manifest(out));
  config_ = parse_hf_config(read_listed(out, *manifest_, "config.json"));
  check_architecture(config_, *manifest_, out);
}

/// On devices beside all else: 16 GB take 1 to 4 ms. LoadOptions::reserve is asked by the first that needs it.
void RankLoad::begin_arenas(const fs::path& out) {
  for (size_t i = 0; i < n_loaded_ranks(options_); ++i) ranks_.push_back(std::make_unique<LoadRank>());
  const ManifestTp& tp = stored_tp(*manifest_, config_, out, options_.tp);
  const std::shared_future<uint64_t> reserve = std::async(
      std::launch::deferred, [this] { return options_.reserve ? options_.reserve() : options_.reserve_bytes; });
  for (LoadLane& lane : lanes_) {
    for (const size_t rank : lane.ranks) ranks_[rank]->lane = &lane;
    if (lane.on_device != nullptr) lane.on_device->hold();
    const auto make = [this, &lane, &tp, reserve] { return make_place(lane, tp, reserve); };
    arenas_.push_back(lane.on_device != nullptr ? start_future("an arena", make)
                                                : std::async(std::launch::deferred, make));
  }
}

/// Where a lane's bytes go; what waits in its ring goes on. Which tensors they are need not be known for that.
void RankLoad::make_place(LoadLane& lane, const ManifestTp& tp, const std::shared_future<uint64_t>& reserve) {
  std::vector<Buffer> arenas = make_arenas(lane, options_, *manifest_, tp, reserve, begin_s_);
  std::vector<std::span<std::byte>> memory;
  for (size_t i = 0; i < arenas.size(); ++i) {
    LoadRank& rank = *ranks_[lane.ranks[i]];
    rank.arena = std::move(arenas[i]);
    rank.base = rank.arena.data();
    memory.push_back(rank.arena.bytes());
  }
  if (lane.on_device == nullptr) return;
  lane.on_device->use_memory(memory);
  lane.on_device->release([this](uint64_t job) { return ranks_[jobs_[job].rank]->address(jobs_[job]); });
}

/// Headers are on their way before all else.
void RankLoad::open_files(const fs::path& out) {
  files_ = open_ranks(out, *manifest_, config_, options_);
  headers_.begin(lanes_[0].host_reader(), *manifest_, files_);
}

void RankLoad::plan_jobs() {
  for (size_t r = 0; r < files_.size(); ++r) {
    total_bytes_ += files_[r].manifest->total_bytes();
    if (options_.verify == Verify::full) ranks_[r]->paddings = Buffer({}, padding_bytes(*files_[r].manifest));
  }
  jobs_ = plan_load_jobs(files_, lanes_[0].request_bytes(), options_.verify == Verify::full,
                         find_spread(files_, options_, order_));
  for (const LoadJob& job : jobs_) ranks_[job.rank]->jobs_left.fetch_add(1, std::memory_order_relaxed);
  jobs_left_.store(jobs_.size(), std::memory_order_relaxed);
}

/// To lanes whose bytes pass through a ring (their addresses can be named later), or to the others.
void RankLoad::submit(bool staged) {
  const ReadCallback callback = [this](const ReadCompletion& done) { on_done(done); };
  for (LoadLane& lane : lanes_) {
    if ((lane.on_device != nullptr) != staged) continue;
    std::vector<ReadRequest> requests, to_host;
    for (size_t i = 0; i < jobs_.size(); ++i) {
      const LoadJob& job = jobs_[i];
      if (ranks_[job.rank]->lane != &lane) continue;
      const bool to_ring = staged && job.kind != LoadJob::Kind::padding;
      (staged && !to_ring ? to_host : requests)
          .push_back({i, files_[job.rank].parts[job.part], job.file_begin(), job.size(),
                      to_ring ? nullptr : ranks_[job.rank]->address(job)});
    }
    lane.reader->submit(requests, callback);
    if (!to_host.empty()) lane.host_reader().submit(to_host, callback);
  }
  if (!failed()) return;  // the failure may have come before there was anything to cancel
  for (LoadLane& lane : lanes_) lane.reader->cancel();
}

/// Tensors get their names, when the headers are there; meanwhile copies may be under way. A failure, from whatever
/// thread and before or after, goes to the ranks' gates.
void RankLoad::lay_out() {
  {
    const Timeline::Scope phase(options_.timeline, "headers");
    headers_.finish(*manifest_, config_, options_);
  }
  for (size_t r = 0; r < ranks_.size(); ++r) {
    ranks_[r]->ready = std::make_unique<Gates>(n_gates(config_));
    ranks_[r]->gates = std::make_unique<LeafGates>(files_[r], *ranks_[r]->ready);
  }
  end_layout();
  for (auto& arena : arenas_) arena.get();
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const std::lock_guard lock(failure_mutex_);
    weights_[r] =
        make_rank_weights(config_, files_[r].layout, std::move(ranks_[r]->arena), options_.tp, files_[r].rank);
    weights_[r].ready = std::move(ranks_[r]->ready);
    if (failure_) weights_[r].ready->fail(failure_);
  }
}

void RankLoad::end_layout() {
  has_ended_.store(true, std::memory_order_release);
  has_ended_.notify_all();
}

/// Never where headers are read: their reader may have no other thread.
void RankLoad::wait_for_layout() const {
  has_ended_.wait(false, std::memory_order_acquire);
  if (failed()) throw Interrupted();  // what failed first is known already
}

void RankLoad::on_done(const ReadCompletion& done) {
  const LoadJob& job = jobs_[done.id];
  const RankFiles& files = files_[job.rank];
  const LoadRank& rank = *ranks_[job.rank];
  if (failed()) return;
  try {
    if (done.result != static_cast<int64_t>(job.size())) {
      const DeviceReader* on_device = rank.lane->on_device;
      if (done.result == -EREMOTEIO && on_device != nullptr && on_device->failure()) {
        std::rethrow_exception(on_device->failure());
      }
      if (job.kind != LoadJob::Kind::padding) wait_for_layout();
      std::rethrow_exception(job_failure(job, files, done.result, options_.deadline_s));
    }
    if (job.kind == LoadJob::Kind::padding) {
      check_padding(job, *files.parts[job.part], rank.address(job));
    } else if (options_.verify == Verify::off) {
      wait_for_layout();
      take(job, {});
    } else if (LeafChecks* checks = rank.lane->checks.get()) {
      checks->add(rank.bytes_to_hash(job, options_.verify),
                  [this, id = done.id](auto hashes, const std::exception_ptr& failure) {
                    on_hashed(id, hashes, failure);  // counts it
                  });
      return;
    } else {
      hash_here(job);
    }
    count_job(job);
  } catch (...) {
    fail(std::current_exception());
  }
}

/// On the lane's hashing thread.
void RankLoad::on_hashed(size_t job, std::span<const uint64_t> hashes, const std::exception_ptr& failure) {
  if (failed()) return;
  try {
    if (failure) std::rethrow_exception(failure);
    wait_for_layout();
    take(jobs_[job], hashes);
    count_job(jobs_[job]);
  } catch (...) {
    fail(std::current_exception());
  }
}

void RankLoad::count_job(const LoadJob& job) {
  LoadRank& rank = *ranks_[job.rank];
  if (rank.jobs_left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    rank.end_s = seconds_since_exec();
    if (options_.timeline != nullptr) {
      const char* phase = options_.verify == Verify::off ? "read rank " : "read+verify rank ";
      options_.timeline->add(str(phase, files_[job.rank].rank), rank.lane->ready_s, rank.end_s);
    }
  }
  if (jobs_left_.fetch_sub(1, std::memory_order_acq_rel) == 1) finish();
}

/// The bytes of a job are in memory: checks them, puts a tail in its place, opens what waited for them.
void RankLoad::take(const LoadJob& job, std::span<const uint64_t> hashes) {
  LoadRank& rank = *ranks_[job.rank];
  rank.check_leaves(job, files_[job.rank], options_.verify, hashes);
  if (job.kind == LoadJob::Kind::tail) {
    place_tail(job, files_[job.rank], rank.lane->device, rank.base);
  }
  const uint64_t first = files_[job.rank].manifest->parts[job.part].first_leaf + job.begin / kLeafBytes;
  for (uint64_t leaf = first; leaf < first + leaves_in(job.size()); ++leaf) rank.gates->leaf_done(leaf);
  const uint64_t done = done_bytes_.fetch_add(job.size(), std::memory_order_relaxed) + job.size();
  if (options_.progress) options_.progress(done, total_bytes_);
}

/// On the thread that has just read the bytes: they are in its core's cache.
void RankLoad::hash_here(const LoadJob& job) {
  std::vector<uint64_t> hashes;
  const double begin = thread_cpu_seconds();
  for (const LeafBytes& leaf : ranks_[job.rank]->bytes_to_hash(job, options_.verify))
    hashes.push_back(xxh3_64({leaf.data, leaf.size}));
  hash_ns_.fetch_add(static_cast<uint64_t>(1e9 * (thread_cpu_seconds() - begin)), std::memory_order_relaxed);
  take(job, hashes);
}

/// All bytes are there and right. If the files are still those that were opened, the last gates open.
void RankLoad::finish() {
  for (const RankFiles& files : files_) {
    for (const auto& file : files.parts) file->check_unchanged();
    if (files.leaves_file) files.leaves_file->check_unchanged();
  }
  {
    const std::lock_guard lock(failure_mutex_);
    if (failure_) return;
    finished_ = true;
  }
  end_s_ = seconds_since_exec();
  for (size_t r = 0; r < ranks_.size(); ++r) {
    ranks_[r]->gates->release_last();
    ranks_[r]->paddings = {};
    files_[r].parts.clear();  // a model that stays loaded keeps no file open
    files_[r].leaves_file.reset();
  }
}

/// The first cause stays. All under the mutex: who finds it set finds gates failed and the queue cancelled, too.
void RankLoad::fail(std::exception_ptr cause) {
  const std::lock_guard lock(failure_mutex_);
  if (failure_ || finished_) return;
  failure_ = cause;
  failed_.store(true, std::memory_order_release);
  for (RankWeights& weights : weights_) {
    if (weights.ready) weights.ready->fail(cause);
  }
  for (LoadLane& lane : lanes_) lane.reader->cancel();
}

void RankLoad::rethrow_failure() {
  const std::lock_guard lock(failure_mutex_);
  if (failure_) std::rethrow_exception(failure_);
}

std::vector<ReadLane*> RankLoad::lanes() {
  std::vector<ReadLane*> lanes;
  for (const auto& rank : ranks_) {
    LoadLane& lane = *rank->lane;
    // Without verification no callback of this load looks at it.
    if (lane.on_device != nullptr && !lane.checks) lane.checks = make_leaf_checks(options_, lane.device);
    lanes.push_back(&lane);
  }
  return lanes;
}

LoadReport RankLoad::wait() {
  for (LoadLane& lane : lanes_) {
    lane.reader->wait();
    lane.host_reader().wait();
    if (lane.checks) lane.checks->wait();
  }
  rethrow_failure();
  LoadReport report;
  report.bytes = total_bytes_;
  report.begin_s = lanes_[0].ready_s;
  report.seconds = end_s_ - lanes_[0].ready_s;
  report.reader = lanes_[0].reader->name();
  report.why = lanes_[0].reader->why() + order_;
  report.verify_cpu_seconds = 1e-9 * static_cast<double>(hash_ns_.load());
  for (const LoadLane& lane : lanes_) report.verify_device_seconds += lane.checks ? lane.checks->seconds() : 0;
  uint64_t checked = 0, all = 0;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    report.ranks.push_back(ranks_[r]->report(files_[r]));
    checked += report.ranks.back().leaves_checked;
    for (const ManifestPart& part : files_[r].manifest->parts) all += leaves_of(part);
  }
  report.verify = describe(options_.verify, checked, all);
  return report;
}

}  // namespace

std::unique_ptr<Load> load_rank_checkpoint(const fs::path& out, const LoadOptions& options) {
  return std::make_unique<RankLoad>(out, options);
}

}  // namespace firstlight
