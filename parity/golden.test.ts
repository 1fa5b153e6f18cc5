import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { IngotError } from '../errors.ts'
import type { Tensor } from '../plans/plan.ts'
import { type ParityModel, printParity, runGolden } from './golden.ts'
import { readGolden } from './golden-file.ts'
import { compareLogits, lossOf } from './measures.ts'
import { weightsClass } from './tolerances.ts'
import { type TensorBytes, writeTensors } from './write-tensors.ts'

const VOCAB = 4
const matrix = (dtype: Tensor['dtype']) => ({ dtype, layout: 'tile16' }) as Tensor

/** A bigram model: the logits of a token depend on its id only. */
const bigram = [
  [0, 1, -1, 0.5],
  [0, -1, 1, 0.5],
  [-1, 0, 0.5, 1],
  [1, 0, 0.5, -1],
]
const logitsOf = (ids: readonly number[], error: number) =>
  Float32Array.from(ids.flatMap((id) => bigram[id]!.map((z, i) => z + (i === 2 ? error : 0))))
function continued(ids: readonly number[], count: number): number[] {
  const tokens: number[] = []
  for (let last = ids.at(-1)!; tokens.length < count; tokens.push(last)) {
    const row = bigram[last]!
    last = row.indexOf(Math.max(...row))
  }
  return tokens
}
function model(
  options: { error?: number; backend?: string; tokens?: (ids: readonly number[]) => number[] } = {},
): ParityModel {
  return {
    plan: { vocab: VOCAB, tensors: [matrix('bf16')] },
    device: { backend: options.backend ?? 'reference' },
    logits: async (ids) => logitsOf(Array.from(ids), options.error ?? 0),
    generate: (ids, { maxTokens }) => ({
      result: async () => ({ tokens: options.tokens?.(ids) ?? continued(ids, maxTokens) }),
    }),
  }
}

const f32 = (name: string, shape: number[], values: ArrayLike<number>): TensorBytes => ({
  name,
  shape,
  dtype: 'F32',
  data: Float32Array.from(values),
})
const i32 = (name: string, values: readonly number[]): TensorBytes => ({
  name,
  shape: [values.length],
  dtype: 'I32',
  data: Int32Array.from(values),
})

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-golden-'))
})
afterAll(() => rm(folder, { recursive: true }))

const ids = [1, 2, 3]
const sound = [
  i32('prompt0.ids', ids),
  f32('prompt0.logits', [3, VOCAB], logitsOf(ids, 0)),
  i32('prompt0.greedy', continued(ids, 4)),
  f32('prompt0.greedy_margin', [4], [0.5, 0.5, 0.5, 0.5]),
  f32('prompt0.hidden0', [3, 2], [0, 0, 0, 0, 0, 0]),
]
async function golden(tensors: readonly TensorBytes[]): Promise<string> {
  const path = join(folder, 'golden.safetensors')
  await writeTensors(path, tensors, { reference: 'a test' })
  return path
}
const without = (name: string) => sound.filter((tensor) => tensor.name !== name)
const replaced = (tensor: TensorBytes) => [...without(tensor.name), tensor]

describe('golden', () => {
  it('passes a model that agrees, in the documented shape', async () => {
    const report = await runGolden(model(), await golden(sound))
    expect(report).toMatchObject({ pass: true, backend: 'reference', reference: 'a test', weights: 'bf16' })
    expect(report.cases).toEqual([
      {
        name: 'prompt0',
        tokens: 3,
        maxAbs: 0,
        rms: 0,
        maxRel: 0,
        kl: 0,
        argmaxAgreement: 1,
        greedy: { matched: 4, total: 4, firstDivergence: null },
        tolerance: { rms: expect.closeTo(1e-5), maxAbs: expect.closeTo(1e-4), tie: expect.closeTo(4e-5) },
        failures: [],
      },
    ])
    expect(printParity(report)).toContain('ok   prompt0: 3 tokens')
  })
  it('fails a logit beyond the tolerance, and allows it on a backend that rounds', async () => {
    const path = await golden(sound)
    const report = await runGolden(model({ error: 1e-3 }), path)
    expect(report.pass).toBe(false)
    expect(report.cases[0]!.maxAbs).toBeCloseTo(1e-3, 6)
    expect(report.cases[0]!.failures).toEqual([
      expect.stringContaining('the rms logit error is'),
      expect.stringContaining('the largest logit error is'),
    ])
    expect((await runGolden(model({ error: 1e-3, backend: 'cpu' }), path)).pass).toBe(true)
  })
  it('fails NaN', async () =>
    expect((await runGolden(model({ error: Number.NaN }), await golden(sound))).pass).toBe(false))
  it('fails a greedy token that differs by more than a tie', async () => {
    const wrong = model({ tokens: (prompt) => continued(prompt, 4).map((token, i) => (i < 2 ? token : 0)) })
    const at = continued(ids, 4).findIndex((token, i) => i >= 2 && token !== 0)
    const report = await runGolden(wrong, await golden(sound))
    expect(report.cases[0]!.greedy).toEqual({ matched: at, total: 4, firstDivergence: at, margin: 0.5 })
    expect(report.pass).toBe(false)
    expect(printParity(report)).toContain('FAIL')
    const tied = await golden(replaced(f32('prompt0.greedy_margin', [4], [0.5, 0.5, 1e-5, 1e-5])))
    expect((await runGolden(wrong, tied)).pass).toBe(true)
  })
  it('fails generation that ends early', async () => {
    const report = await runGolden(model({ tokens: (prompt) => continued(prompt, 3) }), await golden(sound))
    expect(report.cases[0]!.greedy.firstDivergence).toBe(3)
    expect(report.pass).toBe(false)
  })
  it('compares the last token and the losses of the short kind', async () => {
    const { mean } = lossOf(logitsOf(ids, 0), ids, VOCAB, [0, 0])
    const losses = [0, 1].map((t) => lossOf(logitsOf(ids.slice(t, t + 2), 0), ids.slice(t, t + 2), VOCAB, [0]).mean)
    const short = (nll: number[]) => [
      i32('prompt0.ids', ids),
      f32('prompt0.logits_last', [VOCAB], logitsOf([3], 0)),
      f32('prompt0.nll', [2], nll),
    ]
    const report = await runGolden(model(), await golden(short(losses)))
    expect(report.pass).toBe(true)
    expect(report.cases[0]!.nll!.mean).toBeCloseTo(mean, 12)
    expect(report.cases[0]!.greedy).toEqual({ matched: 0, total: 0, firstDivergence: null })
    expect((await runGolden(model(), await golden(short([losses[0]! + 0.1, losses[1]!])))).pass).toBe(false)
  })
  it.each([
    ['no prompt', [f32('logits', [1], [0])], 'TENSOR_MISSING'],
    ['no ids', without('prompt0.ids'), 'TENSOR_MISSING'],
    ['no logits', without('prompt0.logits'), 'TENSOR_MISSING'],
    ['no margin', without('prompt0.greedy_margin'), 'TENSOR_MISSING'],
    ['empty ids', replaced(i32('prompt0.ids', [])), 'TENSOR_SHAPE'],
    ['another vocabulary', replaced(f32('prompt0.logits', [3, 2], [0, 0, 0, 0, 0, 0])), 'TENSOR_SHAPE'],
    ['margins of another length', replaced(f32('prompt0.greedy_margin', [1], [0])), 'TENSOR_SHAPE'],
    ['float ids', replaced(f32('prompt0.ids', [3], ids)), 'DTYPE_UNSUPPORTED'],
    ['an id outside the vocabulary', replaced(i32('prompt0.ids', [1, 2, 4])), 'TOKEN_OUT_OF_RANGE'],
  ] as const)('refuses %s', async (_, tensors, code) => {
    await expect(runGolden(model(), await golden(tensors))).rejects.toMatchObject({ code })
  })
  it('refuses what is not safetensors', async () => {
    const path = join(folder, 'noise.safetensors')
    await writeFile(path, 'not a golden file')
    await expect(runGolden(model(), path)).rejects.toMatchObject({
      code: expect.stringMatching(/SAFETENSORS|TRUNCATED/),
    })
    await expect(runGolden(model(), join(folder, 'absent'))).rejects.toMatchObject({ code: 'FILE_MISSING' })
  })
})

describe('measures', () => {
  it('compares by the formulas', () => {
    const { maxAbs, maxRel, kl, argmaxAgreement, deviation } = compareLogits([1, 2, 5, 4], [1, 3, 4, 5], 2)
    const two = (z: number) => [1 / (1 + Math.exp(-z)), 1 / (1 + Math.exp(z))] as const
    const divergence = (p: readonly number[], q: readonly number[]) =>
      p.reduce((sum, x, i) => sum + x * Math.log(x / q[i]!), 0)
    expect(maxAbs).toBe(1)
    expect(maxRel).toBeCloseTo(1 / Math.sqrt((1 + 9 + 16 + 25) / 4), 12)
    expect(kl).toBeCloseTo((divergence(two(-2), two(-1)) + divergence(two(-1), two(1))) / 2, 12)
    expect(argmaxAgreement).toBe(0.5)
    expect(deviation).toBeCloseTo(Math.sqrt((2.25 ** 2 + 0.25 ** 2 + 0.75 ** 2 + 1.75 ** 2) / 4), 12)
  })
  it('sees NaN and missing logits', () => {
    expect(compareLogits([Number.NaN, 0], [0, 0], 2).maxAbs).toBeNaN()
    expect(compareLogits([0], [0, 0], 2).maxAbs).toBeNaN()
  })
})

it('names the class of the coarsest weights', () => {
  expect(weightsClass({ tensors: [matrix('bf16'), matrix('i8'), matrix('f16')] })).toBe('q8')
  expect(weightsClass({ tensors: [matrix('i8'), matrix('i4'), matrix('f16')] })).toBe('q4')
  expect(weightsClass({ tensors: [matrix('f16'), { ...matrix('f32'), layout: 'row' }] })).toBe('f16')
  expect(weightsClass({ tensors: [matrix('f32'), matrix('f16')] })).toBe('f16')
  expect(weightsClass({ tensors: [matrix('f32'), matrix('f16'), matrix('bf16')] })).toBe('bf16')
  expect(weightsClass({ tensors: [matrix('f32')] })).toBe('f32')
})

it('a golden file is read or refused with a typed error whatever its bytes', async () => {
  const bytes = await readFile(await golden(sound))
  const path = join(folder, 'odd.safetensors')
  const edits = fc.array(fc.tuple(fc.nat(bytes.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 })
  let read = 0
  await fc.assert(
    fc.asyncProperty(edits, fc.option(fc.nat(bytes.length)), async (each, cut) => {
      const odd = Buffer.from(bytes)
      for (const [at, value] of each) odd[at] = value
      await writeFile(path, odd.subarray(0, cut ?? odd.length))
      try {
        const { prompts } = await readGolden(path, VOCAB)
        for (const { ids } of prompts) expect(ids.every((id) => id >= 0 && id < VOCAB)).toBe(true)
        read++
      } catch (error) {
        expect(error).toBeInstanceOf(IngotError)
      }
    }),
    { numRuns: 300 },
  )
  expect(read).toBeGreaterThan(0)
})
