// The Addon interface of abi/native.ts. Nothing here outlives a call but NativeModel and the mappings it hands out,
// which JavaScript owns. C++ exceptions stop here.
#include <napi.h>

#include <memory>

#include "../core/memory.h"
#include "../core/plan_view.h"
#include "../core/processors.h"
#include "../cpu/cpu.h"
#include "device_library.h"
#include "native_model.h"
#include "open_model.h"
#include "pack.h"
#include "probe.h"
#include "values.h"

namespace ingot::addon {
namespace {

constexpr const char* kArch =
#if defined(__x86_64__) || defined(_M_X64)
    "x64";
#elif defined(__aarch64__)
    "arm64";
#else
    "other";
#endif

Napi::Value machine(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const cpu::CpuInfo& cpu = cpu::cpu_info();
  Napi::Array features = Napi::Array::New(env), available = Napi::Array::New(env), unavailable = Napi::Array::New(env);
  for (const char* feature : cpu.features) features.Set(features.Length(), feature);
  for (const cpu::InstructionSet& set : cpu::instruction_sets()) {
    if (set.table) {
      available.Set(available.Length(), set.name);
      continue;
    }
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("isa", set.name);
    entry.Set("reason", set.missing);
    unavailable.Set(unavailable.Length(), entry);
  }
  Napi::Object object = Napi::Object::New(env);
  object.Set("arch", kArch);
  object.Set("cpu", cpu.name);
  object.Set("physicalCores", cpu.physical_cores);
  object.Set("quota", processors().quota);
  object.Set("pinning", pinning(Pin::automatic, cpu.physical_cores).reason);
  object.Set("features", features);
  object.Set("available", available);
  object.Set("unavailable", unavailable);
  return object;
}

Napi::Value verify_plan(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Reader reader(env);
  const auto bytes = reader.bytes(info[0], "plan");
  if (!reader.ok()) return {};
  PlanView view;
  const PlanFault fault = verify(bytes, view);
  if (!fault) return env.Null();
  Napi::Object object = Napi::Object::New(env);
  object.Set("rule", fault.rule);
  object.Set("where", fault.where);
  object.Set("reason", fault.reason);
  if (fault.min_runtime) object.Set("minRuntime", fault.min_runtime);
  return object;
}

Napi::Value map_file(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Reader reader(env);
  const std::string path = reader.string(info[0], "path");
  if (!reader.ok()) return {};
  auto file = std::make_unique<MappedFile>();
  if (const Fault fault = MappedFile::open(path, true, *file)) {
    const bool missing = fault.code == "FILE_MISSING";
    const std::string reason = missing ? "no such file" : std::get<std::string>(fault.details.back().second);
    Napi::Error error = Napi::Error::New(env, reason);
    error.Set("code", fault.code);
    error.ThrowAsJavaScriptException();
    return {};
  }
  if (file->size() == 0) return Napi::ArrayBuffer::New(env, 0);
  MappedFile* owned = file.release();
  const Napi::Value buffer = Napi::ArrayBuffer::New(
      env, owned->data(), owned->size(), [](Napi::Env, void*, MappedFile* mapped) { delete mapped; }, owned);
  if (buffer.IsEmpty()) delete owned;
  return buffer;
}

// Turns what an implementation throws, an allocation at most, into an exception of JavaScript.
template <Napi::Value (*implementation)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return implementation(info);
  } catch (const std::exception& error) {
    Napi::Error::New(info.Env(), error.what()).ThrowAsJavaScriptException();
    return {};
  }
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto* instance = new Instance;
  instance->model_class = Napi::Persistent(NativeModel::define(env));
  env.SetInstanceData(instance);
  exports.Set("machine", Napi::Function::New<guarded<machine>>(env, "machine"));
  exports.Set("verifyPlan", Napi::Function::New<guarded<verify_plan>>(env, "verifyPlan"));
  exports.Set("mapFile", Napi::Function::New<guarded<map_file>>(env, "mapFile"));
  exports.Set("openModel", Napi::Function::New<guarded<open_model>>(env, "openModel"));
  exports.Set("cuda", Napi::Function::New<guarded<cuda>>(env, "cuda"));
  exports.Set("cudaKernels", Napi::Function::New<guarded<cuda_kernels>>(env, "cudaKernels"));
  exports.Set("probe", Napi::Function::New<guarded<probe>>(env, "probe"));
  exports.Set("pack", Napi::Function::New<guarded<pack>>(env, "pack"));
  return exports;
}

}  // namespace

NODE_API_MODULE(ingot, init)

}  // namespace ingot::addon
