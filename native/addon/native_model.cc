#include "native_model.h"

#include <cstring>
#include <utility>

#include "open_model.h"
#include "values.h"

namespace ingot::addon {

// One step on its way: kept until its promise settles, so that neither the buffers nor the model can be collected.
struct NativeModel::Request {
  NativeModel* owner;
  napi_deferred promise;
  Napi::Reference<Napi::Value> step_buffer, result_buffer, other_buffer;
  std::span<std::byte> step, result, other;  // other: the trace, or of a comparison the times
  std::vector<std::vector<Chosen>> sets;     // to compare; none: a plain step
  Fault fault;
};

Napi::Function NativeModel::define(Napi::Env env) {
  return DefineClass(env, "NativeModel",
                     {InstanceMethod<&NativeModel::step>("step"), InstanceMethod<&NativeModel::read_state>("readState"),
                      InstanceMethod<&NativeModel::write_state>("writeState"),
                      InstanceMethod<&NativeModel::fail_after>("failAfter"),
                      InstanceMethod<&NativeModel::set_tally>("setTally"),
                      InstanceMethod<&NativeModel::tally>("tally"),
                      InstanceMethod<&NativeModel::sentinels>("sentinels"),
                      InstanceMethod<&NativeModel::compare>("compare"),
                      InstanceMethod<&NativeModel::choices>("choices"),
                      InstanceMethod<&NativeModel::choice_use>("choiceUse"),
                      InstanceMethod<&NativeModel::memory>("memory"), InstanceMethod<&NativeModel::dispose>("dispose"),
                      InstanceAccessor<&NativeModel::isa>("isa"), InstanceAccessor<&NativeModel::threads>("threads"),
                      InstanceAccessor<&NativeModel::pinning>("pinning")});
}

NativeModel::NativeModel(const Napi::CallbackInfo& info) : Napi::ObjectWrap<NativeModel>(info) {
  Instance& instance = *info.Env().GetInstanceData<Instance>();
  if (!instance.opening) {
    Napi::TypeError::New(info.Env(), "a NativeModel is made by openModel only").ThrowAsJavaScriptException();
    return;
  }
  try {
    thread_.emplace(instance.spin);
  } catch (const std::exception& error) {
    Napi::Error::New(info.Env(), error.what()).ThrowAsJavaScriptException();
    return;
  }
  completion_ = Completion::New(info.Env(), "ingot step", 0, 1, static_cast<std::nullptr_t*>(nullptr));
  if (!napi_threadsafe_function(completion_)) {
    thread_.reset();
    return;
  }
  completion_.Unref(info.Env());
  // Hooks run newest first: this one ends the thread before the environment closes `completion_` under it.
  napi_add_env_cleanup_hook(info.Env(), environment_ends, this);
  model_ = std::move(instance.opening);
  isa_ = instance.isa;
  threads_ = instance.threads;
  pinning_ = std::move(instance.pinning);
}

NativeModel::~NativeModel() { close(); }

// Waits for the steps on their way, then frees everything.
void NativeModel::stop() {
  thread_.reset();
  model_.reset();
}

void NativeModel::close() {
  if (!thread_) return;
  stop();
  napi_remove_env_cleanup_hook(Env(), environment_ends, this);
  completion_.Release();
}

// The environment closes `completion_` itself.
void NativeModel::environment_ends(void* model) { static_cast<NativeModel*>(model)->stop(); }

Napi::Value NativeModel::step(const Napi::CallbackInfo& info) {
  Reader reader(info.Env());
  auto request = std::make_unique<Request>();
  request->step = reader.buffer(info[0], "step");
  request->result = reader.buffer(info[1], "result");
  if (!info[2].IsUndefined()) request->other = reader.buffer(info[2], "trace");
  if (!reader.ok()) return {};
  request->step_buffer = Napi::Persistent(info[0]);
  request->result_buffer = Napi::Persistent(info[1]);
  if (!info[2].IsUndefined()) request->other_buffer = Napi::Persistent(info[2]);
  return submit(info.Env(), std::move(request));
}

Napi::Value NativeModel::compare(const Napi::CallbackInfo& info) {
  Reader reader(info.Env());
  auto request = std::make_unique<Request>();
  request->step = reader.buffer(info[0], "step");
  request->result = reader.buffer(info[1], "result");
  request->other = reader.buffer(info[2], "microseconds");
  const Napi::Array sets = reader.array(info[3], "sets");
  for (uint32_t i = 0; reader.ok() && i < sets.Length(); ++i)
    request->sets.push_back(read_choices(reader, sets.Get(i), "sets[" + std::to_string(i) + "]"));
  if (reader.ok() && request->sets.empty()) reader.expected("sets", "at least one");
  if (!reader.ok() || !idle(info.Env())) return {};
  request->step_buffer = Napi::Persistent(info[0]);
  request->result_buffer = Napi::Persistent(info[1]);
  request->other_buffer = Napi::Persistent(info[2]);
  return submit(info.Env(), std::move(request));
}

// A promise of null, or of the fault.
Napi::Value NativeModel::submit(Napi::Env env, std::unique_ptr<Request> request) {
  napi_deferred deferred;
  napi_value promise;
  if (napi_create_promise(env, &deferred, &promise) != napi_ok) return {};  // the environment ends
  const char* wrong = !model_                        ? "the model is disposed"
                      : steps_ == StepThread::kDepth ? "two steps of this model are on their way"
                                                     : nullptr;
  if (wrong) {
    const Fault fault{"STEP_FAILED", {{"where", "step"}, {"reason", wrong}}};
    napi_resolve_deferred(env, deferred, to_object(env, fault));
    return Napi::Value(env, promise);
  }
  ++steps_;
  Ref();
  completion_.Ref(env);
  request->owner = this;
  request->promise = deferred;
  thread_->post({run, request.release()});
  return Napi::Value(env, promise);
}

// On the step thread.
void NativeModel::run(void* context) {
  auto* request = static_cast<Request*>(context);
  Executor& model = *request->owner->model_;
  const std::span<double> times(reinterpret_cast<double*>(request->other.data()), request->other.size() / sizeof(double));
  request->fault = request->sets.empty() ? model.step(request->step, request->result, request->other)
                                         : model.compare(request->step, request->result, request->sets, times);
  request->owner->completion_.NonBlockingCall(request);
}

// On the JavaScript thread; without an environment when that ends with the request still queued.
void NativeModel::settle(Napi::Env env, Napi::Function, std::nullptr_t*, Request* request) {
  const std::unique_ptr<Request> owned(request);
  if (env == nullptr) {
    request->step_buffer.SuppressDestruct();
    request->result_buffer.SuppressDestruct();
    request->other_buffer.SuppressDestruct();
    return;
  }
  const Napi::HandleScope scope(env);
  NativeModel& model = *request->owner;
  --model.steps_;
  if (model.thread_ && model.steps_ == 0) model.completion_.Unref(env);
  const Napi::Value outcome = request->fault ? to_object(env, request->fault) : env.Null();
  napi_resolve_deferred(env, request->promise, outcome);  // fails only while the environment ends
  model.Unref();
}

namespace {

// A fault outside a step, as an exception with its code and details.
void throw_fault(Napi::Env env, const Fault& fault) {
  if (!fault) return;
  Napi::Error error = Napi::Error::New(env, fault.code);
  const Napi::Object object = to_object(env, fault);
  for (const char* name : {"code", "details"}) error.Set(name, object.Get(name));
  error.ThrowAsJavaScriptException();
}

}  // namespace

// Whether the model may be touched; throws why not.
bool NativeModel::idle(Napi::Env env) const {
  const char* wrong = !model_ ? "the model is disposed" : steps_ ? "a step is running" : nullptr;
  if (wrong) Napi::Error::New(env, wrong).ThrowAsJavaScriptException();
  return !wrong;
}

// The unit that the first two arguments name; throws and is of no bytes when there is none.
NativeModel::Unit NativeModel::unit(const Napi::CallbackInfo& info) {
  Reader reader(info.Env());
  const auto state = uint32_t(reader.integer(info[0], "state", UINT32_MAX));
  const auto index = uint32_t(reader.integer(info[1], "unit", UINT32_MAX));
  if (!reader.ok() || !idle(info.Env())) return {};
  const size_t bytes = model_->unit_bytes(state, index);
  if (bytes == 0)
    Napi::RangeError::New(info.Env(), "state " + std::to_string(state) + " has no unit " + std::to_string(index))
        .ThrowAsJavaScriptException();
  return {state, index, bytes};
}

Napi::Value NativeModel::read_state(const Napi::CallbackInfo& info) {
  const Unit from = unit(info);
  if (from.bytes == 0) return {};
  auto copy = Napi::Uint8Array::New(info.Env(), from.bytes);
  const auto to = std::as_writable_bytes(std::span(copy.Data(), from.bytes));
  throw_fault(info.Env(), model_->read_unit(from.state, from.index, to));
  return copy;
}

void NativeModel::write_state(const Napi::CallbackInfo& info) {
  const Unit to = unit(info);
  if (to.bytes == 0) return;
  Reader reader(info.Env());
  const auto from = reader.bytes(info[2], "bytes");
  if (!reader.ok()) return;
  if (from.size() == to.bytes) return throw_fault(info.Env(), model_->write_unit(to.state, to.index, from));
  const std::string counts = "expected " + std::to_string(to.bytes) + ", got " + std::to_string(from.size());
  Napi::RangeError::New(info.Env(), "bytes: " + counts).ThrowAsJavaScriptException();
}

void NativeModel::fail_after(const Napi::CallbackInfo& info) {
  Reader reader(info.Env());
  const auto instructions = uint32_t(reader.integer(info[0], "instructions", UINT32_MAX));
  if (reader.ok() && idle(info.Env())) model_->fail_after(instructions);
}

void NativeModel::set_tally(const Napi::CallbackInfo& info) {
  Reader reader(info.Env());
  if (!info[0].IsBoolean()) return reader.expected("on", "a boolean");
  if (idle(info.Env())) model_->set_tally(info[0].As<Napi::Boolean>());
}

namespace {

Napi::Object to_object(Napi::Env env, const Tally::Steps& steps) {
  auto object = Napi::Object::New(env);
  const std::pair<const char*, uint64_t> counts[] = {
      {"steps", steps.steps},         {"tokens", steps.tokens},       {"rows", steps.rows},
      {"sequences", steps.sequences}, {"positions", steps.positions}, {"attended", steps.attended},
      {"nanoseconds", steps.nanoseconds}, {"states", steps.states},   {"results", steps.results}};
  for (const auto& [name, value] : counts) object.Set(name, double(value));
  auto calls = Napi::Float64Array::New(env, steps.instructions.size());
  auto nanoseconds = Napi::Float64Array::New(env, steps.instructions.size());
  for (size_t i = 0; i < steps.instructions.size(); ++i) {
    calls[i] = double(steps.instructions[i].calls);
    nanoseconds[i] = double(steps.instructions[i].nanoseconds);
  }
  object.Set("instructionCalls", calls);
  object.Set("instructionNanoseconds", nanoseconds);
  return object;
}

}  // namespace

Napi::Value NativeModel::tally(const Napi::CallbackInfo& info) {
  if (!idle(info.Env())) return {};
  const Tally* tally = model_->tally();
  if (!tally) return info.Env().Null();
  auto object = Napi::Object::New(info.Env());
  object.Set("prefill", to_object(info.Env(), tally->phases[size_t(Phase::prefill)]));
  object.Set("decode", to_object(info.Env(), tally->phases[size_t(Phase::decode)]));
  return object;
}

Napi::Value NativeModel::sentinels(const Napi::CallbackInfo& info) {
  if (!idle(info.Env())) return {};
  if (!model_->guarded()) return info.Env().Null();
  const auto faults = model_->sentinels();
  auto array = Napi::Array::New(info.Env(), faults.size());
  for (uint32_t i = 0; i < faults.size(); ++i) array.Set(i, faults[i]);
  return array;
}

Napi::Value NativeModel::memory(const Napi::CallbackInfo& info) {
  const MemoryUse use = model_ ? model_->memory() : MemoryUse{};
  auto object = Napi::Object::New(info.Env());
  object.Set("weightsBytes", double(use.weights));
  object.Set("arenaBytes", double(use.arena));
  object.Set("stateBytes", double(use.state));
  object.Set("scratchBytes", double(use.scratch));
  auto captures = Napi::Object::New(info.Env());
  captures.Set("count", double(use.captures));
  captures.Set("bytes", double(use.capture_bytes));
  captures.Set("milliseconds", double(use.capture_nanoseconds) / 1e6);
  object.Set("captures", captures);
  return object;
}

Napi::Value NativeModel::choices(const Napi::CallbackInfo& info) {
  Reader reader(info.Env());
  const auto instruction = uint32_t(reader.integer(info[0], "instruction", UINT32_MAX));
  const auto rows = uint32_t(reader.integer(info[1], "rows", INT32_MAX));
  if (!info[2].IsBoolean()) reader.expected("decode", "a boolean");
  if (!reader.ok() || !idle(info.Env())) return {};
  auto array = Napi::Array::New(info.Env());
  for (const std::string& name : model_->choices(instruction, rows, info[2].As<Napi::Boolean>()))
    array.Set(array.Length(), name);
  return array;
}

Napi::Value NativeModel::choice_use(const Napi::CallbackInfo& info) {
  const ChoiceUse use = model_ ? model_->choice_use() : ChoiceUse{};
  auto object = Napi::Object::New(info.Env());
  object.Set("given", double(use.given));
  object.Set("taken", double(use.taken));
  object.Set("hits", double(use.hits));
  object.Set("misses", double(use.misses));
  return object;
}

Napi::Value NativeModel::isa(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), isa_); }
Napi::Value NativeModel::threads(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), threads_); }
Napi::Value NativeModel::pinning(const Napi::CallbackInfo& info) {
  auto object = Napi::Object::New(info.Env());
  object.Set("pinned", pinning_.pinned);
  object.Set("reason", pinning_.reason);
  return object;
}
void NativeModel::dispose(const Napi::CallbackInfo&) { close(); }

}  // namespace ingot::addon
