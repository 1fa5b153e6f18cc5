/** What speculation gains: the same requests with and without it, in turns, on one open model. */
import { isDeepStrictEqual } from 'node:util'
import { fail } from '../errors.ts'
import { type Model, open, type SpeculativeOptions } from '../index.ts'
import { type Spread, spread } from './measure.ts'
import type { BenchOptions } from './step.ts'

export interface SpeculationCell {
  readonly batch: number
  /** Share of the guesses that were right. */
  readonly acceptance: number
  /** Tokens per second of all sequences. */
  readonly plain: Spread
  readonly speculative: Spread
  /** Of each turn's two speeds: above 1, speculation is faster. */
  readonly ratio: Spread
}
export interface SpeculationReport {
  readonly model: string
  readonly device: string
  readonly by: 'draft' | 'lookup'
  /** Most tokens guessed at once. */
  readonly tokens: number
  readonly cells: readonly SpeculationCell[]
}

/** Random tokens would be a text that nobody can guess: each prompt is what the model makes of one random token. */
async function ownTexts(model: Model, count: number, tokens: number): Promise<number[][]> {
  const write = async (_: unknown, seed: number) => {
    const first = (seed * 7919 + 13) % model.info.vocab
    const options = { maxTokens: tokens - 1, temperature: 1, seed, ignoreEos: true, speculative: false }
    return [first, ...(await model.generate([first], options).result()).tokens]
  }
  return Promise.all(Array.from({ length: count }, write))
}

/** Decodes `generate` tokens after every prompt. */
async function decode(model: Model, prompts: readonly number[][], generate: number, speculative: boolean) {
  const options = { maxTokens: generate, temperature: 0, ignoreEos: true, speculative }
  const results = await Promise.all(prompts.map((ids) => model.generate(ids, options).result()))
  const sum = (of: (result: (typeof results)[number]) => number) => results.reduce((n, result) => n + of(result), 0)
  return {
    tokens: results.map((result) => result.tokens),
    tokensPerSecond: sum(({ timings }) => timings.tokensPerSecond),
    proposed: sum(({ usage }) => usage.proposedTokens ?? 0),
    accepted: sum(({ usage }) => usage.acceptedTokens ?? 0),
  }
}

/** Measures each number of sequences `repeats` times after one warm-up. Throws STEP_FAILED when the outputs differ. */
export async function benchSpeculation(
  path: string,
  speculative: SpeculativeOptions,
  { backend, isa, threads, prompt, generate, batches, repeats, stepTokens, onProgress }: BenchOptions,
): Promise<SpeculationReport> {
  await using model = await open(path, {
    backend,
    ...(isa && { isa }),
    ...(threads && { threads }),
    ...(stepTokens && { maxTokensPerStep: stepTokens }),
    maxSlots: Math.max(...batches),
    contextTokens: prompt + generate,
    speculative,
  })
  const cells: SpeculationCell[] = []
  const total = batches.length * (repeats + 1)
  for (const [index, batch] of batches.entries()) {
    const prompts = await ownTexts(model, batch, prompt)
    const turns = []
    for (let repeat = 0; repeat <= repeats; repeat++) {
      onProgress?.(index * (repeats + 1) + repeat, total, `${batch} sequences`)
      const plain = await decode(model, prompts, generate, false)
      const guessed = await decode(model, prompts, generate, true)
      if (!isDeepStrictEqual(plain.tokens, guessed.tokens))
        throw fail('STEP_FAILED', { where: 'speculation', reason: 'the output changed' })
      if (repeat > 0) turns.push({ plain, guessed })
    }
    const [{ guessed }] = turns as [(typeof turns)[number]]
    cells.push({
      batch,
      acceptance: guessed.accepted / Math.max(1, guessed.proposed),
      plain: spread(turns.map((turn) => turn.plain.tokensPerSecond)),
      speculative: spread(turns.map((turn) => turn.guessed.tokensPerSecond)),
      ratio: spread(turns.map((turn) => turn.guessed.tokensPerSecond / turn.plain.tokensPerSecond)),
    })
  }
  onProgress?.(total, total, 'done')
  return {
    model: model.info.model,
    device: model.device.description,
    by: speculative.draft === undefined ? 'lookup' : 'draft',
    tokens: speculative.tokens ?? 4,
    cells,
  }
}
