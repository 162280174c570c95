// SPDX-License-Identifier: Apache-2.0
// GPUs by the CUDA runtime, which is linked statically and finds the driver itself: without one every call fails.
#include "firstlight/device/cuda.h"

#include <cstring>
#include <string>

#include "firstlight/base/error.h"
#include "firstlight/base/str.h"
#include "firstlight/device/gpu_memory.h"
#include "firstlight/device/gpus.h"
#include "firstlight/device/mapped_memory_cuda.h"

namespace firstlight {

namespace cuda {

void check(cudaError_t code, std::string_view what, std::source_location where) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // or a later check of a launch would find this one again
  const std::string message =
      str(what, what.empty() ? "" : ": ", cudaGetErrorName(code), ": ", cudaGetErrorString(code));
  throw Error(code == cudaErrorMemoryAllocation ? ErrorKind::out_of_memory : ErrorKind::device, message, where);
}

void use(Device device) {
  if (device.kind != Device::Kind::cuda) throw Error(ErrorKind::bug, str(to_string(device), " is no GPU"));
  const Gpus& found = gpus();
  if (device.index < 0 || device.index >= static_cast<int>(found.names.size())) {
    const std::string why = found.names.empty() ? found.why_none : str("there are ", found.names.size(), " GPUs");
    throw Error(ErrorKind::not_found, str(to_string(device), ": ", why));
  }
  check(cudaSetDevice(device.index), to_string(device));
}

}  // namespace cuda

namespace {

std::string version_text(int version) { return str(version / 1000, ".", version % 1000 / 10); }

/// "" if the device runs this build's kernels: code for 9.0a runs on 9.0 alone.
std::string why_unusable(int index, const std::string& name) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index);
  const std::string built = str(" ", FIRSTLIGHT_CUDA_ARCHITECTURES);
  if (built.find(str(" ", major * 10 + minor)) != std::string::npos) return "";
  return str(name, " has compute capability ", major, ".", minor, ", this build is for ",
             FIRSTLIGHT_CUDA_ARCHITECTURES);
}

Gpus ask_driver() {
  Gpus found;
  int driver = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    found.why_none = "no driver (libcuda.so.1 is not there)";
    return found;
  }
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver) {
    found.why_none = str("driver too old for runtime ", version_text(CUDART_VERSION), ": has ", version_text(driver));
  } else if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) {
    found.why_none = "no GPU";
  } else if (code != cudaSuccess) {
    found.why_none = str("the driver says ", cudaGetErrorName(code), ": ", cudaGetErrorString(code));
  }
  if (code != cudaSuccess) cudaGetLastError();
  if (!found.why_none.empty()) return found;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    const std::string name = cudaGetDeviceProperties(&properties, i) == cudaSuccess ? properties.name : "unknown GPU";
    if (const std::string why = why_unusable(i, name); !why.empty()) {
      // Indices must stay the driver's: GPUs behind one that cannot be used are not offered, either.
      if (found.names.empty()) found.why_none = why;
      break;
    }
    found.names.push_back(name);
  }
  return found;
}

}  // namespace

const Gpus& gpus() {
  static const Gpus found = ask_driver();
  return found;
}

GpuUuid gpu_uuid(Device device) noexcept {
  GpuUuid uuid{};
  cudaDeviceProp properties{};
  if (device.kind == Device::Kind::cuda && cudaGetDeviceProperties(&properties, device.index) == cudaSuccess) {
    static_assert(sizeof(properties.uuid.bytes) == sizeof(uuid));
    std::memcpy(uuid.data(), properties.uuid.bytes, sizeof(uuid));
  }
  return uuid;
}

namespace gpu {

namespace {

constexpr uint64_t kHuge = 2u << 20;

void finish_copy(cudaError_t code, uint64_t bytes, Device device) {
  // The calling thread's own stream: the legacy stream would wait for other threads' work.
  if (code == cudaSuccess) code = cudaStreamSynchronize(cudaStreamPerThread);
  if (code != cudaSuccess) cuda::check(code, str("copy ", bytes, " bytes to or from ", to_string(device)));
}

/// Below a unit of 2 MiB nothing is worth mapping.
bool is_mapped(uint64_t size, Reach reach) { return reach == Reach::own && size >= kHuge; }

}  // namespace

std::byte* allocate(Device device, uint64_t size, Reach& reach, void*& owned) {
  cuda::use(device);
  if (is_mapped(size, reach) && !cuda::maps_memory(device)) reach = Reach::peers;
  const std::string what =
      str("allocate ", human_bytes(static_cast<double>(size)), " (", size, " bytes) on ", to_string(device));
  if (size > (uint64_t{1} << 47)) cuda::check(cudaErrorMemoryAllocation, what);
  if (is_mapped(size, reach)) {
    std::byte* const data = cuda::map_memory(device, size, what);
    owned = data;
    return data;
  }
  const uint64_t slack = size >= kHuge ? kHuge : 0;
  cudaError_t code = cudaMalloc(&owned, size);
  if (code == cudaSuccess && slack != 0 && reinterpret_cast<uintptr_t>(owned) % kHuge != 0) {
    cudaFree(owned);  // only 256 bytes are promised; large blocks have come aligned so far
    owned = nullptr;
    code = cudaMalloc(&owned, size + slack);
  }
  if (code != cudaSuccess) {
    owned = nullptr;
    cuda::check(code, what);
  }
  auto at = reinterpret_cast<uintptr_t>(owned);
  if (slack != 0) at = (at + kHuge - 1) / kHuge * kHuge;
  return reinterpret_cast<std::byte*>(at);
}

void release(Device device, uint64_t size, Reach reach, void* owned) noexcept {
  if (is_mapped(size, reach)) return cuda::unmap_memory(device, static_cast<std::byte*>(owned), size);
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device.index) != cudaSuccess) return;
  cudaFree(owned);  // fails only where the context is gone, and the memory with it
  cudaGetLastError();
  cudaSetDevice(before);
}

uint64_t free_memory(Device device) {
  cuda::use(device);
  size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), str("free memory of ", to_string(device)));
  return free;
}

void copy(std::byte* to, Device to_device, const std::byte* from, Device from_device, uint64_t bytes) {
  const bool to_gpu = to_device.kind == Device::Kind::cuda;
  const bool from_gpu = from_device.kind == Device::Kind::cuda;
  const Device where = to_gpu ? to_device : from_device;
  cuda::use(where);
  if (to_gpu && from_gpu && to_device.index != from_device.index) {
    finish_copy(cudaMemcpyPeerAsync(to, to_device.index, from, from_device.index, bytes, cudaStreamPerThread), bytes,
                where);
    return;
  }
  const cudaMemcpyKind kind = !from_gpu ? cudaMemcpyHostToDevice
                              : !to_gpu ? cudaMemcpyDeviceToHost
                                        : cudaMemcpyDeviceToDevice;
  finish_copy(cudaMemcpyAsync(to, from, bytes, kind, cudaStreamPerThread), bytes, where);
}

void clear(std::byte* to, Device device, uint64_t bytes) {
  cuda::use(device);
  finish_copy(cudaMemsetAsync(to, 0, bytes, cudaStreamPerThread), bytes, device);
}

void start(Device device) {
  cuda::use(device);
  cuda::check(cudaFree(nullptr), str("context of ", to_string(device)));
}

void* make_stream(Device device) {
  cuda::use(device);
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), str("create a stream of ", to_string(device)));
  return stream;
}

void release_stream(Device device, void* stream) noexcept {
  if (cudaSetDevice(device.index) == cudaSuccess) cudaStreamDestroy(static_cast<cudaStream_t>(stream));
  cudaGetLastError();  // fails only where the context is gone, and the stream with it
}

void wait(Device device, void* stream) {
  cuda::use(device);
  cuda::check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)),
              str("wait for a stream of ", to_string(device)));
}

}  // namespace gpu
}  // namespace firstlight
