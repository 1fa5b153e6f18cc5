// The kernels of this backend; one that compute/cuda.ts declares and nobody wrote fails the link.
#include "table.h"

#include <array>

namespace ingot::cuda {

#define KERNEL(id, name) cudaError_t name(const Context&, const Call&);
#include "../gen/cuda_ops.inc"
#undef KERNEL
size_t linear_workspace(const Device&, const Call&);
size_t logits_workspace(const Device&, const Call&);
size_t attention_workspace(const Device&, const Call&);
size_t sample_workspace(const Device&, const Call&);
size_t linear_shared(const Call&);
size_t logits_shared(const Call&);
size_t attention_shared(const Call&);
Choices linear_choices(const Device&, const Shape&, const Call&);
Choices logits_choices(const Device&, const Shape&, const Call&);
Choices attention_choices(const Device&, const Shape&, const Call&);
size_t linear_choice_workspace(const Call&, Choice);
size_t logits_choice_workspace(const Call&, Choice);

const Entry& entry_of(uint16_t opcode) {
  static const std::array<Entry, kMaxOpcodes> table = [] {
    std::array<Entry, kMaxOpcodes> t{};
#define KERNEL(id, name) t[id].kernel = name;
#include "../gen/cuda_ops.inc"
#undef KERNEL
    t[op::linear::id].workspace = linear_workspace;
    t[op::logits::id].workspace = logits_workspace;
    t[op::attention::id].workspace = attention_workspace;
    t[op::sample::id].workspace = sample_workspace;
    t[op::linear::id].shared = linear_shared;
    t[op::logits::id].shared = logits_shared;
    t[op::attention::id].shared = attention_shared;
    t[op::linear::id].choices = linear_choices;
    t[op::logits::id].choices = logits_choices;
    t[op::attention::id].choices = attention_choices;
    t[op::linear::id].choice_workspace = linear_choice_workspace;
    t[op::logits::id].choice_workspace = logits_choice_workspace;
    return t;
  }();
  static const Entry none{};
  return opcode < kMaxOpcodes ? table[opcode] : none;
}

}  // namespace ingot::cuda
