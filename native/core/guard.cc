#include "guard.h"

#include <algorithm>
#include <cstring>

namespace ingot {
namespace {

// Whether [begin, end) still holds what poison() left there.
bool intact(const std::byte* base, size_t begin, size_t end) {
  const auto* sentinel = reinterpret_cast<const std::byte*>(&kPoison);
  while (begin < end && begin % sizeof kPoison) {
    if (base[begin] != sentinel[begin % sizeof kPoison]) return false;
    ++begin;
  }
  for (; begin + sizeof kPoison <= end; begin += sizeof kPoison)
    if (std::memcmp(base + begin, sentinel, sizeof kPoison) != 0) return false;
  return std::equal(base + begin, base + end, sentinel);
}

}  // namespace

Guard::Guard(const PlanView& plan, const StepLimits& limits) : plan_(plan) {
  const size_t capacity[kSpaces] = {limits.tokens, limits.rows, limits.sequences};
  for (const PlanRegister& r : plan.registers) {
    size_t& end = arena_bytes_[size_t(r.space)];
    offsets_.push_back(end + kBand);
    capacities_.push_back(r.stride * capacity[size_t(r.space)]);
    end = offsets_.back() + capacities_.back() + kBand;
  }
}

void Guard::watch(std::span<Region> arenas, std::span<Region> pools, std::span<const State> states,
                  std::span<const uint32_t> units) {
  arenas_ = arenas;
  pools_ = pools;
  states_ = states;
  units_ = units;
  for (Region& pool : pools_) poison({pool.data(), pool.size()});
  held_.resize(pools_.size());
}

void Guard::before() {
  for (Region& arena : arenas_) poison({arena.data(), arena.size()});
  for (size_t i = 0; i < pools_.size(); ++i) held_[i].assign(pools_[i].data(), pools_[i].data() + pools_[i].size());
  faults_.clear();
}

void Guard::after(const StepView& view) {
  for (uint32_t r = 0; r < plan_.registers.size(); ++r) check_register(r, view.step);
  for (uint32_t s = 0; s < plan_.states.size(); ++s) check_state(s, view);
}

void Guard::check_register(uint32_t reg, const Step& step) {
  const PlanRegister& r = plan_.registers[reg];
  const std::byte* base = arenas_[size_t(r.space)].data() + offsets_[reg] - kBand;
  const size_t rows = count_of(step, r.space), bytes = byte_size(r.dtype, r.width);
  const auto fault = [&](const std::string& where) {
    faults_.push_back("register " + r.name + ": what lies " + where + " was written");
  };
  if (!intact(base, 0, kBand)) return fault("before its first row");
  for (size_t row = 0; row < rows; ++row) {
    const size_t begin = kBand + row * r.stride;
    if (!intact(base, begin + bytes, begin + r.stride)) return fault("past the width of row " + std::to_string(row));
  }
  const size_t end = kBand + capacities_[reg] + kBand;
  if (!intact(base, kBand + rows * r.stride, end)) fault("past its " + std::to_string(rows) + " rows");
}

// Units that the step may write: those of its tokens, of its copies and resets, and the dump.
std::vector<bool> Guard::writable(uint32_t state, size_t units, const StepView& view) const {
  const Step& step = view.step;
  std::vector<bool> may(units);
  may[0] = true;
  if (plan_.states[state].kind == StateKind::fixed) {
    for (uint32_t s = 0; s < step.sequences; ++s) may[size_t(step.sequence_slot[s])] = true;
    for (const int32_t slot : view.resets) may[size_t(slot)] = true;
    return may;
  }
  for (const CopyPair& pair : view.copies) may[pair.target] = true;
  for (uint32_t t = 0; t < step.tokens; ++t) {
    const size_t row = size_t(step.token_sequence[t]) * step.blocks_per_sequence;
    may[size_t(step.block_table[row + uint32_t(step.positions[t]) / states_[state].block_tokens])] = true;
  }
  return may;
}

void Guard::check_state(uint32_t state, const StepView& view) {
  const std::string name = "state " + plan_.states[state].name;
  const size_t size = states_[state].size, bytes = pools_[state].size();
  const size_t units = units_[state];
  const std::byte *now = pools_[state].data(), *then = held_[state].data();
  const size_t end = kBand + units * size;
  const std::vector<bool> may = writable(state, units, view);
  for (size_t u = 0; u < units; ++u) {
    if (may[u] || std::memcmp(now + kBand + u * size, then + kBand + u * size, size) == 0) continue;
    faults_.push_back(name + ": unit " + std::to_string(u) + ", which holds no token of the step, was written");
    break;
  }
  if (!intact(now, 0, kBand)) faults_.push_back(name + ": what lies before its first unit was written");
  if (!intact(now, end, bytes)) faults_.push_back(name + ": what lies past its last unit was written");
}

}  // namespace ingot
