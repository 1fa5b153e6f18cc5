/** Cases of `sample`: its input is a row of the table, so that both backends choose from the same float32 logits. */
import { sampleFlags } from '../../abi/step.ts'
import type { BatchInput, SampleInput } from '../batch.ts'
import { bound, gathered, INPUT, INPUT_ROWS, type OpCase, prompt } from './case.ts'
import { amplitude, describe, type FillName, fills, generate } from './generate.ts'

const history = { history: [3, 5, 5, 1, 3, 9, 9, 9], history_prompt: 3 }

/** Ties, one logit that takes all, and what is no number. */
const unusual = ['ties', 'equal', 'wide', 'large', 'nan', 'infinite'] as const

/** Options by row of a step. */
const options: readonly SampleInput[] = [
  {},
  { top_logprobs: 20 },
  { flags: sampleFlags.logits },
  { flags: sampleFlags.sample, temperature: 1, top_logprobs: 3 },
  { temperature: 1 },
  { temperature: 0.3, seed_low: 9, seed_high: 0x80000001, position: 4_000_000_000 },
  { temperature: 1.7, top_k: 1 },
  { temperature: 1.7, top_k: 5 },
  { temperature: 1, top_k: 1_000_000 },
  { temperature: 1, top_p: 0.5 },
  { temperature: 1, top_p: 0.05 },
  { temperature: 1, top_p: 0.999 },
  { temperature: 1, min_p: 0.3 },
  { temperature: 2, top_k: 11, top_p: 0.9, min_p: 0.05, top_logprobs: 5 },
  { repetition_penalty: 1.3, ...history },
  { repetition_penalty: 0.7, ...history },
  { presence_penalty: 0.4, frequency_penalty: 0.2, ...history },
  { presence_penalty: -0.4, temperature: 1, ...history },
  { temperature: 1, repetition_penalty: 1.1, presence_penalty: 0.1, frequency_penalty: 0.1, top_p: 0.8, ...history },
  // Half of 33 tokens, logits of either sign: what a penalty does to those below 0 decides.
  { temperature: 1, repetition_penalty: 5, history: Array.from({ length: 16 }, (_, i) => 2 * i), history_prompt: 3 },
  // Only what was put out is likely, and the newest of it stands there once.
  { presence_penalty: -9, history: [2, 8, 4, 6, 7], history_prompt: 2 },
  { bias: [[2, 5]] },
  {
    bias: [
      [2, -100],
      [7, 0.25],
      [2, 99.5],
    ],
    temperature: 1,
    top_logprobs: 3,
  },
]

function steps(vocab: number): BatchInput[] {
  const fit = (sampling: SampleInput): SampleInput => ({
    ...sampling,
    ...(sampling.history && { history: sampling.history.map((id) => id % vocab) }),
    ...(sampling.bias && { bias: sampling.bias.map(([id, value]) => [id % vocab, value] as const) }),
  })
  const tokens = Array.from({ length: 64 }, (_, i) => (i * 31 + 7) % Math.min(vocab, INPUT_ROWS))
  return [0, 1, 2].map((turn) => ({
    sequences: [prompt(64, { tokens })],
    sampling: (row) => ({
      position: 64 * turn + row,
      seed_low: 1000 + row,
      ...fit(options[(row + turn) % options.length]!),
    }),
  }))
}

const base: { readonly vocab: number; readonly fill: FillName } = { vocab: 33, fill: 'plain' }
const shapes = [
  ...generate(base, { vocab: [1, 2, 15, 16, 1024, 1025, 2049], fill: unusual }),
  ...generate({ ...base, vocab: 17 }, { fill: unusual }),
  ...generate({ ...base, vocab: 515 }, { fill: unusual }),
]

export const sampleCases: readonly OpCase[] = shapes.map(({ vocab, fill }) => {
  const rows = Math.max(vocab, INPUT_ROWS)
  return {
    op: 'sample',
    name: describe({ vocab, fill }),
    vocab,
    tensors: [{ name: 'logits', shape: [rows, vocab], dtype: 'f32', fill: fills[fill] }],
    build: (graph) => {
      const table = graph.weight('logits', [rows, vocab])
      const wide = graph.add('embed', INPUT, {
        weights: { table },
        params: { vocab: rows, width: vocab, scale: 4 },
      }).out
      const logits = gathered(graph, wide)
      const sampled = graph.add('sample', 'sample', { inputs: { logits }, params: { vocab } })
      graph.output('tokens', sampled.tokens)
      graph.output('logprobs', sampled.logprobs)
      graph.output('top_tokens', sampled.top_tokens)
      graph.output('logits', logits)
    },
    steps: steps(vocab),
    // a log-probability is at most the spread of the logits plus ln(vocab)
    tolerance: bound('sample', 1, undefined, 8 * amplitude(fill) + Math.log(vocab)),
  } satisfies OpCase
})
