// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/nccl_api_cuda.h"

#include <dlfcn.h>

#include <cstdlib>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"

namespace firstlight::cuda {

namespace {

constexpr const char *kLibrary = "libnccl.so.2", *kMulticast = "NCCL_NVLS_ENABLE";

template <class Function>
void find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (function == nullptr) throw Error(ErrorKind::unsupported, str(kLibrary, " has no ", name));
}

}  // namespace

NcclApi NcclApi::open() {
  // Multicast belongs to all users of a host's switches: a program that ends badly while it holds some can take it from
  // the others. Between few ranks it gains nothing.
  const char* is = std::getenv(kMulticast);
  if (is == nullptr || std::string_view(is) != "0") ::setenv(kMulticast, "0", 1);
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = dlerror();
    throw Error(ErrorKind::not_found, why != nullptr ? why : str(kLibrary, " does not open"));
  }
  NcclApi api;
  find(library, "ncclGetVersion", api.get_version);
  find(library, "ncclGetUniqueId", api.get_unique_id);
  find(library, "ncclCommInitRank", api.init_rank);
  find(library, "ncclAllReduce", api.all_reduce);
  find(library, "ncclGetErrorString", api.error_string);
  return api;
}

std::string NcclApi::version() const {
  int version = 0;
  check(get_version(&version), "ask for NCCL's version");
  return str(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

void NcclApi::check(int status, std::string_view what) const {
  if (status != 0) throw Error(ErrorKind::device, str(what, ": NCCL says ", error_string(status)));
}

}  // namespace firstlight::cuda
