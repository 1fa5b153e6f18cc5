/** On the trained models: speculation changes the number of steps, and no bit of what a request gets. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { compile, type GenerateOptions, type GenerationResult, type OpenOptions, open } from '../index.ts'

const checkpoint = (name: string) => join(packageRoot(), 'checkpoints', name)

let folder: string
let model: string
let draft: string
let plain: GenerationResult[]
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-speculation-'))
  const make = async (name: string) =>
    (await compile(checkpoint(name), { out: join(folder, `${name}.ingot`), quantize: 'q8' })).path
  model = await make('storyteller-7m')
  draft = await make('storyteller-1m')
  plain = await run({ maxSlots: 1, prefixCache: false })
}, 60_000)
afterAll(() => rm(folder, { recursive: true }))

const story = 'Once upon a time there was a fox who'
const turn = (x: number, y: number) =>
  `<|im_start|>user\nUse a tool to add ${x} and ${y}.<|im_end|>\n<|im_start|>assistant\n`
const call = (x: number, y: number) =>
  `<tool_call>\n{"name": "add", "arguments": {"x": ${x}, "y": ${y}}}\n</tool_call><|im_end|>\n`
const tools = `<|im_start|>system\nYou can call these tools:\nadd(x, y)<|im_end|>\n${turn(12, 70)}${call(12, 70)}${turn(389, 204)}`
const samplers: GenerateOptions[] = [
  { temperature: 0 },
  { temperature: 0, repetitionPenalty: 1.2, logprobs: 5 },
  { temperature: 0.7, topP: 0.95, seed: 1 },
  { temperature: 1, topK: 20, seed: 2 },
  { temperature: 1.3, minP: 0.05, seed: 3, presencePenalty: 0.4, frequencyPenalty: 0.3 },
  { temperature: 0.9, topP: 0.8, topK: 50, seed: 4, logitBias: { 300: 1.5, 301: Number.NEGATIVE_INFINITY } },
  { temperature: 0.8, seed: 5, stop: [' and', 'The'] },
  { temperature: 0, stop: 'said' },
]
const asked = samplers.flatMap((options, i) =>
  [story, `${story} said: "A red, red fox! A red, red`, tools].map((prompt, j) => ({
    prompt,
    options: { maxTokens: 40 + 5 * i, logprobs: 2, seed: 10 * j, ignoreEos: j > 0, ...options },
  })),
)

async function run(options: OpenOptions): Promise<GenerationResult[]> {
  await using opened = await open(model, { contextTokens: 256, ...options })
  const results = await Promise.all(asked.map(({ prompt, options }) => opened.generate(prompt, options).result()))
  const { running, waiting, blocks, speculation, preemptions } = opened.stats()
  expect([running, waiting, blocks.used]).toEqual([0, 0, 0])
  if (options.speculative) expect(speculation!.accepted).toBeGreaterThan(50)
  if (options.blocks) expect(preemptions).toBeGreaterThan(0)
  return results
}

const answer = ({ text, tokens, logprobs, finishReason, stopReason }: GenerationResult) => ({
  text,
  tokens,
  logprobs,
  finishReason,
  stopReason,
})

describe.each(['draft', 'lookup'] as const)('with %s', (way) => {
  const speculative = (tokens?: number) => ({
    speculative: { ...(way === 'draft' ? { draft } : { lookup: true }), ...(tokens && { tokens }) },
  })
  it.each([
    ['alone', { maxSlots: 1, prefixCache: false }],
    ['batched', { maxSlots: 24 }],
    ['by 9 tokens, in few slots and rows', { maxSlots: 5, maxRows: 12 }, 9],
    ['when blocks run out', { maxSlots: 8, blocks: 12 }],
    ['when preempted, on one thread', { maxSlots: 8, preemptEvery: 4, threads: 1 }],
  ])('%s, tokens and logprobs have the bits of plain decoding', async (_, options, tokens?) => {
    const results = await run({ ...options, ...speculative(tokens as number | undefined) })
    expect(results.map(answer)).toEqual(plain.map(answer))
  })
})

it('a draft of another vocabulary is refused, and nothing stays open', async () => {
  const { path } = await compile(join(packageRoot(), 'parity', 'goldens', 'llama'), {
    out: join(folder, 'other.ingot'),
  })
  await expect(open(model, { speculative: { draft: path } })).rejects.toMatchObject({ code: 'DRAFT_MISMATCH' })
  await expect(open(model, { speculative: { draft: join(folder, 'none') } })).rejects.toMatchObject({
    code: 'FILE_MISSING',
  })
})
