#include "values.h"

#include <cmath>
#include <utility>

namespace ingot::addon {

void Reader::expected(const std::string& name, const char* type) {
  if (!std::exchange(ok_, false)) return;
  Napi::TypeError::New(env_, name + ": expected " + type).ThrowAsJavaScriptException();
}

Napi::Value Reader::property(Napi::Object from, const char* name) {
  if (!ok() || from.IsEmpty()) return env_.Undefined();
  const Napi::Value value = from.Get(name);
  ok_ = !value.IsEmpty();
  return ok_ ? value : env_.Undefined();
}

Napi::Object Reader::object(Napi::Value value, const std::string& name) {
  if (ok() && value.IsObject()) return value.As<Napi::Object>();
  expected(name, "an object");
  return {};
}

Napi::Array Reader::array(Napi::Value value, const std::string& name) {
  if (ok() && value.IsArray()) return value.As<Napi::Array>();
  expected(name, "an array");
  return {};
}

std::string Reader::string(Napi::Value value, const std::string& name) {
  if (ok() && value.IsString()) return value.As<Napi::String>().Utf8Value();
  expected(name, "a string");
  return {};
}

uint64_t Reader::integer(Napi::Value value, const std::string& name, uint64_t largest) {
  if (ok() && value.IsNumber()) {
    const double number = value.As<Napi::Number>().DoubleValue();
    if (number >= 0 && number <= 9007199254740992.0 && number == std::floor(number) && uint64_t(number) <= largest)
      return uint64_t(number);
  }
  expected(name, ("an integer from 0 to " + std::to_string(largest)).c_str());
  return 0;
}

std::span<std::byte> Reader::bytes(Napi::Value value, const std::string& name) {
  if (ok() && value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array) {
    auto array = value.As<Napi::Uint8Array>();
    return {reinterpret_cast<std::byte*>(array.Data()), array.ByteLength()};
  }
  expected(name, "a Uint8Array");
  return {};
}

std::span<std::byte> Reader::buffer(Napi::Value value, const std::string& name) {
  if (ok() && value.IsArrayBuffer()) {
    auto array = value.As<Napi::ArrayBuffer>();
    return {static_cast<std::byte*>(array.Data()), array.ByteLength()};
  }
  expected(name, "an ArrayBuffer");
  return {};
}

Napi::Object to_object(Napi::Env env, const Fault& fault) {
  Napi::Object details = Napi::Object::New(env);
  for (const auto& [name, value] : fault.details) {
    if (const auto* text = std::get_if<std::string>(&value)) details.Set(name, Napi::String::New(env, *text));
    else details.Set(name, Napi::Number::New(env, std::get<double>(value)));
  }
  Napi::Object object = Napi::Object::New(env);
  object.Set("code", fault.code);
  object.Set("details", details);
  return object;
}

}  // namespace ingot::addon
