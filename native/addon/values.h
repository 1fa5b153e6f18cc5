// Reading arguments and writing results at the edge to JavaScript.
#pragma once
#include <napi.h>

#include <cstdint>
#include <span>
#include <string>

#include "../core/status.h"

namespace ingot::addon {

// Reads arguments and properties. The first wrong one throws a TypeError that names it; what follows reads as zero.
// Check ok() before the values are used. (A pending exception is no such check:
// none is set while the environment ends.)
class Reader {
 public:
  explicit Reader(Napi::Env env) : env_(env) {}
  bool ok() const { return ok_; }
  void expected(const std::string& name, const char* type);

  Napi::Value property(Napi::Object from, const char* name);
  Napi::Object object(Napi::Value value, const std::string& name);
  Napi::Array array(Napi::Value value, const std::string& name);
  std::string string(Napi::Value value, const std::string& name);
  // An integer of [0, 2^53]; at most `largest`.
  uint64_t integer(Napi::Value value, const std::string& name, uint64_t largest);
  std::span<std::byte> bytes(Napi::Value value, const std::string& name);   // Uint8Array
  std::span<std::byte> buffer(Napi::Value value, const std::string& name);  // ArrayBuffer

 private:
  Napi::Env env_;
  bool ok_ = true;
};

// { code, details }
Napi::Object to_object(Napi::Env env, const Fault& fault);

}  // namespace ingot::addon
