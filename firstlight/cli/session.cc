// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/session.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "firstlight/base/error.h"
#include "firstlight/base/start_thread.h"
#include "firstlight/base/str.h"
#include "firstlight/base/thread_pool.h"
#include "firstlight/ckpt/checked_files.h"
#include "firstlight/ckpt/slice_map.h"
#include "firstlight/cli/arguments.h"
#include "firstlight/cli/early_load.h"
#include "firstlight/cli/tp_choice.h"
#include "firstlight/comm/process_comm.h"
#include "firstlight/device/gpus.h"

namespace firstlight::cli {

int default_tp(const Manifest& manifest, int n_gpus) {
  if (manifest.tps.empty()) throw Error(ErrorKind::damaged, "the manifest lists no tp");
  std::vector<int> tps;
  for (const ManifestTp& stored : manifest.tps) tps.push_back(stored.tp);
  return tp_for(tps, n_gpus);
}

void SessionOptions::add_to(CLI::App& command) {
  command.add_option("MODEL", model, "Hugging Face directory, .gguf file or rank checkpoint")->required();
  command
      .add_option(
          "--tp", tp,
          "Tensor-parallel ranks (default: of those stored the most that have a GPU each; on the CPU the fewest)")
      ->check(whole_number(1, 1024));
  command.add_option("--device", device, "auto, cpu, cuda (ranks on GPUs 0, 1, …) or cuda:N (all on that one)")
      ->capture_default_str();
  command.add_option("--dtype", dtype, "Of the weights, when MODEL is no rank checkpoint: bf16 or f32")
      ->check(one_of({"bf16", "f32"}));
  std::vector<std::string> kinds;
  for (const KvKind kind : kKvKinds) kinds.emplace_back(to_string(kind));
  command
      .add_option("--kv", kv,
                  "KV cache: f32, bf16 (default: as the weights), or TurboQuant codes of so many bits: tq8, k8v4, tq4, "
                  "k4v3, tq3, k3v2")
      ->check(one_of(kinds));
  command.add_option("--kv-calibration", kv_calibration,
                     "File of `calibrate` that codes are centred by (default: they are not centred)");
  command.add_option("--kv-memory", kv_memory,
                     "Bytes for the KV cache, such as 2GiB (default: one sequence of --max-context)");
  command.add_option("--max-context", max_context, "Tokens a sequence may have (default: the model's, or what fits)")
      ->check(whole_number(1, int64_t{1} << 40));
  command.add_option("--threads", threads, "CPU threads over all ranks (default: usable cores)")
      ->check(whole_number(1, 4096));
  command
      .add_option("--reader", reader,
                  "How weights are read: auto (measured), pread or io_uring (cold files past the page cache), buffered "
                  "(through it: the next start finds them there), or on a GPU cufile (GPUDirect Storage; in "
                  "compatibility mode where there is nothing else)")
      ->check(one_of({"auto", "pread", "buffered", "io_uring", "cufile"}))
      ->capture_default_str();
  command
      .add_option("--comm", comm,
                  "How ranks that are processes add up on GPUs: auto (by what there is), ipc (peer access between "
                  "processes), nccl, or host (through host memory)")
      ->check(one_of({"auto", "ipc", "nccl", "host"}))
      ->capture_default_str();
  command
      .add_option(
          "--verify", verify,
          "full: every byte of a rank checkpoint against its hash; sample: every 16th leaf (1 MiB); off: headers "
          "and small files only")
      ->check(one_of({"full", "sample", "off"}))
      ->capture_default_str();
  command
      .add_option("--deadline", deadline_s,
                  "Seconds that loading may take before it fails, whatever the storage does (default: no limit)")
      ->check(number(1e-3, 1e9));
  command.add_flag("--traditional", traditional,
                   "Load as other engines do: through host memory, converted, one rank after another");
}

namespace {

/// Asks the driver, chooses, makes the context: 0.2 s and more on a GPU, so on a thread of its own.
DeviceChoice prepare_device(Context& context, const std::string& wanted) {
  static const Gpus kNotAsked;
  const double begin = seconds_since_exec();
  const Gpus& found = wanted == "cpu" ? kNotAsked : gpus();
  DeviceChoice choice = choose_device(wanted, found);
  if (const ProcessComm* processes = context.processes.get()) {
    const int rank = processes->rank();
    choice.device = rank_devices(wanted, choice.device, processes->size(), found)[static_cast<size_t>(rank)];
  }
  start_device(choice.device);
  if (choice.device.kind != Device::Kind::cpu) {
    context.timeline.add(str("context ", to_string(choice.device)), begin, seconds_since_exec());
  }
  return choice;
}

/// The number of the last device in use, plus one.
int n_devices(const std::vector<Device>& devices) {
  int n = 0;
  for (const Device device : devices) n = std::max(n, device.index + 1);
  return n;
}

/// Shows this process only the GPUs that will be used: each that is visible makes contexts slower. Returns over how
/// many ranks can be spread, it seems.
int show_used_gpus(const SessionOptions& options) {
  constexpr int kAnyTp = 1024;
  const bool named = options.device.starts_with("cuda:");
  const int n_gpus = named ? 1 : n_devices(likely_devices(options.device, kAnyTp));
  const int tp = options.tp > 0 ? options.tp : options.traditional ? 1 : tp_for(stored_tps(options.model), n_gpus);
  const int n = n_devices(likely_devices(options.device, tp));
  if (n > 0) show_gpus(n);
  if (n >= tp) use_few_queues();
  return n_gpus;
}

uint64_t weight_bytes(const ModelConfig& config, int tp, DType dtype) {
  uint64_t bytes = 0;
  for (const ModelTensor& tensor : model_tensors(config)) {
    uint64_t elements = 1;
    for (const int64_t n : slice_of(config, tensor, tp, 0).shape()) elements *= static_cast<uint64_t>(n);
    bytes += elements * size_of(dtype);
  }
  return bytes * static_cast<uint64_t>(tp);
}

/// The traditional path checks nothing by itself, but here there are hashes: no byte of a rank checkpoint is used
/// unchecked.
void check_traditional(Context& context, const fs::path& out, const Manifest& manifest, int n_threads) {
  const Timeline::Scope scope(&context.timeline, "verify tp1/rank-00");
  check_files(
      out, manifest, [](const std::string& name) { return name.starts_with("tp1/rank-00/"); }, n_threads, context.stop);
}

/// What `auto` and `cuda` spread ranks over; a GPU that is named takes all of them.
int n_usable_gpus(const SessionOptions& options, Device device) {
  if (device.kind == Device::Kind::cpu) return 0;
  return options.device.starts_with("cuda:") ? 1 : static_cast<int>(gpus().names.size());
}

}  // namespace

Session::Session(Context& context, const SessionOptions& options, bool with_text, bool with_runner)
    : context_(&context),
      watch_(std::make_shared<LoadWatch>(options.model, options.deadline_s, context.json)),
      with_runner_(with_runner) {
  ProcessComm* const processes = context.processes.get();
  const bool decides = processes == nullptr || processes->rank() == 0;
  const int gpus_ahead = processes != nullptr ? 0 : show_used_gpus(options);  // join_launched() has shown them
  const auto prepare = [&] { return prepare_device(context, options.device); };
  std::future<DeviceChoice> device =
      options.device == "cpu" ? std::async(std::launch::deferred, prepare) : start_future("the device", prepare);
  n_threads_ = options.threads > 0 ? options.threads : usable_cores();
  auto opening = std::make_unique<Timeline::Scope>(&context.timeline, "open");
  const ModelKind kind = model_kind(options.model);
  if (processes != nullptr) require_joinable(options, kind);
  ModelConfig config;
  DType weights_dtype = DType::bf16;
  fs::path source_path = options.model;
  TextFiles files;
  if (kind == ModelKind::rank_checkpoint) {
    if (!options.dtype.empty())
      throw Error(ErrorKind::bad_input,
                  "--dtype: a rank checkpoint is loaded as it is stored; choose the dtype with shard --dtype");
    manifest_ = std::make_shared<const Manifest>(read_manifest(options.model));
    config = parse_hf_config(read_listed(options.model, *manifest_, "config.json"));
    tp_ = options.tp != 0 ? options.tp : default_tp(*manifest_, gpus_ahead);
    weights_dtype = manifest_->tensors.empty() ? DType::bf16 : manifest_->tensors.front().dtype;
    files = text_files(options.model, *manifest_);
    if (options.traditional) {  // any rank directory of tp 1 is a Hugging Face directory
      if (manifest_->find_tp(1) == nullptr)
        throw Error(ErrorKind::not_found, "--traditional: tp 1 is not stored, so there is no whole model to read");
      source_path /= "tp1/rank-00";
      if (options.verify != "off") check_traditional(context, options.model, *manifest_, n_threads_);
      tp_ = options.tp == 0 ? 1 : options.tp;
    }
  }
  if (kind != ModelKind::rank_checkpoint || options.traditional) {
    source_ = open_source(source_path);
    config = source_->config();
    if (kind != ModelKind::rank_checkpoint) {
      tp_ = options.tp == 0 ? 1 : options.tp;
      files = text_files(*source_);
    }
    const bool all_f32 = options.dtype.empty() && source_->tensors().front().dtype == DType::f32 &&
                         !source_->tensors().front().quantised;
    weights_dtype = options.dtype == "f32" || all_f32 ? DType::f32 : DType::bf16;
  }
  require_tp(config, tp_);
  if (source_ && (options.reader == "io_uring" || options.reader == "cufile"))
    throw Error(ErrorKind::bad_input, str("--reader ", options.reader, ": the traditional path reads by pread alone"));
  opening->end();
  files.optional = options.text_optional;
  if (with_text) start_text(std::move(files));
  const OpenCufile open_direct = open_cufile_once();
  ReaderChoice reader;  // made while the device's context comes up
  if (!source_ && decides) reader = choose_reader(context, options, *manifest_, tp_, n_threads_, open_direct);
  if (processes != nullptr) share(reader);
  LoadOptions load = load_options(options, reader, open_direct);
  std::optional<EarlyLoad> early;
  if (!source_ && !load.devices.empty()) early.emplace(options.model, load);
  const DeviceChoice choice = device.get();
  device_ = choice.device;
  if (options.reader == "cufile" && device_.kind == Device::Kind::cpu)
    throw Error(ErrorKind::bad_input, str("--reader cufile reads into a GPU's memory, the device is the CPU",
                                          choice.why.empty() ? "" : str(" (", choice.why, ")")));
  if (!choice.why.empty()) say(context, str("device: ", to_string(device_), " (", choice.why, ")"));
  if (!source_) {
    const int n_gpus = n_usable_gpus(options, device_);
    const int tp = options.tp != 0 ? options.tp : default_tp(*manifest_, n_gpus);
    if (tp != tp_) {  // other GPUs than there seemed to be
      early.reset();
      tp_ = tp;
      load =
          load_options(options, choose_reader(context, options, *manifest_, tp_, n_threads_, open_direct), open_direct);
    }
    if (options.tp == 0 && n_gpus > 1)
      say(context,
          str("tp: ", tp_, " (of those stored ",
              tp_ <= n_gpus ? "the largest" : "the smallest, more than one rank a GPU,", " for ", n_gpus, " GPUs)"));
  }
  if (manifest_ && decides) start_small_files(options.model, options.traditional ? 1 : tp_, with_text);
  devices_ = processes != nullptr
                 ? devices_of_processes()
                 : rank_devices(options.device, device_, tp_, device_.kind == Device::Kind::cpu ? Gpus() : gpus());

  KvKind kv = weights_dtype == DType::f32 ? KvKind::f32 : KvKind::bf16;
  if (!options.kv.empty()) kv = *kv_kind_from(options.kv);
  if (!options.kv_calibration.empty()) read_means(config, options.kv_calibration, kv);
  runner_options_.n_threads = n_threads_;
  choose_sums(options);
  extra_bytes_ =
      static_cast<uint64_t>(options.logit_rows - 1) * static_cast<uint64_t>(config.vocab_size) * sizeof(float);
  // What a GPU's arithmetic keeps for itself: cuBLASLt's workspace, logits of 64 rows and those that ranks draw from,
  // inputs rounded to bf16, keys and values that are yet to become codes. Inboxes of ranks that exchange sums.
  // Of codes, pages that a prompt's attention expands: four for each multiprocessor, 17 MB for heads of 128.
  if (device_.kind == Device::Kind::cuda)
    extra_bytes_ += ((uint64_t{256} << 20) + (is_compressed(kv) ? uint64_t{32} << 20 : 0)) * static_cast<uint64_t>(tp_);
  else if (processes != nullptr)
    extra_bytes_ *= 3;  // each rank's columns of the logits, and all ranks' at rank 0
  const uint64_t all_weights = weight_bytes(config, tp_, weights_dtype);
  if (decides) choose_context(config, all_weights, options, kv);

  load.device = device_;
  load.devices = devices_;
  const auto reserve = [&] {
    return kv_page_bytes(config, tp_, kv) * static_cast<uint64_t>(runner_options_.n_pages) +
           exact_bytes(config, tp_, runner_options_) + scratch_bytes(config, tp_, runner_options_) + extra_bytes_;
  };
  load.reserve_bytes = reserve();
  if (processes != nullptr) {
    agree(with_runner);
    load.reserve_bytes = reserve();  // of rank 0's pages, which all ranks have now
    require_fits_together(all_weights, load.reserve_bytes);
    load.devices = {device_};
    load.reserve_bytes /= static_cast<uint64_t>(tp_);
    runner_options_.processes = processes;
  }
  load_ = source_ ? load_traditionally(*source_, load)
          : early ? early->finish(load.devices, load.reserve_bytes)
                  : load_rank_checkpoint(options.model, load);
  if (!with_runner || !decides) return;
  const Timeline::Scope scope(&context.timeline, "runner");
  runner_ = make_runner(load_->config(), load_->weights(), runner_options_);
}

/// All that is known before the devices are.
LoadOptions Session::load_options(const SessionOptions& options, ReaderChoice reader, OpenCufile open_direct) {
  LoadOptions load;
  load.tp = tp_;
  if (!source_) load.manifest = manifest_;
  load.devices = likely_devices(options.device, tp_);
  load.verify = options.verify == "off" ? Verify::off : options.verify == "sample" ? Verify::sample : Verify::full;
  load.deadline_s = options.deadline_s;
  load.n_threads = options.threads;  // unless told, a device's lane leaves cores to what is not reading
  if (options.dtype == "f32") load.dtype = DType::f32;
  if (options.dtype == "bf16") load.dtype = DType::bf16;
  if (manifest_ && source_ && load.verify != Verify::off) load.checked_before = "full, before the load";
  if (options.reader == "cufile" || reader.kind == ReaderKind::cufile) {
    // Whoever names this reader wants to see it run, in compatibility mode if need be.
    const bool named = options.reader == "cufile";
    const OpenCufile open = named ? [] { return Cufile::open(/*allow_compatibility=*/true); } : std::move(open_direct);
    load.make_device_reader = [open, why = named ? "" : reader.why](Device device, std::unique_ptr<Reader> host,
                                                                    const std::function<void()>& start) {
      return make_cufile_reader(device, std::move(host), start, open, why);
    };
  }
  int n_readers = std::max(1, n_devices(load.devices));
  load.in_flight = reader.in_flight;
  if (const ProcessComm* processes = context_->processes.get()) {
    load.rank = processes->rank();
    load.n_processes = n_readers = tp_;
    load.in_flight = std::max(1, reader.in_flight / tp_);
    if (!load.devices.empty()) load.devices = {load.devices[static_cast<size_t>(processes->rank())]};
  }
  load.make_reader = [reader = std::move(reader), n_readers](int n) { return make_reader(reader, n, n_readers); };
  load.stop = context_->stop;
  load.timeline = &context_->timeline;
  auto bar = std::make_shared<ProgressBar>(*context_);
  load.progress = [bar, watch = watch_](uint64_t done, uint64_t total) {
    bar->update("loading", done, total);
    if (done != total) return;
    bar->clear();
    watch->end();
  };
  return load;
}

Session::~Session() {
  if (text_future_.valid()) text_future_.wait();
}

}  // namespace firstlight::cli
