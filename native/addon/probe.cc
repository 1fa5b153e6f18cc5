#include "probe.h"

#include <exception>

#include "open_model.h"
#include "values.h"

namespace ingot::addon {
namespace {

class Probing : public Napi::AsyncWorker {
 public:
  Probing(Napi::Env env, const cpu::InstructionSet& set, unsigned threads, size_t read_bytes)
      : Napi::AsyncWorker(env), promise_(Napi::Promise::Deferred::New(env)), set_(set), threads_(threads),
        read_bytes_(read_bytes) {}
  Napi::Promise promise() const { return promise_.Promise(); }

  void Execute() override {
    try {
      fault_ = cpu::measure_ceilings(set_, threads_, ceilings_, read_bytes_);
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }

  void OnOK() override {
    if (fault_) promise_.Resolve(to_object(Env(), fault_));
    else promise_.Resolve(result());
  }
  void OnError(const Napi::Error& error) override { promise_.Reject(error.Value()); }

 private:
  Napi::Object result() {
    Napi::Array measurements = Napi::Array::New(Env());
    for (const cpu::Measurement& measured : ceilings_.measurements) {
      Napi::Array samples = Napi::Array::New(Env());
      for (const double sample : measured.samples) samples.Set(samples.Length(), sample);
      Napi::Object entry = Napi::Object::New(Env());
      entry.Set("name", measured.name);
      entry.Set("samples", samples);
      measurements.Set(measurements.Length(), entry);
    }
    Napi::Object object = Napi::Object::New(Env());
    object.Set("isa", set_.name);
    object.Set("threads", threads_);
    object.Set("bytes", double(ceilings_.bytes));
    object.Set("measurements", measurements);
    return object;
  }

  Napi::Promise::Deferred promise_;
  const cpu::InstructionSet& set_;
  unsigned threads_;
  size_t read_bytes_;
  Fault fault_;
  cpu::Ceilings ceilings_;
};

}  // namespace

Napi::Value probe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Reader reader(env);
  const Napi::Object from = reader.object(info[0], "options");
  const std::string isa = reader.string(reader.property(from, "isa"), "isa");
  constexpr uint64_t kMaxThreads = 1024;
  unsigned threads = unsigned(reader.integer(reader.property(from, "threads"), "threads", kMaxThreads));
  const uint64_t read_bytes = reader.integer(reader.property(from, "readBytes"), "readBytes", cpu::kReadBytes);
  if (!reader.ok()) return {};
  if (threads == 0) threads = cpu::cpu_info().physical_cores;
  const cpu::InstructionSet* set = find_isa(isa);
  if (!set) {
    const auto refused = Napi::Promise::Deferred::New(env);
    refused.Resolve(to_object(env, isa_fault(isa)));
    return refused.Promise();
  }
  auto* probing = new Probing(env, *set, threads, read_bytes);  // deletes itself when it has settled
  const Napi::Promise promise = probing->promise();
  probing->Queue();
  return promise;
}

}  // namespace ingot::addon
