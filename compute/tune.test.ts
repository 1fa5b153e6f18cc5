/** What is measured, by steps that a real executor accepts, and what is chosen from it. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { NativeChoice } from '../abi/native.ts'
import { createResult, type StepLimits, stepHeader } from '../abi/step.ts'
import { decoderPlan } from '../plans/example.test-plan.ts'
import { cpuBackend } from './cpu-backend.ts'
import type { Runner } from './device.ts'
import { examplePackage } from './example.test-package.ts'
import { fastest, mixes, quartiles, stepOf, tune } from './tune.ts'
import { bucketOf, choicesFor, rowsOf, tunables } from './tuning.ts'

const plan = decoderPlan('bf16')
const limitsOf = (tokens: number, sequences: number, rows = sequences): StepLimits => ({
  ...{ tokens, sequences, rows, blocksPerSequence: 4, history: 0, biases: 0, copies: 0 },
})
const optionsOf = (limits: StepLimits, contextTokens = 100) => ({ limits, blocks: 9, contextTokens, rounds: 5 })

describe('instructions share a choice', () => {
  it('where opcode, dtype and shape agree', () => {
    const found = tunables(plan).map(({ opcode, dtype, shape, instructions, space }) => [
      ...[opcode, dtype, shape, space, instructions.map((i) => plan.instructions[i]!.label).join(' ')],
    ])
    expect(found).toEqual([
      ['linear', 'bf16', 'n 32, k 16, branches 1', 'tokens', 'layers.0.qkv layers.1.qkv'],
      [
        'attention',
        'bf16',
        'heads 2, kv_heads 1, head_dim 8, inv_freq',
        'tokens',
        'layers.0.attention layers.1.attention',
      ],
      ['linear', 'bf16', 'n 16, k 16, branches 1, residual', 'tokens', 'layers.0.o layers.1.o'],
      ['linear', 'bf16', 'n 48, k 16, branches 1', 'tokens', 'layers.0.gate_up layers.1.gate_up'],
      ['linear', 'bf16', 'n 16, k 24, branches 1, residual', 'tokens', 'layers.0.down layers.1.down'],
      ['logits', 'bf16', 'vocab 40, k 16', 'rows', 'head'],
    ])
  })

  it('and a runner is told those of its plan and of launches that there can be, and no other', () => {
    const [qkv] = tunables(plan)
    const { opcode, dtype, shape, instructions } = qkv!
    const entry = (rows: number, of = shape) => ({ opcode, dtype, shape: of, rows, chosen: 'tile' })
    const entries = [entry(1), entry(32), entry(64), entry(8, 'n 32, k 17, branches 1')]
    expect(choicesFor(plan, entries, limitsOf(24, 4))).toEqual([
      { instructions, rows: 1, kernel: 'tile' },
      { instructions, rows: 32, kernel: 'tile' }, // 17 to 24 rows
    ])
  })
})

const sizes = fc.record({ sequences: fc.integer({ min: 1, max: 70 }), extra: fc.integer({ min: 0, max: 400 }) })

describe('steps to measure', () => {
  it('launch every number of rows once, within the limits', () => {
    fc.assert(
      fc.property(sizes, fc.integer({ min: 2, max: 120 }), ({ sequences, extra }, contextTokens) => {
        const limits = limitsOf(sequences + extra, sequences)
        const found = mixes(optionsOf(limits, contextTokens))
        for (const mix of found) {
          expect(mix.tokens).toBeLessThanOrEqual(limits.tokens)
          expect(mix.sequences).toBeLessThanOrEqual(Math.min(sequences, mix.tokens))
          expect(Math.ceil(mix.tokens / mix.sequences)).toBeLessThanOrEqual(contextTokens)
        }
        const buckets = found.map(({ tokens }) => bucketOf(tokens))
        expect(new Set(buckets).size).toBe(buckets.length)
        for (let rows = 1; rowsOf(rows, 'tokens', limits) > 0; rows *= 2)
          if (rows <= sequences * contextTokens) expect(buckets).toContain(rows)
      }),
    )
  })

  it('are steps that an executor runs', async () => {
    using pkg = examplePackage(plan)
    const limits = limitsOf(90, 6)
    const runner = await cpuBackend.open(pkg, { limits, blocks: 9, slots: 7, threads: 1, isa: '' })
    try {
      const { view } = createResult(6, { vocab: 0, hidden: 0 })
      const found = mixes(optionsOf(limits))
      expect(found.length).toBe(8)
      for (const mix of found) {
        const step = stepOf(pkg.plan, mix, optionsOf(limits))
        await runner.step(step, view)
        expect(view.header[0]).toBe(step.header[stepHeader.word.rows])
      }
    } finally {
      runner.dispose()
    }
  })
})

describe('the fastest', () => {
  const times = (median: number, spread = 0.1) => ({ low: median - spread, median, high: median + spread })
  it('is that of the rules, unless another is faster beyond the spread of both', () => {
    expect(fastest('a', { a: times(10), b: times(9) })).toBe('b')
    expect(fastest('a', { a: times(10), b: times(9.9) })).toBe('a')
    expect(fastest('a', { a: times(10), b: times(9, 2), c: times(12) })).toBe('a')
    expect(fastest('a', { a: times(10, 0.001), b: times(9.96, 0.001) })).toBe('a')
    expect(fastest('a', { a: times(10, 0.001), b: times(9.94, 0.001) })).toBe('b')
    expect(quartiles([5, 1, 4, 2, 3])).toEqual({ low: 2, median: 3, high: 4 })
  })
})

describe('tune', () => {
  /** A device on which kernel `name` of an instruction takes `cost` microseconds of every step. */
  function fake(kernels: readonly string[], cost: (instruction: number, rows: number, name: string) => number) {
    const asked: (readonly NativeChoice[])[] = []
    const runner: Pick<Runner, 'choices' | 'compare'> = {
      choices: (instruction, rows, decode) => {
        if (plan.instructions[instruction]!.op === 'attention') return decode ? ['wide', 'lean'] : []
        return rows > 60 ? kernels.slice(0, 1) : kernels
      },
      compare: async (_, __, sets, rounds) => {
        asked.push(...sets)
        const time = (set: readonly NativeChoice[]) =>
          set.reduce((sum, c) => sum + c.instructions.reduce((s, i) => s + cost(i, c.rows, c.kernel), 0), 100)
        return sets.map((set) => Array.from({ length: rounds }, (_, round) => time(set) + (round % 3) / 1000))
      },
    }
    return { runner: runner as Runner, asked }
  }
  const limits = limitsOf(64, 8)

  it('chooses the fastest for each shape and number of rows, and shows what every kernel took', async () => {
    const { runner } = fake(['stream', 'tile', 'blas'], (_, rows, name) =>
      name === 'stream' ? rows : name === 'tile' ? 10 : name === 'lean' ? 3 : 12,
    )
    const seen: string[] = []
    const onProgress = (done: number, total: number, what: string) => void seen.push(`${done}/${total} ${what}`)
    const found = await tune(runner, plan, { ...optionsOf(limits), onProgress })
    const of = (opcode: string) => found.filter((choice) => choice.opcode === opcode)
    for (const { rows, chosen, rule, step, instructions } of of('linear')) {
      expect({ rows, chosen, rule, instructions }).toEqual({
        ...{ rows, rule: 'stream', instructions: 2 },
        chosen: rows < 10 ? 'stream' : 'tile',
      })
      expect(Object.keys(step)).toEqual(['stream', 'tile', 'blas'])
    }
    expect(of('linear').map(({ rows }) => rows)).toEqual(
      [1, 2, 4, 8, 16, 32].flatMap((rows) => [rows, rows, rows, rows]),
    )
    expect(of('logits').map(({ rows }) => rows)).toEqual([1, 2, 4, 8])
    expect(of('attention').map(({ rows, chosen, rule }) => [rows, chosen, rule])).toEqual(
      [1, 2, 4, 8].map((rows) => [rows, 'lean', 'wide']),
    )
    expect(seen.at(-1)).toBe(`42/42 ${found.length} choices`)
  })

  it('compares kernels of one shape at a time, beside what was chosen before', async () => {
    const { runner, asked } = fake(['stream', 'tile'], (_, __, name) => (name === 'tile' ? 5 : 9))
    await tune(runner, plan, optionsOf(limits))
    for (let i = 0; i < asked.length; i += 2) {
      const [one, other] = [asked[i]!, asked[i + 1]!]
      expect(one.slice(0, -1)).toEqual(other.slice(0, -1))
      expect({ ...one.at(-1), kernel: '' }).toEqual({ ...other.at(-1), kernel: '' })
      const linear = one.slice(0, -1).filter(({ kernel }) => kernel !== 'wide')
      expect(linear.every(({ kernel }) => kernel === 'tile')).toBe(true)
    }
  })
})
