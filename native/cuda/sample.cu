// Chooses tokens (abi/ops/sample.ts), in one launch: a block takes 4,096 logits of a row, and the block of a row that
// finishes last goes on alone.
#include "sample_row.h"
#include "sample_survey.h"

namespace ingot::cuda {
namespace sampling {
namespace {

// Rows that ask for more keep their options in memory of the thread, which costs more than all else a greedy row does.
__device__ __noinline__ void refine_row(const Sampling& s, Shared& m, uint32_t r) { Row(s, m, r).refine(blockIdx.x); }
__device__ __noinline__ void finish_row(const Sampling& s, Shared& m, uint32_t r) { Row(s, m, r).finish(); }

__global__ void __launch_bounds__(kThreads, 3) choose(const __grid_constant__ Sampling s) {
  extern __shared__ __align__(16) std::byte memory[];
  Shared& m = *reinterpret_cast<Shared*>(memory);
  const uint32_t r = blockIdx.y;
  const SampleParams& p = s.params[r];
  const bool samples = p.flags & kSampleFlagSample, greedy = !draws(p) && !adjusts(p) && !likeliest(p);
  wait_for_inputs();
  let_next_start();
  if (!samples) {
    if (blockIdx.x) return;
    if (threadIdx.x == 0) s.tokens[r * s.tokens_stride] = -1;
    for (uint32_t i = threadIdx.x; i <= kTopLogprobs; i += kThreads) {
      s.logprobs[r * s.logprobs_stride + i] = 0;
      if (i) s.top_tokens[r * s.top_stride + i - 1] = -1;
    }
    return;
  }
  survey(s, m, r, blockIdx.x);
  if (!greedy) refine_row(s, m, r);
  if (!arrives_last(s, m, r)) return;
  if (!greedy) finish_row(s, m, r);
  else if (threadIdx.x < 32) finish_greedy(s, r);
}

uint32_t chunks_of(const Call& call) { return (call.as<op::sample::Params>().vocab + kChunk - 1) / kChunk; }
size_t row_bytes(uint32_t chunks) { return 8 + chunks * (sizeof(Chunk) + 2 * kListed * sizeof(uint64_t)); }

}  // namespace
}  // namespace sampling

size_t sample_workspace(const Device&, const Call& call) {
  return call.inputs[op::sample::in_logits].rows * sampling::row_bytes(sampling::chunks_of(call));
}

cudaError_t sample(const Context& context, const Call& call) {
  using namespace sampling;
  const Matrix& logits = call.inputs[op::sample::in_logits];
  const Matrix& tokens = call.outputs[op::sample::out_tokens];
  const Matrix& logprobs = call.outputs[op::sample::out_logprobs];
  const Matrix& top = call.outputs[op::sample::out_top_tokens];
  const uint32_t chunks = chunks_of(call);
  const Sampling s{logits.row<float>(0),  logits.stride / sizeof(float), tokens.row<int32_t>(0),
                   top.row<int32_t>(0),   logprobs.row<float>(0),        tokens.stride / sizeof(int32_t),
                   top.stride / sizeof(int32_t), logprobs.stride / sizeof(float), context.step.sampling,
                   context.step.history_ids, context.step.bias_entries,  context.workspace.data,
                   row_bytes(chunks), call.as<op::sample::Params>().vocab, chunks};
  if (cudaError_t error = cudaFuncSetAttribute(choose, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)))
    return error;
  return launch(context, choose, {dim3(chunks, logits.rows), kThreads, sizeof(Shared)}, s);
}

}  // namespace ingot::cuda
