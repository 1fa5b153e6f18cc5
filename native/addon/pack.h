// Rows of a checkpoint into tiles: Addon.pack of abi/native.ts.
#pragma once
#include <napi.h>

namespace ingot::addon {

Napi::Value pack(const Napi::CallbackInfo& info);

}  // namespace ingot::addon
