#include "open_model.h"

#include "../core/processors.h"
#include "device_library.h"
#include "native_model.h"
#include "values.h"

namespace ingot::addon {
namespace {

// Step arrays are int32, and so is every index in them.
constexpr uint64_t kMaxCount = INT32_MAX;
constexpr uint64_t kMaxThreads = 1024;
constexpr uint64_t kMaxBytes = uint64_t{1} << 53;

WeightFile read_file(Reader& reader, Napi::Value value, const std::string& name) {
  const Napi::Object from = reader.object(value, name);
  WeightFile file{reader.string(reader.property(from, "path"), name + ".path"),
                  reader.integer(reader.property(from, "bytes"), name + ".bytes", kMaxBytes), {}};
  const Napi::Array tensors = reader.array(reader.property(from, "tensors"), name + ".tensors");
  for (uint32_t i = 0; reader.ok() && i < tensors.Length(); ++i) {
    const std::string at = name + ".tensors[" + std::to_string(i) + "]";
    const Napi::Object range = reader.object(tensors.Get(i), at);
    file.tensors.push_back({uint32_t(reader.integer(reader.property(range, "tensor"), at + ".tensor", UINT32_MAX)),
                            reader.integer(reader.property(range, "offset"), at + ".offset", kMaxBytes),
                            reader.integer(reader.property(range, "bytes"), at + ".bytes", kMaxBytes)});
  }
  return file;
}

}  // namespace

std::vector<Chosen> read_choices(Reader& reader, const Napi::Value& from, const std::string& name) {
  std::vector<Chosen> choices;
  const Napi::Array list = reader.array(from, name);
  for (uint32_t i = 0; reader.ok() && i < list.Length(); ++i) {
    const std::string at = name + "[" + std::to_string(i) + "]";
    const Napi::Object choice = reader.object(list.Get(i), at);
    const auto rows = uint32_t(reader.integer(reader.property(choice, "rows"), at + ".rows", kMaxCount));
    const std::string kernel = reader.string(reader.property(choice, "kernel"), at + ".kernel");
    const Napi::Array instructions = reader.array(reader.property(choice, "instructions"), at + ".instructions");
    for (uint32_t k = 0; reader.ok() && k < instructions.Length(); ++k)
      choices.push_back({uint32_t(reader.integer(instructions.Get(k), at + ".instructions", kMaxCount)), rows, kernel});
  }
  return choices;
}

namespace {

ModelOptions read_options(Reader& reader, const Napi::Object& from) {
  ModelOptions options{};
  options.plan = reader.bytes(reader.property(from, "plan"), "plan");
  const Napi::Array weights = reader.array(reader.property(from, "weights"), "weights");
  for (uint32_t i = 0; reader.ok() && i < weights.Length(); ++i)
    options.weights.push_back(read_file(reader, weights.Get(i), "weights[" + std::to_string(i) + "]"));
  options.threads = unsigned(reader.integer(reader.property(from, "threads"), "threads", kMaxThreads));
  const Napi::Object limits = reader.object(reader.property(from, "limits"), "limits");
  const auto count = [&](const Napi::Object& object, const char* name) {
    return uint32_t(reader.integer(reader.property(object, name), name, kMaxCount));
  };
  options.limits = {count(limits, "tokens"), count(limits, "rows"), count(limits, "sequences"),
                    count(limits, "blocksPerSequence")};
  options.blocks = count(from, "blocks");
  options.slots = count(from, "slots");
  const auto flag = [&](const char* name) {
    const Napi::Value value = reader.property(from, name);
    return reader.ok() && value.IsBoolean() && value.As<Napi::Boolean>();
  };
  options.guard = flag("guard");
  options.deterministic = flag("deterministic");
  options.compare = flag("compare");
  const Napi::Value choices = reader.property(from, "choices");
  if (reader.ok() && !choices.IsUndefined()) options.choices = read_choices(reader, choices, "choices");
  return options;
}

// A NativeModel of what `instance` says.
Napi::Value make_model(Instance& instance) {
  const Napi::Value model = instance.model_class.New({});
  instance.opening.reset();
  return model;
}

// The step thread only hands over work: no others are started.
Napi::Value open_on_cuda(Napi::Env env, const ModelOptions& options) {
  Instance& instance = *env.GetInstanceData<Instance>();
  if (Fault fault = open_cuda(options, instance.opening)) return to_object(env, fault);
  const DeviceStatus status = cuda_status();
  instance.isa = "sm_" + std::to_string(status.major) + std::to_string(status.minor);
  instance.threads = 1;
  instance.spin = std::chrono::milliseconds(1);
  instance.pinning = {false, "its threads are on the device"};
  return make_model(instance);
}

Pin read_pin(const std::string& pin) {
  return pin == "always" ? Pin::always : pin == "never" ? Pin::never : Pin::automatic;
}

}  // namespace

const cpu::InstructionSet* find_isa(const std::string& isa) {
  for (const cpu::InstructionSet& set : cpu::instruction_sets())
    if (set.table && (isa.empty() || isa == set.name)) return &set;
  return nullptr;
}

Fault isa_fault(const std::string& isa) {
  std::string available;
  for (const cpu::InstructionSet& set : cpu::instruction_sets())
    if (set.table) available += (available.empty() ? "" : ", ") + std::string(set.name);
  return {"ISA_UNAVAILABLE", {{"isa", isa}, {"available", available}}};
}

Napi::Value open_model(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Reader reader(env);
  const Napi::Object from = reader.object(info[0], "options");
  const std::string isa = reader.string(reader.property(from, "isa"), "isa");
  const std::string pin = reader.string(reader.property(from, "pin"), "pin");
  ModelOptions options = read_options(reader, from);
  if (!reader.ok()) return {};
  if (reader.property(from, "backend").StrictEquals(Napi::String::New(env, "cuda"))) return open_on_cuda(env, options);
  if (options.threads == 0) options.threads = cpu::cpu_info().physical_cores;
  Pinning pinned = pinning(read_pin(pin), options.threads);
  options.pinned = pinned.pinned;
  const cpu::InstructionSet* set = find_isa(isa);
  if (!set) return to_object(env, isa_fault(isa));

  Instance& instance = *env.GetInstanceData<Instance>();
  std::unique_ptr<Model> opened;
  if (Fault fault = Model::open(options, *set->table, opened)) return to_object(env, fault);
  instance.opening = std::move(opened);
  instance.isa = set->name;
  instance.threads = options.threads;
  instance.spin = std::chrono::microseconds(40);
  instance.pinning = std::move(pinned);
  return make_model(instance);
}

}  // namespace ingot::addon
