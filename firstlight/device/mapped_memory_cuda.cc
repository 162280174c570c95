// SPDX-License-Identifier: Apache-2.0
#include "firstlight/device/mapped_memory_cuda.h"

#include <cuda.h>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/cuda.h"

namespace firstlight::cuda {

namespace {

constexpr uint64_t kUnit = 2u << 20;  // of every GPU that these kernels run on

uint64_t whole_units(uint64_t size) { return (size + kUnit - 1) / kUnit * kUnit; }

void check_driver(CUresult code, std::string_view what) { check(static_cast<cudaError_t>(code), what); }

template <class Function>
void find(const char* name, Function& function) {
  constexpr unsigned kVersion = 10020;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  check(cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, &result), name);
  if (result != cudaDriverEntryPointSuccess) throw Error(ErrorKind::device, str("the driver has no ", name));
  function = reinterpret_cast<Function>(found);
}

/// The driver's library is not linked.
struct Driver {
  decltype(&cuMemCreate) create = nullptr;
  decltype(&cuMemRelease) release = nullptr;
  decltype(&cuMemAddressReserve) reserve = nullptr;
  decltype(&cuMemAddressFree) give_back = nullptr;
  decltype(&cuMemMap) map = nullptr;
  decltype(&cuMemUnmap) unmap = nullptr;
  decltype(&cuMemSetAccess) set_access = nullptr;
  decltype(&cuCtxGetDevice) current = nullptr;
  decltype(&cuDeviceGetAttribute) attribute = nullptr;

  Driver() {
    find("cuMemCreate", create);
    find("cuMemRelease", release);
    find("cuMemAddressReserve", reserve);
    find("cuMemAddressFree", give_back);
    find("cuMemMap", map);
    find("cuMemUnmap", unmap);
    find("cuMemSetAccess", set_access);
    find("cuCtxGetDevice", current);
    find("cuDeviceGetAttribute", attribute);
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

}  // namespace

bool maps_memory(Device device) {
  use(device);
  CUdevice handle = 0;
  int has = 0;
  check_driver(driver().current(&handle), "ask for the GPU in use");
  check_driver(driver().attribute(&has, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, handle),
               "ask a GPU for its address ranges");
  return has != 0;
}

std::byte* map_memory(Device device, uint64_t size, const std::string& what) {
  use(device);
  const Driver& by = driver();
  const uint64_t bytes = whole_units(size);
  const CUmemLocation here{CU_MEM_LOCATION_TYPE_DEVICE, {device.index}};
  CUmemAllocationProp kind{};
  kind.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  kind.location = here;
  CUmemGenericAllocationHandle memory{};
  check_driver(by.create(&memory, bytes, &kind, 0), what);
  CUdeviceptr at = 0;
  CUresult code = by.reserve(&at, bytes, kUnit, 0, 0);
  const bool is_reserved = code == CUDA_SUCCESS;
  if (code == CUDA_SUCCESS) code = by.map(at, bytes, 0, memory, 0);
  by.release(memory);  // it lives on while it is mapped
  const bool is_mapped = code == CUDA_SUCCESS;
  const CUmemAccessDesc access{here, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  if (code == CUDA_SUCCESS) code = by.set_access(at, bytes, &access, 1);
  if (code != CUDA_SUCCESS) {
    if (is_mapped) by.unmap(at, bytes);
    if (is_reserved) by.give_back(at, bytes);
    check_driver(code, what);
  }
  return reinterpret_cast<std::byte*>(at);
}

void unmap_memory(Device device, std::byte* data, uint64_t size) noexcept {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device.index) != cudaSuccess) return;
  cudaDeviceSynchronize();  // as cudaFree does; fails only where the context is gone, and the memory with it
  const auto at = reinterpret_cast<CUdeviceptr>(data);
  driver().unmap(at, whole_units(size));
  driver().give_back(at, whole_units(size));
  cudaGetLastError();
  cudaSetDevice(before);
}

}  // namespace firstlight::cuda
