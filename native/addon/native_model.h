// NativeModel of abi/native.ts: a model and the thread that runs its steps, owned by one JavaScript object.
#pragma once
#include <napi.h>

#include <memory>
#include <optional>
#include <string>

#include "../core/model.h"
#include "../core/processors.h"
#include "../core/step_thread.h"

namespace ingot::addon {

// One an environment: the main thread and each worker have their own.
struct Instance {
  Napi::FunctionReference model_class;
  // What the next NativeModel is made of; empty but inside openModel, so that JavaScript cannot construct one.
  std::unique_ptr<Executor> opening;
  std::string isa;
  unsigned threads = 0;
  Pinning pinning{};
  // How long the step thread polls for the next step: waking it up takes as long as some steps of a device.
  std::chrono::microseconds spin{40};
};

class NativeModel : public Napi::ObjectWrap<NativeModel> {
 public:
  static Napi::Function define(Napi::Env env);

  explicit NativeModel(const Napi::CallbackInfo& info);
  ~NativeModel() override;

 private:
  struct Request;
  static void run(void* request);
  static void settle(Napi::Env env, Napi::Function, std::nullptr_t*, Request* request);
  using Completion = Napi::TypedThreadSafeFunction<std::nullptr_t, Request, &NativeModel::settle>;

  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value compare(const Napi::CallbackInfo& info);
  Napi::Value submit(Napi::Env env, std::unique_ptr<Request> request);
  Napi::Value read_state(const Napi::CallbackInfo& info);
  void write_state(const Napi::CallbackInfo& info);
  void fail_after(const Napi::CallbackInfo& info);
  void set_tally(const Napi::CallbackInfo& info);
  Napi::Value tally(const Napi::CallbackInfo& info);
  Napi::Value sentinels(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value choices(const Napi::CallbackInfo& info);
  Napi::Value choice_use(const Napi::CallbackInfo& info);
  Napi::Value isa(const Napi::CallbackInfo& info);
  Napi::Value threads(const Napi::CallbackInfo& info);
  Napi::Value pinning(const Napi::CallbackInfo& info);
  void dispose(const Napi::CallbackInfo& info);

  bool idle(Napi::Env env) const;
  struct Unit { uint32_t state, index; size_t bytes; };  // 0 bytes: refused, and thrown why
  Unit unit(const Napi::CallbackInfo& info);
  void stop();
  void close();
  static void environment_ends(void* model);

  std::unique_ptr<Executor> model_;
  std::optional<StepThread> thread_;
  Completion completion_;
  uint32_t steps_ = 0;  // on their way
  std::string isa_;
  unsigned threads_ = 0;
  Pinning pinning_{};
};

}  // namespace ingot::addon
