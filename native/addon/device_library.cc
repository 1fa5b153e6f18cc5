#include "device_library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstring>

namespace ingot::addon {
namespace {

// A library, or why there is none.
struct Loaded {
  const DeviceLibrary* library = nullptr;
  DeviceStatus missing;
};

Loaded refuse(const char* code, std::string reason) {
  Loaded loaded;
  loaded.missing.code = code;
  loaded.missing.reason = std::move(reason);
  return loaded;
}

// Path of a file beside this addon.
std::string beside(const char* name) {
  Dl_info self{};
  if (!dladdr(reinterpret_cast<void*>(&beside), &self) || !self.dli_fname) return name;
  const std::string path = self.dli_fname;
  return path.substr(0, path.rfind('/') + 1) + name;
}

Loaded load(const char* name, const char* kernels) {
  const std::string path = beside(name);
  if (access(path.c_str(), F_OK) != 0) return refuse("not_built", std::string("this build has no ") + kernels + " kernels");
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return refuse("library_unloadable", dlerror());
  const auto entry = reinterpret_cast<DeviceLibraryEntry>(dlsym(handle, kDeviceLibraryEntry));
  if (!entry || std::strcmp(entry()->stamp, INGOT_STAMP) != 0)
    return refuse("library_mismatch", path + " was built from other sources than the addon; build both again");
  Loaded loaded;
  loaded.library = entry();
  return loaded;
}

const Loaded& cuda_library() {
  static const Loaded loaded = load("libingot_cuda.so", "CUDA");
  return loaded;
}

}  // namespace

DeviceStatus cuda_status() {
  const Loaded& loaded = cuda_library();
  return loaded.library ? loaded.library->status() : loaded.missing;
}

Fault open_cuda(const ModelOptions& options, std::unique_ptr<Executor>& out) {
  const Loaded& loaded = cuda_library();
  if (loaded.library) return loaded.library->open(options, out);
  return {"BACKEND_UNAVAILABLE",
          {{"backend", "cuda"}, {"reason", loaded.missing.code + ": " + loaded.missing.reason}}};
}

Napi::Value cuda_kernels(const Napi::CallbackInfo& info) {
  const DeviceLibrary* library = cuda_library().library;
  return Napi::String::New(info.Env(), library ? library->kernels() : "");
}

Napi::Value cuda(const Napi::CallbackInfo& info) {
  const DeviceStatus status = cuda_status();
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("code", status.code);
  object.Set("reason", status.reason);
  object.Set("name", status.name);
  object.Set("capability", std::to_string(status.major) + "." + std::to_string(status.minor));
  object.Set("driver", status.driver);
  object.Set("runtime", status.runtime);
  object.Set("memoryBytes", double(status.memory));
  object.Set("availableBytes", double(status.available));
  return object;
}

}  // namespace ingot::addon
