// SPDX-License-Identifier: Apache-2.0
#include "firstlight/comm/ipc_memory_cuda.h"

#include "firstlight/base/error.h"
#include "firstlight/device/cuda.h"

namespace firstlight::cuda {

namespace {

/// cuMemGetAddressRange() of the driver, whose library is not linked.
uintptr_t allocation_of(const void* at) {
  using AddressRange = int (*)(uintptr_t * base, size_t * size, uintptr_t at);
  static void* const found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
    constexpr unsigned kVersion = 3020;
    check(cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &function, kVersion, cudaEnableDefault, &result),
          "find cuMemGetAddressRange");
    return result == cudaDriverEntryPointSuccess ? function : nullptr;
  }();
  if (found == nullptr) throw Error(ErrorKind::device, "the driver has no cuMemGetAddressRange");
  uintptr_t base = 0;
  size_t size = 0;
  const int code = reinterpret_cast<AddressRange>(found)(&base, &size, reinterpret_cast<uintptr_t>(at));
  check(static_cast<cudaError_t>(code), "find the allocation of memory to be shared");
  return base;
}

}  // namespace

ExportedMemory export_memory(const void* at) {
  ExportedMemory memory;
  const uintptr_t base = allocation_of(at);
  memory.offset = reinterpret_cast<uintptr_t>(at) - base;
  check(cudaIpcGetMemHandle(&memory.handle, reinterpret_cast<void*>(base)), "share a GPU's memory (CUDA IPC)");
  return memory;
}

std::byte* ImportedMemory::at(const ExportedMemory& memory) {
  const std::string key(memory.handle.reserved, sizeof memory.handle.reserved);
  for (const auto& [handle, base] : opened_) {
    if (handle == key) return base + memory.offset;
  }
  void* base = nullptr;
  check(cudaIpcOpenMemHandle(&base, memory.handle, cudaIpcMemLazyEnablePeerAccess),
        "open another process's memory (CUDA IPC)");
  opened_.emplace_back(key, static_cast<std::byte*>(base));
  return opened_.back().second + memory.offset;
}

void ImportedMemory::close() noexcept {
  for (const auto& [handle, base] : opened_) cudaIpcCloseMemHandle(base);
  opened_.clear();
  cudaGetLastError();
}

RegisteredMemory::~RegisteredMemory() {
  if (host_ == nullptr) return;
  cudaHostUnregister(host_);
  cudaGetLastError();
}

void RegisteredMemory::add(std::span<std::byte> pages) {
  check(cudaHostRegister(pages.data(), pages.size(), cudaHostRegisterPortable | cudaHostRegisterMapped),
        "pin memory that processes share");
  host_ = pages.data();
  void* at = nullptr;
  check(cudaHostGetDevicePointer(&at, host_, 0), "map memory that processes share");
  on_gpu_ = static_cast<std::byte*>(at);
}

}  // namespace firstlight::cuda
