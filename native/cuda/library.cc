// What the addon finds in this library.
#include "cublaslt.h"
#include "device.h"
#include "model.h"

namespace {

// INGOT_KERNELS is a digest of their sources, compiler and architectures.
std::string kernels() {
  const size_t version = ingot::cuda::cublaslt_version();
  return std::string(INGOT_KERNELS) + (version ? ", cuBLASLt " + std::to_string(version) : ", no cuBLASLt");
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const ingot::DeviceLibrary* ingot_device_library() {
  static constexpr ingot::DeviceLibrary library{INGOT_STAMP, kernels, ingot::cuda::device_status,
                                                ingot::cuda::Model::open};
  return &library;
}
