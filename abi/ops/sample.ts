import { op, u32 } from './define.ts'

/** Most alternatives that `sample` reports beside the chosen token. */
export const TOP_LOGPROBS = 20

/**
 * Chooses one token a row by the row's SampleParams (abi/step.ts), in this order: logit bias; repetition penalty over
 * prompt and output (z > 0 ? z / r : z * r); presence and frequency penalties over the output; then greedy where
 * temperature is 0 (ties to the lower id), else temperature, top_k, top_p, min_p and one draw.
 * Candidates rank by logit, ties to the lower id; NaN ranks as -infinity. Each filter keeps a prefix of that order:
 * top_k the first k; top_p the fewest whose probabilities, among those k, add up to at least top_p; min_p those of at
 * least min_p times the largest probability; together they keep one or more. The draw takes the first candidate at
 * which the sum of probabilities exceeds u times their total, in that order when a filter is active (top_k > 0,
 * top_p < 1 or min_p > 0), else in the order of ids. u is Philox4x32-10 (Salmon et al., 2011) keyed by seed with
 * counter = position, so it depends on nothing else: u = ((x0 << 21) ^ (x1 >> 11)) * 2^-53 of its first two words.
 *
 * tokens: (1) i32. logprobs: (1 + 20) f32, log-softmax of the untouched logits (NaN as -infinity) at the chosen token, then
 * at the best; 0 beyond the number asked for, and all of them for a row whose flags do not ask for logprobs.
 * top_tokens: (20) i32, best first, ties to the lower id; -1 beyond the number asked for.
 */
export const sample = op({
  id: 18,
  name: 'sample',
  version: 1,
  paramVersion: [1, 0],
  inputs: { logits: { space: 'rows', width: ['vocab'] } },
  outputs: {
    tokens: { space: 'rows', width: [1], dtype: 'i32' },
    logprobs: { space: 'rows', width: [1 + TOP_LOGPROBS] },
    top_tokens: { space: 'rows', width: [TOP_LOGPROBS], dtype: 'i32' },
  },
  weights: {},
  states: {},
  params: { vocab: u32 },
})
