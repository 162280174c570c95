// SPDX-License-Identifier: Apache-2.0
#include "firstlight/cli/session_reader.h"

#include <mutex>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/cli/session.h"
#include "firstlight/device/gpus.h"
#include "firstlight/io/cufile_reader.h"
#include "firstlight/io/ring.h"

namespace firstlight::cli {

OpenCufile open_cufile_once() {
  struct Opened {
    std::mutex mutex;
    std::shared_ptr<Cufile> cufile;
  };
  return [opened = std::make_shared<Opened>()] {
    const std::lock_guard lock(opened->mutex);
    if (!opened->cufile) opened->cufile = Cufile::open(/*allow_compatibility=*/false);
    return opened->cufile;
  };
}

std::unique_ptr<DeviceReader> make_cufile_reader(Device device, std::unique_ptr<Reader> host,
                                                 const std::function<void()>& start, const OpenCufile& open,
                                                 const std::string& why) {
  CufileOptions cufile;
  cufile.open = [start, open] {
    start();
    return open();
  };
  cufile.enter_thread = [device] { start_device(device); };
  cufile.gpu = [device] { return gpu_uuid(device); };
  cufile.why = why;
  return std::make_unique<CufileReader>(std::move(cufile), std::move(host));
}

ReaderChoice choose_reader(Context& context, const SessionOptions& options, const Manifest& manifest, int tp,
                           int n_threads, const OpenCufile& open_direct) {
  if (options.reader == "io_uring") {
    if (!why_no_io_uring().empty())
      throw Error(ErrorKind::unsupported, str("--reader io_uring: ", why_no_io_uring(), "; auto and pread do without"));
    return {ReaderKind::io_uring, "--reader io_uring"};
  }
  if (options.reader == "cufile") return {ReaderKind::pread, "headers and small files"};
  const Timeline::Scope scope(&context.timeline, "choice of reader");
  std::vector<std::shared_ptr<const File>> files;
  if (const ManifestTp* stored = manifest.find_tp(tp)) {
    for (const ManifestRank& rank : stored->ranks) {
      for (const ManifestPart& part : rank.parts) files.push_back(open_listed(options.model, manifest, part.file));
    }
  }
  if (options.reader != "auto") return choose_pread(files, "--reader " + options.reader, options.reader == "buffered");
  ReaderChooser chooser;
  chooser.n_threads = n_threads;
  chooser.stop = context.stop;
  if (const std::vector<Device> devices = likely_devices(options.device, tp); !devices.empty()) {
    const Device device = devices.front();
    chooser.direct = {device, [device, open_direct] {
                        return make_cufile_reader(
                            device, nullptr, [device] { start_device(device); }, open_direct, "");
                      }};
  }
  return chooser.choose(files);
}

}  // namespace firstlight::cli
