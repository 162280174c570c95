// SPDX-License-Identifier: Apache-2.0
// Which reader a start reads with, and how libcufile is opened for it.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "firstlight/ckpt/manifest.h"
#include "firstlight/cli/context.h"
#include "firstlight/io/cufile.h"
#include "firstlight/io/device_reader.h"
#include "firstlight/io/reader_choice.h"

namespace firstlight::cli {

struct SessionOptions;

/// Throws as Cufile::open() does.
using OpenCufile = std::function<std::shared_ptr<Cufile>()>;

/// Without compatibility mode, once for the probe and the load. May be called from several threads.
OpenCufile open_cufile_once();

/// `start` makes the device stand, on the reader's thread; `why` is of the choice.
std::unique_ptr<DeviceReader> make_cufile_reader(Device device, std::unique_ptr<Reader> host,
                                                 const std::function<void()>& start, const OpenCufile& open,
                                                 const std::string& why);

/// `--reader`; auto: what the page cache holds and the file system gives decides. Files that are not there are left to
/// the load. `open_direct` is asked only if a probe is made, or cufile was the fastest before. Throws
/// Error{unsupported} for an io_uring that is not to be had; Interrupted.
ReaderChoice choose_reader(Context& context, const SessionOptions& options, const Manifest& manifest, int tp,
                           int n_threads, const OpenCufile& open_direct);

}  // namespace firstlight::cli
