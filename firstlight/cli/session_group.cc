// SPDX-License-Identifier: Apache-2.0
// A session whose ranks are processes: what rank 0 has chosen becomes all ranks' choice, and what all have loaded rank
// 0's report.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "firstlight/base/error.h"
#include "firstlight/base/hash.h"
#include "firstlight/base/str.h"
#include "firstlight/ckpt/arena.h"
#include "firstlight/cli/session.h"
#include "firstlight/comm/cuda_process_comm.h"
#include "firstlight/device/gpus.h"

namespace firstlight::cli {

namespace {

/// What rank 0 hears of another rank's load.
struct LoadedRank {
  int64_t rank;
  uint64_t bytes, leaves_checked;
  double seconds, verify_cpu_seconds;
};

/// Rank 0's, on all ranks.
nlohmann::json from_rank_0(ProcessComm& processes, const nlohmann::json& mine) {
  const std::string text = processes.rank() == 0 ? mine.dump() : "";
  const auto own = std::as_bytes(std::span(text));
  std::vector<std::byte> bytes(own.begin(), own.end());
  processes.broadcast(bytes);
  return nlohmann::json::parse(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

}  // namespace

void Session::require_joinable(const SessionOptions& options, ModelKind kind) {
  if (kind != ModelKind::rank_checkpoint || options.traditional) {
    throw Error(ErrorKind::unsupported, str("one process a rank reads rank checkpoints only: firstlight shard ",
                                            options.model, " -o OUT --tp ", options.tp));
  }
}

/// Before there is a device: on GPUs all ranks begin to read while contexts come up.
void Session::share(ReaderChoice& reader) {
  const nlohmann::json theirs = from_rank_0(*context_->processes, {{"kind", static_cast<int>(reader.kind)},
                                                                   {"in_flight", reader.in_flight},
                                                                   {"cold", reader.cold},
                                                                   {"why", reader.why}});
  reader = {.kind = static_cast<ReaderKind>(theirs.at("kind").get<int>()),
            .why = theirs.at("why").get<std::string>(),
            .in_flight = theirs.at("in_flight").get<int>(),
            .cold = theirs.at("cold").get<bool>()};
}

std::vector<Device> Session::devices_of_processes() const {
  struct Own {
    Device device;
    GpuUuid gpu;
  };
  ProcessComm& processes = *context_->processes;
  const Own mine{device_, device_.kind == Device::Kind::cuda ? gpu_uuid(device_) : GpuUuid{}};
  std::vector<Own> all(static_cast<size_t>(processes.size()));
  processes.exchange(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  std::vector<Device> devices;
  int n_gpus = 0;
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].device.kind != all[0].device.kind)
      throw Error(ErrorKind::bad_input,
                  str("rank ", r, " is on ", to_string(all[r].device), ", rank 0 on ", to_string(all[0].device),
                      ": all are on the CPU or all on GPUs (--device)"));
    const auto same = std::find_if(all.begin(), all.end(), [&](const Own& each) { return each.gpu == all[r].gpu; });
    const auto first = static_cast<size_t>(same - all.begin());
    devices.push_back(first < r ? devices[first] : Device{all[r].device.kind, all[0].device.index + n_gpus++});
  }
  return devices;
}

void Session::choose_sums(const SessionOptions& options) {
  if (options.comm == "auto") return;
  if (context_->processes == nullptr || device_.kind == Device::Kind::cpu)
    throw Error(ErrorKind::bad_input, str("--comm ", options.comm, " is for one process a rank on GPUs, and this is ",
                                          context_->processes ? "the CPU" : "one process for all ranks"));
  runner_options_.sums_by = options.comm == "ipc" ? SumsBy::ipc : options.comm == "nccl" ? SumsBy::nccl : SumsBy::host;
}

void Session::agree(bool with_runner) {
  ProcessComm& processes = *context_->processes;
  const bool decides = processes.rank() == 0;
  const std::string manifest = firstlight::to_json(*manifest_),
                    model = xxh3_128_hex(std::as_bytes(std::span(manifest)));
  RunnerOptions& runner = runner_options_;
  const nlohmann::json mine{{"model", model},
                            {"with_runner", with_runner},
                            {"kv", static_cast<int>(runner.kv)},
                            {"n_pages", runner.n_pages},
                            {"n_exact_pages", runner.n_exact_pages},
                            {"centring", runner.means ? runner.means->hash() : ""},
                            {"max_batch_tokens", runner.max_batch_tokens},
                            {"sums_by", static_cast<int>(runner.sums_by)},
                            {"n_threads", runner.n_threads}};
  const nlohmann::json theirs = from_rank_0(processes, mine);
  if (decides) return;
  if (theirs.at("model") != model || theirs.at("with_runner") != with_runner) {
    throw Error(ErrorKind::bad_input,
                str("this rank was started with ", theirs.at("model") != model ? "another model" : "another command",
                    " than rank 0: all ranks have the same command line"));
  }
  if (theirs.at("centring") != mine.at("centring"))
    throw Error(ErrorKind::bad_input, "this rank's --kv-calibration is another one than rank 0's");
  runner.kv = static_cast<KvKind>(theirs.at("kv").get<int>());
  runner.n_pages = theirs.at("n_pages");
  runner.n_exact_pages = theirs.at("n_exact_pages");
  runner.max_batch_tokens = theirs.at("max_batch_tokens");
  runner.sums_by = static_cast<SumsBy>(theirs.at("sums_by").get<int>());
  runner.n_threads = theirs.at("n_threads");
}

/// Where several ranks' weights come out of one memory (the host's, or a GPU's that they share), the first of them
/// looks before any of them takes its part; each rank looks at its own GPU when it loads.
void Session::require_fits_together(uint64_t all_weights, uint64_t all_reserve) {
  ProcessComm& processes = *context_->processes;
  const auto rank = static_cast<size_t>(processes.rank());
  const auto n = static_cast<uint64_t>(std::count(devices_.begin(), devices_.end(), devices_[rank]));
  const bool first = std::find(devices_.begin(), devices_.end(), devices_[rank]) - devices_.begin() == processes.rank();
  const auto part = [&](uint64_t bytes) { return bytes / devices_.size() * n; };
  if (first && n > 1) require_fits(part(all_weights), part(all_reserve), free_memory(device_), device_);
  processes.barrier();
}

/// The last that ranks say to each other.
LoadReport Session::end_group(LoadReport report) {
  ProcessComm& processes = *context_->processes;
  if (runner_) runner_->finish();
  const RankReport& own = report.ranks.at(0);
  const LoadedRank mine{own.rank, own.bytes, own.leaves_checked, report.seconds, report.verify_cpu_seconds};
  std::vector<LoadedRank> all(processes.rank() == 0 ? static_cast<size_t>(processes.size()) : 0);
  processes.gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  for (size_t r = 1; r < all.size(); ++r) {
    report.ranks.push_back(
        {static_cast<int>(all[r].rank), devices_[r], all[r].bytes, all[r].seconds, all[r].leaves_checked});
    report.bytes += all[r].bytes;
    report.seconds = std::max(report.seconds, all[r].seconds);
    report.verify_cpu_seconds += all[r].verify_cpu_seconds;
  }
  processes.leave();
  return report;
}

LoadReport Session::wait() {
  const LoadReport report = load_->wait();
  if (small_files_.valid()) small_files_.get();
  return context_->processes ? end_group(report) : report;
}

void Session::follow() {
  if (with_runner_) follow_passes(load_->config(), load_->weights(), runner_options_);
  wait();
}

}  // namespace firstlight::cli
