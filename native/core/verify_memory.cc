// Rules on registers over time: what plans/liveness.ts derives, derived again and compared, and the placement.
#include <algorithm>
#include <map>
#include <vector>

#include "verify_rules.h"

namespace ingot {
namespace {

struct Liveness { std::vector<uint32_t> first, last; };

PlanFault derive(const PlanView& plan, Liveness& out) {
  out.first.assign(plan.registers.size(), kNone);
  out.last.assign(plan.registers.size(), kNone);
  for (size_t i = 0; i < plan.instructions.size(); i++) {
    for (const PlanOperand& input : plan.instructions[i].inputs) {
      if (input.reg == kNone) continue;
      if (out.first[input.reg] == kNone)
        return refuse("definition", where_instruction(plan, i), "reads register %u before it is defined", input.reg);
      out.last[input.reg] = uint32_t(i);
    }
    for (const uint32_t output : plan.instructions[i].outputs) {
      if (output == kNone) continue;
      if (out.first[output] != kNone)
        return refuse("definition", where_instruction(plan, i), "defines register %u a second time", output);
      out.first[output] = out.last[output] = uint32_t(i);
    }
  }
  for (const PlanOutput& output : plan.outputs) out.last[output.reg] = uint32_t(plan.instructions.size());
  return {};
}

PlanFault check_liveness(const PlanView& plan, const Liveness& live) {
  for (size_t i = 0; i < plan.registers.size(); i++) {
    const PlanRegister& r = plan.registers[i];
    if (live.first[i] == kNone) return refuse("definition", where("register", i, r.name), "no instruction defines it");
    if (r.first != live.first[i] || r.last != live.last[i])
      return refuse("liveness", where("register", i, r.name), "live %u to %u, derived %u to %u", r.first, r.last,
                    live.first[i], live.last[i]);
  }
  for (size_t i = 0; i < plan.instructions.size(); i++) {
    const PlanInstruction& instruction = plan.instructions[i];
    uint32_t last_use = 0;
    for (size_t k = 0; k < instruction.inputs.size(); k++) {
      const uint32_t reg = instruction.inputs[k].reg;
      if (reg != kNone && live.last[reg] == i) last_use |= 1u << k;
    }
    if (instruction.last_use != last_use)
      return refuse("last-use", where_instruction(plan, i), "bits %u, derived %u", instruction.last_use, last_use);
  }
  return {};
}

// The registers of one space that are live at one instruction. They are disjoint, so that a new one can only touch its
// neighbours.
class LiveSet {
 public:
  // The register that shares bytes with `r`, or kNone after adding it.
  uint32_t add(const PlanRegister& r, uint32_t index) {
    const uint64_t end = r.offset + r.stride;
    const auto next = ranges_.lower_bound(r.offset);
    if (next != ranges_.end() && next->first < end) return next->second.reg;
    if (next != ranges_.begin() && std::prev(next)->second.end > r.offset) return std::prev(next)->second.reg;
    ranges_.emplace_hint(next, r.offset, Range{end, index});
    bytes_ += r.stride;
    most_bytes_ = std::max(most_bytes_, bytes_);
    end_ = std::max(end_, end);
    return kNone;
  }
  void remove(const PlanRegister& r) {
    if (ranges_.erase(r.offset)) bytes_ -= r.stride;
  }
  uint64_t most_bytes() const { return most_bytes_; }
  uint64_t end() const { return end_; }

 private:
  struct Range { uint64_t end; uint32_t reg; };
  std::map<uint64_t, Range> ranges_;  // by offset
  uint64_t bytes_ = 0, most_bytes_ = 0, end_ = 0;
};

// Walks the plan with the live registers of each space. Inputs are released after the outputs are placed: a register is
// live from `first` to `last`, both included.
PlanFault check_placement(const PlanView& plan) {
  LiveSet live[kSpaces];
  const auto release = [&](uint32_t reg, size_t i) {
    if (reg != kNone && plan.registers[reg].last == i) live[size_t(plan.registers[reg].space)].remove(plan.registers[reg]);
  };
  for (size_t i = 0; i < plan.instructions.size(); i++) {
    const PlanInstruction& instruction = plan.instructions[i];
    for (const uint32_t output : instruction.outputs) {
      if (output == kNone) continue;
      const PlanRegister& r = plan.registers[output];
      const uint32_t other = live[size_t(r.space)].add(r, output);
      if (other != kNone)
        return refuse("overlap", where_instruction(plan, i), "register %u shares bytes with register %u, still live",
                      output, other);
    }
    for (const PlanOperand& input : instruction.inputs) release(input.reg, i);
    for (const uint32_t output : instruction.outputs) release(output, i);
  }
  for (size_t s = 0; s < kSpaces; s++)
    if (plan.peak[s] != live[s].end() || plan.lower_bound[s] != live[s].most_bytes())
      return refuse("memory-totals", "memory of space " + std::to_string(s),
                    "peak %llu, lower bound %llu, derived %llu and %llu", (unsigned long long)plan.peak[s],
                    (unsigned long long)plan.lower_bound[s], (unsigned long long)live[s].end(),
                    (unsigned long long)live[s].most_bytes());
  return {};
}

}  // namespace

PlanFault check_memory(const PlanView& plan) {
  Liveness live;
  if (PlanFault fault = derive(plan, live)) return fault;
  if (PlanFault fault = check_liveness(plan, live)) return fault;
  return check_placement(plan);
}

}  // namespace ingot
