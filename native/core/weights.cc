#include "weights.h"

namespace ingot {
namespace {

constexpr size_t kAlign = 64;

Fault invalid(const std::string& path, std::string thing, std::string expected, std::string got) {
  return {"PACKAGE_INVALID",
          {{"path", path}, {"thing", std::move(thing)}, {"expected", std::move(expected)}, {"got", std::move(got)}}};
}

Fault truncated(const std::string& path, const std::string& thing, uint64_t expected, uint64_t got) {
  return {"FILE_TRUNCATED",
          {{"path", path}, {"thing", thing}, {"expected", double(expected)}, {"got", double(got)}}};
}

}  // namespace

Fault Weights::open(const PlanView& plan, const std::vector<WeightFile>& files, Weights& out) {
  out = {};
  out.tensors_.resize(plan.tensors.size());
  out.files_.reserve(files.size());
  for (const WeightFile& file : files)
    if (Fault fault = out.add(plan, file)) return fault;
  for (size_t i = 0; i < plan.tensors.size(); ++i)
    if (!out.tensors_[i])
      return invalid(files.empty() ? "the package" : files.front().path, "tensor " + plan.tensors[i].name,
                     "its bytes in a weights file", "none");
  return {};
}

Fault Weights::add(const PlanView& plan, const WeightFile& file) {
  MappedFile mapped;
  if (Fault fault = MappedFile::open(file.path, false, mapped)) return fault;
  if (mapped.size() < file.bytes) return truncated(file.path, "the file", file.bytes, mapped.size());
  if (mapped.size() > file.bytes)
    return invalid(file.path, "size", std::to_string(file.bytes) + " bytes", std::to_string(mapped.size()));
  for (const WeightRange& range : file.tensors) {
    if (range.tensor >= plan.tensors.size())
      return invalid(file.path, "tensor index", "less than " + std::to_string(plan.tensors.size()),
                     std::to_string(range.tensor));
    const PlanTensor& tensor = plan.tensors[range.tensor];
    const std::string thing = "tensor " + tensor.name;
    if (tensors_[range.tensor]) return invalid(file.path, thing, "stored once", "stored twice");
    if (range.bytes != tensor.bytes)
      return invalid(file.path, thing, std::to_string(tensor.bytes) + " bytes", std::to_string(range.bytes));
    if (range.offset > mapped.size() || range.bytes > mapped.size() - range.offset)
      return truncated(file.path, thing, range.offset + range.bytes, mapped.size());
    if (range.offset % kAlign != 0)
      return invalid(file.path, thing, "an offset that is a multiple of 64", std::to_string(range.offset));
    tensors_[range.tensor] = {mapped.data() + range.offset, tensor.rows, tensor.cols, tensor.dtype, tensor.layout};
    bytes_ += range.bytes;
  }
  files_.push_back(std::move(mapped));
  return {};
}

}  // namespace ingot
