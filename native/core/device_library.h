// What a library of kernels for a device offers, which the addon loads at run time from beside itself. Both are built from
// the same headers, or do not touch each other: `stamp` is a digest of them.
#pragma once
#include <memory>
#include <string>

#include "executor.h"
#include "model.h"
#include "status.h"

namespace ingot {

struct DeviceStatus {
  std::string code = "available";  // stable; else why no model can be opened: compute/cuda-backend.ts lists them
  std::string reason;
  std::string name;                // of the device: NVIDIA H200
  int major = 0, minor = 0;        // compute capability
  int driver = 0, runtime = 0;     // versions, 13000 for 13.0
  uint64_t memory = 0, available = 0;  // bytes
};

struct DeviceLibrary {
  const char* stamp;
  std::string (*kernels)();  // what measurements of them are of: a digest of their sources, and what they call
  DeviceStatus (*status)() noexcept;
  Fault (*open)(const ModelOptions& options, std::unique_ptr<Executor>& out) noexcept;
};

// Exported by the library under kDeviceLibraryEntry, with C linkage.
using DeviceLibraryEntry = const DeviceLibrary* (*)();
inline constexpr const char* kDeviceLibraryEntry = "ingot_device_library";

}  // namespace ingot
