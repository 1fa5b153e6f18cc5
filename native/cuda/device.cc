#include "device.h"

#include "memory.h"
#include "units.h"

namespace ingot::cuda {
namespace {

constexpr int kOrdinal = 0;

DeviceStatus refuse(DeviceStatus status, const char* code, std::string reason) {
  status.code = code;
  status.reason = std::move(reason);
  return status;
}

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string text(cudaError_t error) { return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error); }

}  // namespace

DeviceStatus device_status() noexcept {
  DeviceStatus status;
  cudaDriverGetVersion(&status.driver);
  cudaRuntimeGetVersion(&status.runtime);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (status.driver == 0) return refuse(status, "driver_missing", "no NVIDIA driver is installed");
  if (error == cudaErrorInsufficientDriver)
    return refuse(status, "driver_too_old", "the driver supports CUDA " + version(status.driver) + ", this build needs " +
                                                version(status.runtime));
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    return refuse(status, "no_device", "the driver sees no NVIDIA device");
  cudaDeviceProp properties{};
  size_t available = 0, total = 0;
  const cudaError_t asked = error != cudaSuccess ? error : cudaGetDeviceProperties(&properties, kOrdinal);
  if (asked != cudaSuccess) return refuse(status, "device_failed", text(asked));
  status.name = properties.name;
  status.major = properties.major;
  status.minor = properties.minor;
  if (status.major < 8)
    return refuse(status, "compute_capability_below_sm80",
                  status.name + " has compute capability " + std::to_string(status.major) + "." +
                      std::to_string(status.minor) + ", the kernels need 8.0");
  const cudaError_t free = cudaSetDevice(kOrdinal) == cudaSuccess ? cudaMemGetInfo(&available, &total) : cudaGetLastError();
  if (free != cudaSuccess) return refuse(status, "device_failed", text(free));
  if (const cudaError_t code = find_code(); code != cudaSuccess) {
    cudaGetLastError();
    if (code != cudaErrorNoKernelImageForDevice && code != cudaErrorInvalidDeviceFunction)
      return refuse(status, "device_failed", text(code));
    return refuse(status, "device_not_built_for",
                  "this build has no kernels for compute capability " + std::to_string(status.major) + "." +
                      std::to_string(status.minor) + " of " + status.name +
                      "; name it in INGOT_CUDA_ARCHITECTURES and build again");
  }
  status.memory = total;
  status.available = available;
  return status;
}

Fault open_device(Device& out, std::string& name) {
  const DeviceStatus status = device_status();
  if (status.code != "available")
    return {"BACKEND_UNAVAILABLE", {{"backend", "cuda"}, {"reason", status.code + ": " + status.reason}}};
  out = {kOrdinal, status.major, status.minor, 0, 0};
  name = status.name;
  int processors = 0, shared = 0;
  cudaError_t error = cudaSetDevice(kOrdinal);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, kOrdinal);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, kOrdinal);
  out.processors = processors;
  out.shared_bytes = size_t(shared);
  return fault_of(error, "opening " + status.name);
}

}  // namespace ingot::cuda
