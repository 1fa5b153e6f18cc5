// openModel of abi/native.ts.
#pragma once
#include <napi.h>

namespace ingot::addon {

// A NativeModel, or a NativeFault. Throws a TypeError for wrong options.
Napi::Value open_model(const Napi::CallbackInfo& info);

}  // namespace ingot::addon
