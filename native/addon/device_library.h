// The libraries of kernels for devices, loaded from beside this addon when first asked for, and never unloaded.
#pragma once
#include <napi.h>

#include "../core/device_library.h"

namespace ingot::addon {

// Of the CUDA library. Codes: those of native/cuda/device.cc, and not_built, library_unloadable, library_mismatch.
DeviceStatus cuda_status();
// BACKEND_UNAVAILABLE with code and reason when there is none.
Fault open_cuda(const ModelOptions& options, std::unique_ptr<Executor>& out);

// cuda() of abi/native.ts.
Napi::Value cuda(const Napi::CallbackInfo& info);
Napi::Value cuda_kernels(const Napi::CallbackInfo& info);

}  // namespace ingot::addon
