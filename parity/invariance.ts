/**
 * The invariance check: a request's tokens and logprobs, bit for bit, must not depend on what else is in the batch, the
 * slot, the chunking of its prompt, prefix hits, preemption, threads or instruction set.
 */
import { createHash } from 'node:crypto'
import { type GenerateOptions, type GenerationResult, type Model, type OpenOptions, open } from '../index.ts'
import { random } from './random.ts'

export interface MixedRequest {
  readonly ids: readonly number[]
  readonly options: GenerateOptions
}

/** One way of running the same requests. */
export interface Variation {
  readonly name: string
  readonly open: OpenOptions
  /** Order of submission, as indices; default: as they come. */
  readonly order?: (count: number) => number[]
  /** One after the other instead of all at once. */
  readonly alone?: true
  /** Runs before, and not compared: what fills the prefix cache. */
  readonly warm?: true
  /** What must have happened for the run to mean anything. */
  readonly happened?: (stats: ReturnType<Model['stats']>, model: Model) => boolean
}

export interface VariationReport {
  readonly name: string
  readonly requests: number
  /** Requests whose fingerprint differs from the first variation's. */
  readonly differing: readonly number[]
  /** Whether what the variation is about took place. */
  readonly happened: boolean
  readonly launchesPerStep: number
}

const samplers = (seed: number): GenerateOptions[] => [
  { temperature: 0 },
  { temperature: 0.8, seed },
  { temperature: 1.1, topK: 20, topP: 0.9, seed },
  { temperature: 0.9, minP: 0.05, repetitionPenalty: 1.2, seed },
  { temperature: 0, presencePenalty: 0.5, frequencyPenalty: 0.3 },
  { temperature: 0.7, logitBias: { 5: 4, 9: -100 }, seed },
]

/** `count` requests: prompts of 1 to `longest` tokens, half of them sharing beginnings, under every kind of sampling. */
export function mixedRequests(count: number, vocab: number, longest: number, seed = 1): MixedRequest[] {
  const next = random(seed)
  const integer = (below: number) => Math.floor(next() * below)
  const shared = Array.from({ length: longest }, () => integer(vocab))
  return Array.from({ length: count }, (_, index) => {
    const length = index % 8 === 0 ? 1 : 1 + integer(longest - 1)
    const own = Array.from({ length }, () => integer(vocab))
    const common = index % 2 ? Math.min(length - 1, 64) : 0
    const choices = samplers(1000 + index)
    return {
      ids: [...shared.slice(0, common), ...own.slice(common)],
      options: {
        ...choices[index % choices.length]!,
        maxTokens: 1 + integer(20),
        ignoreEos: true,
        logprobs: index % 5,
      },
    }
  })
}

/** A digest of every token and of the bits of every logprob. */
export function fingerprint({ tokens, logprobs = [] }: GenerationResult): string {
  const numbers = logprobs.flatMap(({ token, logprob, topLogprobs }) => [
    token,
    logprob,
    ...topLogprobs.flatMap((each) => [each.token, each.logprob]),
  ])
  return createHash('sha256').update(Int32Array.from(tokens)).update(Float64Array.from(numbers)).digest('hex')
}

async function runOnce(
  model: Model,
  requests: readonly MixedRequest[],
  { order, alone }: Variation,
): Promise<string[]> {
  const prints: string[] = new Array(requests.length)
  const run = async (index: number) => {
    const { ids, options } = requests[index]!
    prints[index] = fingerprint(await model.generate(ids, options).result())
  }
  const indices = order?.(requests.length) ?? requests.map((_, index) => index)
  if (alone) for (const index of indices) await run(index)
  else await Promise.all(indices.map(run))
  return prints
}

/**
 * Runs the requests under every variation; the first is what the others are compared with. `model`: the path of a package,
 * or what opens another.
 */
export async function checkInvariance(
  model: string | ((options: OpenOptions) => Promise<Model>),
  requests: readonly MixedRequest[],
  variations: readonly Variation[],
): Promise<VariationReport[]> {
  const reports: VariationReport[] = []
  let expected: string[] | undefined
  for (const variation of variations) {
    await using opened = await (typeof model === 'string' ? open(model, variation.open) : model(variation.open))
    if (variation.warm) await runOnce(opened, requests, variation)
    const prints = await runOnce(opened, requests, variation)
    expected ??= prints
    const stats = opened.stats()
    reports.push({
      name: variation.name,
      requests: requests.length,
      differing: prints.flatMap((print, index) => (print === expected![index] ? [] : [index])),
      happened: variation.happened?.(stats, opened) ?? true,
      launchesPerStep: stats.launchesPerStep,
    })
  }
  return reports
}

const shuffled = (seed: number) => (count: number) => {
  const next = random(seed)
  return Array.from({ length: count }, (_, index) => ({ index, key: next() }))
    .sort((a, b) => a.key - b.key)
    .map(({ index }) => index)
}

/** Every way to run requests that must not show; `base` picks backend and instruction set. */
export function standardVariations(base: OpenOptions, blocksOfOne: number): Variation[] {
  const plain = { ...base, prefixCache: false }
  return [
    { name: 'alone', open: { ...plain, maxSlots: 1, pipelined: false }, alone: true },
    { name: 'batched', open: { ...plain, maxSlots: 16 } },
    {
      name: 'batched in reverse, 7 slots',
      open: { ...plain, maxSlots: 7 },
      order: (n) => Array.from({ length: n }, (_, i) => n - 1 - i),
    },
    { name: 'batched at random, 64 slots', open: { ...plain, maxSlots: 64 }, order: shuffled(3) },
    ...[1, 7, 64].map(
      (prefillChunk): Variation => ({
        name: `prompts in chunks of ${prefillChunk}`,
        open: { ...plain, maxSlots: 16, prefillChunk },
      }),
    ),
    { name: 'whole prompts', open: { ...plain, maxSlots: 8, maxTokensPerStep: 4096 } },
    {
      name: 'prefix hits',
      open: { ...base, maxSlots: 16, prefixCache: true },
      warm: true,
      happened: ({ prefixHits }) => prefixHits > 0,
    },
    {
      name: 'forced preemption',
      open: { ...plain, maxSlots: 16, preemptEvery: 3 },
      happened: ({ preemptions }) => preemptions > 10,
    },
    {
      name: 'preemption for want of blocks, with prefix hits',
      open: { ...base, maxSlots: 16, prefixCache: true, blocks: blocksOfOne + 6 },
      order: shuffled(5),
      happened: ({ preemptions }) => preemptions > 0,
    },
    {
      name: 'steps ahead of the tokens that they compute, 3 slots',
      open: { ...plain, maxSlots: 3, pipelined: true },
      happened: ({ stepsAhead }) => stepsAhead > 10,
    },
  ]
}
