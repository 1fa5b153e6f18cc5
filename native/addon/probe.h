// probe of abi/native.ts.
#pragma once
#include <napi.h>

namespace ingot::addon {

// A promise of NativeCeilings, or of a NativeFault. Throws a TypeError for wrong options.
Napi::Value probe(const Napi::CallbackInfo& info);

}  // namespace ingot::addon
