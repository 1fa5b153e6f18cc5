// Rules on the values of parameters: what a kernel may rely on without looking.
#include <cmath>

#include "verify_rules.h"

namespace ingot {
namespace {

// One instruction's parameters under test. The first check that fails stays.
class Check {
 public:
  Check(const PlanView& plan, size_t index) : plan_(plan), index_(index), in_(plan.instructions[index]) {}

  void require(bool holds, const char* reason) {
    if (!holds && !reason_) reason_ = reason;
  }
  template <class... Values>
  void positive(Values... values) { require(((values > 0) && ...), "a size is 0"); }
  template <class... Values>
  void finite(Values... values) { require((std::isfinite(values) && ...), "a value is not finite"); }
  void flag(uint32_t value) { require(value <= 1, "a flag is neither 0 nor 1"); }
  void epsilon(float value) { require(std::isfinite(value) && value >= 0, "epsilon is negative or not finite"); }
  void softcap(float value) { require(std::isfinite(value) && value >= 0, "softcap is negative or not finite"); }
  void activation(uint32_t value) { require(value <= uint32_t(Activation::relu2), "unknown activation"); }
  void rope(uint32_t dim, uint32_t head_dim, uint32_t style, float factor) {
    require(dim % 2 == 0 && dim <= head_dim, "rope covers an odd number of elements, or more than a head");
    require(style <= uint32_t(RopeStyle::interleaved), "unknown rope style");
    finite(factor);
  }
  bool weight(size_t slot) const { return in_.weights[slot] != kNone; }
  bool state(size_t slot) const { return in_.states[slot].state != kNone; }
  const PlanView& plan() const { return plan_; }

  PlanFault fault() const {
    return reason_ ? refuse("params-value", where_instruction(plan_, index_), "%s", reason_) : PlanFault();
  }

 private:
  const PlanView& plan_;
  size_t index_;
  const PlanInstruction& in_;
  const char* reason_ = nullptr;
};

void check(const op::embed::Params& p, Check& c) {
  c.positive(p.vocab, p.width);
  c.finite(p.scale);
  c.require(p.vocab >= c.plan().vocab, "the table has fewer rows than the vocabulary");
  c.require((p.positions > 0) == c.weight(op::embed::weight_positions), "positions without a table, or a table without");
  c.require(p.positions == 0 || uint64_t(c.plan().max_context) + p.position_offset <= p.positions,
            "the context is longer than the table of positions");
  c.require((p.types > 0) == c.weight(op::embed::weight_types), "types without a table, or a table without");
}

void check(const op::gather_rows::Params& p, Check& c) { c.positive(p.width); }

void check(const op::pool::Params& p, Check& c) {
  c.positive(p.width);
  c.require(p.mode <= uint32_t(Pool::last), "unknown pooling mode");
  c.flag(p.normalize);
}

void check(const op::rms_norm::Params& p, Check& c) {
  c.positive(p.width, p.count);
  c.epsilon(p.eps);
  c.finite(p.weight_offset);
}

void check(const op::layer_norm::Params& p, Check& c) {
  c.positive(p.width);
  c.epsilon(p.eps);
}

void check(const op::linear::Params& p, Check& c) {
  c.positive(p.n, p.k);
  c.activation(p.activation);
  c.require(p.branches == 1 || p.branches == 2, "neither one branch nor two");
  c.require(p.branches == 1 || p.n % kBranchRun == 0, "the branches alternate in runs, and n is no multiple of a run");
  c.epsilon(p.norm_eps);
  c.finite(p.norm_offset);
}

void check(const op::logits::Params& p, Check& c) {
  c.positive(p.vocab, p.k);
  c.finite(p.scale);
  c.softcap(p.softcap);
  c.require(p.vocab == c.plan().vocab, "not the width of the vocabulary");
}

void check(const op::rope::Params& p, Check& c) {
  c.positive(p.heads, p.head_dim, p.dim);
  c.rope(p.dim, p.head_dim, p.style, p.attention_factor);
}

void check(const op::attention::Params& p, Check& c) {
  using namespace op::attention;
  c.positive(p.heads, p.kv_heads, p.head_dim);
  c.require(p.kv_heads && p.heads % p.kv_heads == 0, "query heads are not a multiple of key heads");
  c.finite(p.scale, p.norm_offset);
  c.flag(p.causal);
  c.require((p.causal == 1) == c.state(state_kv), "causal attention has a state, and no other has");
  c.softcap(p.softcap);
  c.rope(p.rope_dim, p.head_dim, p.rope_style, p.attention_factor);
  c.require((p.rope_dim > 0) == c.weight(weight_inv_freq), "rope without frequencies, or frequencies without rope");
  c.epsilon(p.norm_eps);
}

void check(const op::glu::Params& p, Check& c) {
  c.positive(p.width);
  c.activation(p.activation);
}

void check(const op::activation::Params& p, Check& c) {
  c.positive(p.width);
  c.activation(p.activation);
}

void check(const op::residual::Params& p, Check& c) {
  c.positive(p.width);
  c.finite(p.scale);
}

void check(const op::multiply::Params& p, Check& c) { c.positive(p.width); }

void check(const op::moe::Params& p, Check& c) {
  c.positive(p.width, p.ff, p.experts, p.top_k);
  c.require(p.top_k <= p.experts, "more experts taken than there are");
  c.activation(p.activation);
  c.require(p.router <= uint32_t(Router::sigmoid), "unknown router");
  c.flag(p.normalize);
  c.finite(p.scale);
}

void check(const op::conv_state::Params& p, Check& c) {
  c.positive(p.channels, p.kernel, p.history);
  c.require(p.history == p.kernel - 1, "history is not kernel - 1");
  c.activation(p.activation);
}

void check(const op::ssm_scan::Params& p, Check& c) {
  c.positive(p.heads, p.head_dim, p.groups, p.state);
  c.require(p.groups && p.heads % p.groups == 0, "heads are not a multiple of groups");
  c.finite(p.dt_min, p.dt_max);
  c.require(p.dt_min <= p.dt_max, "dt_min is above dt_max");
}

void check(const op::delta_rule::Params& p, Check& c) {
  c.positive(p.heads, p.key_heads, p.key_dim, p.value_dim);
  c.require(p.key_heads && p.heads % p.key_heads == 0, "heads are not a multiple of key heads");
  c.finite(p.scale);
  c.flag(p.normalize);
}

void check(const op::sample::Params& p, Check& c) {
  c.positive(p.vocab);
  c.require(p.vocab == c.plan().vocab, "not the width of the vocabulary");
}

template <class Params>
void check_as(const std::byte* params, Check& c) { check(*reinterpret_cast<const Params*>(params), c); }

// By opcode id - 1; a definition without its check does not compile.
constexpr void (*kChecks[])(const std::byte*, Check&) = {
    check_as<op::embed::Params>,      check_as<op::gather_rows::Params>, check_as<op::pool::Params>,
    check_as<op::rms_norm::Params>,   check_as<op::layer_norm::Params>,  check_as<op::linear::Params>,
    check_as<op::logits::Params>,     check_as<op::rope::Params>,        check_as<op::attention::Params>,
    check_as<op::glu::Params>,        check_as<op::activation::Params>,  check_as<op::residual::Params>,
    check_as<op::multiply::Params>,   check_as<op::moe::Params>,         check_as<op::conv_state::Params>,
    check_as<op::ssm_scan::Params>,   check_as<op::delta_rule::Params>,  check_as<op::sample::Params>,
};
static_assert(std::size(kChecks) == std::size(kOps));

}  // namespace

PlanFault check_params(const PlanView& plan) {
  for (size_t i = 0; i < plan.instructions.size(); i++) {
    Check c(plan, i);
    kChecks[plan.instructions[i].opcode - 1](plan.instructions[i].params.data(), c);
    if (PlanFault fault = c.fault()) return fault;
  }
  return {};
}

}  // namespace ingot
