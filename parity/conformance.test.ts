/** What fails the suite, and what does not: each verdict, and each kind of sentinel, on a backend that earns it. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { OpName } from '../abi/ops/index.ts'
import type { ResultView, StepView } from '../abi/step.ts'
import { cpuTable } from '../compute/cpu.ts'
import { cpuBackend } from '../compute/cpu-backend.ts'
import { cudaTable } from '../compute/cuda.ts'
import type { Backend, LinkedPackage } from '../compute/device.ts'
import { nullTable } from '../compute/null.ts'
import { referenceBackend } from '../compute/reference.ts'
import { type KernelTable, tableInMode } from '../compute/table.ts'
import { type ConformanceOptions, casesOf, conformance, printConformance } from './conformance.ts'
import { defective } from './defective.test-backend.ts'
import { Suite } from './ops/suite.ts'

let suite: Suite
beforeAll(async () => {
  suite = await Suite.open()
})
afterAll(() => suite[Symbol.asyncDispose]())

const judge = (backend: Backend, options: ConformanceOptions = {}) =>
  conformance({ name: 'judged', backend }, { suite, slice: 'thin', ops: ['multiply'], ...options })

type Meddle = (step: StepView, result: ResultView, pkg: LinkedPackage) => void

/** The CPU, with something done to the buffers after each step. */
const meddled = (meddle: Meddle, sentinels?: () => readonly string[]): Backend => ({
  ...cpuBackend,
  async open(pkg, options) {
    const runner = await cpuBackend.open(pkg, options)
    return {
      info: runner.info,
      memory: () => runner.memory(),
      dispose: () => runner.dispose(),
      async step(step, result) {
        await runner.step(step, result)
        meddle(step, result, pkg)
      },
      ...(sentinels && { sentinels }),
    }
  },
})

describe('pass', () => {
  it('says what ran, and how near it came to its bound', async () => {
    const report = await judge(cpuBackend, { ops: ['linear'] })
    expect(report).toMatchObject({ pass: true, backend: 'judged', slice: 'thin', guarded: true })
    expect(report.cells.map(({ weights }) => weights)).toEqual(['f32', 'f16', 'bf16', 'q8', 'q4', 'fp8'])
    const [fp8, ...others] = report.cells.toReversed()
    expect(fp8).toMatchObject({
      verdict: 'unsupported',
      reason: expect.stringContaining('run it on cuda or reference'),
    })
    for (const { verdict, worst, worstCase, failures } of others) {
      expect({ verdict, failures }).toEqual({ verdict: 'pass', failures: [] })
      expect(worst).toBeGreaterThan(0)
      expect(worst).toBeLessThan(1)
      expect(worstCase).not.toBe('')
    }
    expect(JSON.parse(JSON.stringify(report))).toEqual(report)
  })

  it('runs all but sentinels of memory on a backend that watches none', async () => {
    expect(await judge(referenceBackend)).toMatchObject({ pass: true, guarded: false })
  })
})

describe('fail', () => {
  it('takes an output beyond its bound', async () => {
    const report = await judge(meddled((_, { hidden }) => hidden.set([hidden[0]! + 1e-5])))
    expect(report.pass).toBe(false)
    const [cell] = report.cells
    expect(cell!.verdict).toBe('fail')
    expect(cell!.worst).toBeGreaterThan(1)
    expect(cell!.failures[0]!.reason).toMatch(/times its bound: step 0, hidden\[0, 0\] is/)
  })

  it('takes what is no number', async () => {
    const report = await judge(meddled((_, { hidden }) => hidden.set([Number.NaN])))
    expect(report.cells[0]).toMatchObject({ verdict: 'fail', worst: null })
  })

  it('takes a number where NaN was owed', async () => {
    const clean: Meddle = (_step, { header, hidden }, { plan }) => {
      for (let i = 0; i < header[0]! * plan.hidden; i++) if (Number.isNaN(hidden[i]!)) hidden[i] = 0
    }
    const report = await judge(meddled(clean), { slice: 'full' })
    expect(report.cells[0]!.failures.map((failure) => failure.case)).toEqual([expect.stringContaining('fill nan')])
  })

  it('takes another token', async () => {
    const report = await judge(
      meddled((_, { rows }) => rows.set([rows[0]! ^ 1])),
      { ops: ['sample'] },
    )
    expect(report.cells[0]!.failures[0]!.reason).toMatch(/tokens\[0\]/)
  })

  it('takes an error of a step, and goes on', async () => {
    const report = await judge(
      meddled(() => {
        throw new Error('the device is gone')
      }),
    )
    expect(report.cells[0]!.failures[0]!.reason).toBe('the device is gone')
    expect(report.cells[0]!.cases.fail).toBe(report.cases)
  })
})

describe('sentinels', () => {
  const faults = async (backend: Backend) => (await judge(backend)).cells[0]!

  it('see the step buffer written', async () => {
    const cell = await faults(meddled((step) => step.positions.set([9], 150)))
    expect(cell.verdict).toBe('fail')
    expect(cell.sentinelFaults).toBeGreaterThan(0)
    expect(cell.failures[0]!.reason).toMatch(/the step buffer: byte \d+ was written/)
  })

  it.each([
    ['rows', (rows: number, { rows: words }: ResultView) => words.fill(0, rows * 42, rows * 42 + 1)],
    [
      'hidden states',
      (rows: number, { hidden }: ResultView, width: number) => hidden.fill(0, rows * width, rows * width + 1),
    ],
    ['the last byte', (_: number, { buffer }: ResultView) => new Uint8Array(buffer).fill(0, -1)],
  ] as const)('see results written past what was asked for: %s', async (_, write) => {
    const cell = await faults(meddled((_step, result, { plan }) => void write(result.header[0]!, result, plan.hidden)))
    expect(cell.verdict).toBe('fail')
    expect(cell.failures[0]!.reason).toMatch(/the result buffer: byte \d+ was written/)
  })

  it('see what the runner reports of registers and states', async () => {
    const cell = await faults(
      meddled(
        () => {},
        () => ['state kv: what lies past its last unit was written'],
      ),
    )
    expect(cell.verdict).toBe('fail')
    expect(cell.failures[0]!.reason).toBe(
      'step 0: state kv: what lies past its last unit was written; step 1: state kv: what lies past its last unit was written',
    )
  })
})

describe('products that round their inputs', () => {
  /** Significant bits of what may be declared; float32 keeps all that a test of them could see. */
  const bits = { f32: 24, f16: 11, bf16: 8, i8: 8, i4: 8, e4m3: 4 } as const

  /** To nearest, to so many significant bits (Veltkamp's splitting). */
  function rounded(x: number, significant: number): number {
    const c = x * (2 ** (53 - significant) + 1)
    return c - (c - x)
  }

  /** The reference, whose products meet inputs rounded to as many bits as the dtype of their weights says. */
  const rounding = (table: KernelTable): Backend => ({
    ...defective('judged', ({ plan, instruction, outputs }) => {
      if (instruction.op !== 'embed') return
      const product = plan.instructions.find(({ op }) => op === 'linear' || op === 'logits')!
      const { dtype } = plan.tensors[product.weights[0]!]!
      for (const { data } of outputs)
        for (let i = 0; i < data.length; i++) data[i] = rounded(data[i]!, bits[dtype as keyof typeof bits])
    }),
    table,
  })

  const verdicts = async (table: KernelTable) => {
    const { cells } = await judge(rounding(table), { ops: ['linear', 'logits'] })
    return Object.fromEntries(cells.map(({ op, weights, verdict, worst }) => [`${op} ${weights}`, { verdict, worst }]))
  }

  it('pass by the bound of what the table declares, and come near it', async () => {
    for (const [cell, { verdict, worst }] of Object.entries(await verdicts(cudaTable))) {
      expect({ cell, verdict }).toEqual({ cell, verdict: 'pass' })
      // inputs are float32 as they are
      if (!cell.endsWith('f32')) expect(worst, cell).toBeGreaterThan(0.1)
    }
  })

  it('fail by that of float32 where it declares none, whatever the dtype', async () => {
    const { operands: _, ...linear } = cudaTable.linear
    const { operands: __, ...logits } = cudaTable.logits
    for (const [cell, { verdict }] of Object.entries(await verdicts({ ...cudaTable, linear, logits })))
      expect({ cell, verdict }).toEqual({ cell, verdict: cell.endsWith('f32') ? 'pass' : 'fail' })
  })

  it('are held to what deterministic mode rounds to', async () => {
    const found = await verdicts(tableInMode(cudaTable, true))
    expect(found['linear fp8']!.verdict).toBe('fail')
    expect(found['linear bf16']!.verdict).toBe('pass')
  })

  it('fail by the bound of f16 where they round to bf16', async () => {
    const declared = { f16: 'f16', bf16: 'f16', i8: 'f16', i4: 'f16' } as const
    const table = {
      ...cudaTable,
      linear: { ...cudaTable.linear, operands: declared },
      logits: { ...cudaTable.logits, operands: declared },
    }
    const found = await verdicts(table)
    expect(found['linear f16']!.verdict).toBe('pass')
    expect(found['linear bf16']!.verdict).toBe('fail')
  })
})

describe('unsupported', () => {
  it('gives the reason of the table', async () => {
    const report = await judge(cpuBackend, { ops: ['layer_norm', 'moe'] })
    expect(report.pass).toBe(true)
    for (const { verdict, reason, worst } of report.cells)
      expect({ verdict, reason, worst }).toMatchObject({
        verdict: 'unsupported',
        reason: expect.stringContaining(cpuTable.layer_norm.unsupported),
        worst: 0,
      })
  })

  it('fails what runs all the same', async () => {
    const report = await judge({ ...referenceBackend, table: cpuTable }, { ops: ['layer_norm'] })
    expect(report.pass).toBe(false)
    expect(report.cells[0]!.failures[0]!.reason).toMatch(/^declared unsupported, and it runs: layer_norm: no topology/)
  })

  it('fails what the table promises and open refuses', async () => {
    const report = await judge({ ...cpuBackend, table: nullTable }, { ops: ['layer_norm'] })
    expect(report.pass).toBe(false)
    expect(report.cells[0]!.failures[0]!.reason).toMatch(/^declared supported, and refused at open: layer_norm/)
  })

  it('is what a backend without a table refuses', async () => {
    const { table: _, ...untold } = cpuBackend
    const report = await judge(untold, { ops: ['layer_norm'] })
    expect(report).toMatchObject({ pass: true, cells: [{ verdict: 'unsupported' }] })
  })
})

describe('expected to fail', () => {
  const expectation = { backend: 'judged', op: 'multiply' as OpName, issue: '#17', reason: 'the unit rounds down' }
  const wrong = meddled((_, { hidden }) => hidden.set([hidden[0]! + 1]))

  it('is no failure, and names the issue', async () => {
    const report = await judge(wrong, { expected: [expectation] })
    expect(report).toMatchObject({
      pass: true,
      cells: [{ verdict: 'expected to fail', reason: '#17: the unit rounds down' }],
    })
    expect(report.cells[0]!.cases['expected to fail']).toBe(report.cases)
  })

  it('covers the cases that it names, and no others', async () => {
    const cases = [casesOf({ ops: ['multiply'] })[0]!.name]
    const report = await judge(wrong, { expected: [{ ...expectation, cases }] })
    expect(report.cells[0]!.cases).toMatchObject({ 'expected to fail': 1, fail: report.cases - 1 })
  })

  it('fails a case that passes', async () => {
    const report = await judge(cpuBackend, { expected: [expectation] })
    expect(report).toMatchObject({ pass: false, cells: [{ verdict: 'fail' }] })
    expect(report.cells[0]!.failures[0]!.reason).toBe('pass, and expected to fail by #17: the unit rounds down')
  })

  it('fails a case that is unsupported: that is another thing', async () => {
    const report = await judge(cpuBackend, { ops: ['layer_norm'], expected: [{ ...expectation, op: 'layer_norm' }] })
    expect(report.cells[0]!.failures[0]!.reason).toMatch(/^unsupported, and expected to fail/)
  })

  it('fails a full run when no case answers to it', async () => {
    const expected = [{ ...expectation, cases: ['width 9999'] }]
    const report = await judge(cpuBackend, { slice: 'full', expected })
    expect(report).toMatchObject({ pass: false, staleExpectations: ['multiply (width 9999): #17'] })
    expect((await judge(cpuBackend, { expected })).pass).toBe(true)
  })

  it('is of one backend and, where it says so, one instruction set', async () => {
    const expected = [
      { ...expectation, backend: 'another' },
      { ...expectation, isa: 'another' },
    ]
    expect((await judge(cpuBackend, { slice: 'full', expected })).pass).toBe(true)
  })
})

describe('a call that cannot be met', () => {
  it('throws for a backend that cannot run here', async () => {
    const unavailable = { ...cpuBackend, unavailable: () => ({ code: 'none', reason: 'no such chip' }) }
    await expect(judge(unavailable)).rejects.toMatchObject({ code: 'BACKEND_UNAVAILABLE' })
  })

  it('throws for an instruction set that the machine does not have', async () => {
    await expect(conformance({ name: 'cpu', backend: cpuBackend, isa: 'x87' })).rejects.toMatchObject({
      code: 'ISA_UNAVAILABLE',
    })
  })
})

it('prints a row a cell, and the verdict last', async () => {
  const good = printConformance(await judge(cpuBackend, { ops: ['multiply', 'layer_norm'] }))
  expect(good).toMatch(/\nmultiply {4}- {8}- {6}pass {9}\d+ .*\n/)
  expect(good).toMatch(/\nlayer_norm .* unsupported .* no topology uses it yet/)
  expect(good.endsWith('\nPASS')).toBe(true)
  const bad = printConformance(await judge(meddled((step) => step.positions.set([9], 150))))
  expect(bad).toMatch(/sentinels changed; .*the step buffer/)
  expect(bad.endsWith('\nFAIL')).toBe(true)
})
