// openModel of abi/native.ts.
#pragma once
#include <napi.h>

#include <string>
#include <vector>

#include "../core/executor.h"
#include "../core/status.h"
#include "../cpu/cpu.h"
#include "values.h"

namespace ingot::addon {

// The instruction set of a name, or the best available when that is empty; nullptr: see isa_fault.
const cpu::InstructionSet* find_isa(const std::string& isa);
Fault isa_fault(const std::string& isa);

// NativeChoice[] of abi/native.ts.
std::vector<Chosen> read_choices(Reader& reader, const Napi::Value& from, const std::string& name);

// A NativeModel, or a NativeFault. Throws a TypeError for wrong options.
Napi::Value open_model(const Napi::CallbackInfo& info);

}  // namespace ingot::addon
