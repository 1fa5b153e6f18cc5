// What the addon finds in this library.
#include "device.h"
#include "model.h"

extern "C" __attribute__((visibility("default"))) const ingot::DeviceLibrary* ingot_device_library() {
  static constexpr ingot::DeviceLibrary library{INGOT_STAMP, ingot::cuda::device_status, ingot::cuda::Model::open};
  return &library;
}
