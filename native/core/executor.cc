#include "executor.h"

#include <cstring>

#include "model.h"

namespace ingot {

Fault plan_fault(const PlanFault& fault) {
  if (fault.min_runtime)
    return {"PLAN_NEWER",
            {{"path", "the plan"}, {"expected", double(fault.min_runtime)}, {"got", double(kRuntimeVersion)}}};
  return {"PLAN_INVALID",
          {{"path", "the plan"}, {"rule", fault.rule}, {"where", fault.where}, {"reason", fault.reason}}};
}

uint32_t capacity(const StepLimits& limits, Space space) {
  return space == Space::tokens ? limits.tokens : space == Space::rows ? limits.rows : limits.sequences;
}

uint32_t output_register(const PlanView& plan, const char* name) {
  for (const PlanOutput& output : plan.outputs)
    if (output.name == name) return output.reg;
  return kNone;
}

StepBounds step_bounds(const PlanView& plan, const ModelOptions& options) {
  StepBounds b{options.limits, plan.vocab, plan.max_context, 0, options.blocks, options.slots, 0, 0, Space::rows};
  for (const PlanState& state : plan.states)
    if (state.kind != StateKind::fixed) b.block_tokens = state.block_tokens;
  const uint32_t logits = output_register(plan, "logits"), hidden = output_register(plan, "hidden");
  if (logits != kNone) b.logits_width = plan.registers[logits].width;
  if (hidden == kNone) return b;
  b.hidden_width = plan.registers[hidden].width;
  b.hidden_space = plan.registers[hidden].space;
  return b;
}

Tally::Steps* count_step(Tally* tally, const Step& step) {
  if (!tally) return nullptr;
  const Phase phase = step.tokens == step.sequences ? Phase::decode : Phase::prefill;
  Tally::Steps& steps = tally->phases[size_t(phase)];
  ++steps.steps;
  steps.tokens += step.tokens;
  steps.rows += step.rows;
  steps.sequences += step.sequences;
  for (uint32_t s = 0; s < step.sequences; ++s) steps.positions += uint32_t(step.sequence_length[s]);
  for (uint32_t t = 0; t < step.tokens; ++t) steps.attended += uint32_t(step.positions[t]) + 1;
  return &steps;
}

void write_rows(const StepView& view, const Matrix& tokens, const Matrix& logprobs, const Matrix& top_tokens) {
  const Step& step = view.step;
  std::memset(view.rows, 0, size_t{step.rows} * kRowResultBytes);
  for (uint32_t r = 0; r < step.rows; ++r) {
    std::byte* out = view.rows + size_t{r} * kRowResultBytes;
    RowResult chosen{-1, 0};
    std::byte* top = out + sizeof(RowResult);
    std::byte* top_logprobs = top + kTopLogprobs * sizeof(int32_t);
    std::memset(top, 0xff, kTopLogprobs * sizeof(int32_t));
    const uint32_t flags = step.sampling[r].flags;
    if (flags & kSampleFlagSample && tokens) chosen.token = *tokens.row<int32_t>(r);
    // A kernel may sum over the vocabulary unasked; nobody sees it.
    if (flags & kSampleFlagSample && flags & kSampleFlagLogprobs) {
      if (logprobs) {
        chosen.logprob = *logprobs.row<float>(r);
        std::memcpy(top_logprobs, logprobs.row<float>(r) + 1, kTopLogprobs * sizeof(float));
      }
      if (top_tokens) std::memcpy(top, top_tokens.row<int32_t>(r), kTopLogprobs * sizeof(int32_t));
    }
    std::memcpy(out, &chosen, sizeof chosen);
  }
}

}  // namespace ingot
