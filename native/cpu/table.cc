// The kernels of this instruction set; one that compute/cpu.ts declares and nobody wrote fails the link.
#include "../core/kernel.h"

namespace ingot::cpu::INGOT_ISA {

#define KERNEL(id, name) void name(const Context&, const Call&);
#include "../gen/cpu_ops.inc"
#undef KERNEL

#define INGOT_NAME(isa) INGOT_QUOTE(isa)
#define INGOT_QUOTE(isa) #isa

// A constant: no code of this instruction set may run before the machine is known to have it.
extern const KernelTable table;
constinit const KernelTable table = []() constexpr {
  KernelTable t{INGOT_NAME(INGOT_ISA), {}};
#define KERNEL(id, name) t.kernels[id] = name;
#include "../gen/cpu_ops.inc"
#undef KERNEL
  return t;
}();

}  // namespace ingot::cpu::INGOT_ISA
