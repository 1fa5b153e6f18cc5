import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addon, packageRoot } from '../abi/native.ts'
import { cpuBackend } from '../compute/cpu-backend.ts'
import { nullBackend } from '../compute/null.ts'
import { parseRecord, type StepRecord } from '../compute/record.ts'
import { referenceBackend } from '../compute/reference.ts'
import { compile, IngotError, type OpenOptions, open } from '../index.ts'
import { readPackage, weightsHash } from '../models/package.ts'
import { defective } from './defective.test-backend.ts'
import { findDivergence, printDivergence } from './divergence.ts'
import { editOf } from './edit.test-json.ts'
import { mixedRequests } from './invariance.ts'
import { assertRecordOf, type ReplayPackage, readRecord, replayAgainst, replayRecord, replaySteps } from './replay.ts'

const cpu = { name: 'cpu', backend: cpuBackend }
const reference = { name: 'reference', backend: referenceBackend }

let folder: string
let pkg: ReplayPackage
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-replay-'))
  const { path } = await compile(join(packageRoot(), 'parity/goldens/llama'), { out: join(folder, 'llama.ingot') })
  const opened = await readPackage(path, { integrity: 'structure' })
  pkg = { ...opened, weightsHash: weightsHash(opened) }
})
afterAll(() => rm(folder, { recursive: true }))

/** Runs mixed requests under `options` and reads what was recorded. */
async function recorded(name: string, options: OpenOptions, count = 12): Promise<StepRecord[]> {
  const directory = join(folder, name)
  const requests = mixedRequests(count, pkg.plan.vocab, 70, 9)
  {
    await using model = await open(pkg.path, { contextTokens: 128, ...options, record: { directory, keep: 40 } })
    await Promise.all(requests.map(({ ids, options: each }) => model.generate(ids, each).result()))
  }
  const names = (await readdir(directory)).sort()
  expect(names.length).toBeLessThanOrEqual(40)
  return Promise.all(names.map((file) => readRecord(join(directory, file))))
}

describe('a recorded step', () => {
  it.each([
    ['batched', { maxSlots: 8, prefixCache: false }],
    ['chunks, prefix hits and preemption', { maxSlots: 4, prefillChunk: 16, preemptEvery: 3 }],
    ['guesses', { maxSlots: 4, speculative: { lookup: true, tokens: 3 } }],
  ] as const)('gives the same bits again: %s', async (name, options) => {
    const records = await recorded(name, options)
    let units = 0
    for (const record of records) {
      const report = await replayRecord(record, pkg, cpu)
      expect(report, JSON.stringify(record)).toMatchObject({
        pass: true,
        sameArithmetic: true,
        differingRows: [],
        differingUnits: [],
      })
      units += report.units
    }
    expect(units).toBeGreaterThan(records.length)
    const last = records.filter(({ sampling }) => sampling.length > 1).at(-1)!
    for (const isa of addon().machine().available) {
      const row = { name: isa, backend: cpuBackend, isa, options: { threads: 2 } }
      expect(await replayRecord(last, pkg, row)).toMatchObject({ pass: true, differingRows: [] })
    }
  })

  it('of one backend replays on another, where bits may differ and tokens of greedy rows do not', async () => {
    const records = await recorded('another', { maxSlots: 4, prefixCache: false }, 4)
    const report = await replayRecord(records.at(-1)!, pkg, reference)
    expect(report).toMatchObject({ pass: true, sameArithmetic: false, units: 0, differingTokens: [] })
    expect(report.differingRows.length).toBeGreaterThan(0)
    expect(await replayAgainst(records.at(-1)!, pkg, reference, reference, true)).toMatchObject({
      pass: true,
      differingRows: [],
    })
  })

  it('shows what was changed: a token of its history, a digest, the package', async () => {
    const records = await recorded('changed', { maxSlots: 2, prefixCache: false }, 2)
    const record = records.findLast(({ sequences }) => sequences[0]!.history.length > 3)!
    const [first, ...others] = record.sequences
    const history = first!.history.with(2, (first!.history[2]! + 1) % pkg.plan.vocab)
    const changed = { ...record, sequences: [{ ...first!, history }, ...others] }
    const report = await replayRecord(changed, pkg, cpu)
    expect(report).toMatchObject({ pass: false, sameArithmetic: true })
    expect(report.differingUnits.length).toBeGreaterThan(0)
    expect(() => assertRecordOf({ ...record, weights: '0'.repeat(64) }, pkg, 'r')).toThrow('recorded with weights 0000')
    expect(() => assertRecordOf({ ...record, plan: '0'.repeat(64) }, pkg, 'r')).toThrow('recorded with plan 0000')
    assertRecordOf(record, pkg, 'r')
    await expect(readRecord(join(folder, 'none.json'))).rejects.toMatchObject({ code: 'FILE_MISSING' })
  })

  it('runs or is refused with a typed error whatever it says', async () => {
    const records = await recorded('edited', { maxSlots: 2, prefixCache: false }, 2)
    const record = records.findLast(({ sampling }) => sampling.length > 0)!
    let ran = 0
    await fc.assert(
      fc.asyncProperty(editOf(record), async (edit) => {
        try {
          await replayRecord(parseRecord(JSON.stringify(edit(record)), 'r'), pkg, cpu)
          ran++
        } catch (error) {
          expect(error).toBeInstanceOf(IngotError)
        }
      }),
      { numRuns: 150 },
    )
    expect(ran).toBeGreaterThan(5)
  })

  it('needs a folder that can be made', async () => {
    const record = join(folder, 'llama.ingot', 'manifest.json', 'x')
    await expect(open(pkg.path, { record })).rejects.toMatchObject({ code: 'OUTPUT_UNWRITABLE' })
    await expect(open(pkg.path, { record: { directory: '' } })).rejects.toMatchObject({ code: 'OPTION_INVALID' })
    await expect(open(pkg.path, { record: join(folder, 'ahead'), pipelined: true })).rejects.toMatchObject({
      code: 'OPTION_INVALID',
      details: { option: 'pipelined' },
    })
  })
})

describe('bisection', () => {
  let record: StepRecord
  beforeAll(async () => {
    record = (await recorded('bisected', { maxSlots: 2, prefixCache: false }, 2)).findLast(
      ({ sequences }) => sequences.length > 1,
    )!
  })

  it('finds nothing wrong with a sound backend', async () => {
    expect(await replayAgainst(record, pkg, reference, cpu, true)).toMatchObject({
      pass: true,
      divergence: { found: 'largest' },
    })
    expect(await replayAgainst(record, pkg, cpu, { ...cpu, isa: 'portable' }, true)).toMatchObject({
      pass: true,
      differingRows: [],
    })
  })

  it('names the instruction that is wrong, its row and how it differs, however small the effect', async () => {
    const { length } = pkg.plan.instructions
    for (const wrong of [1, Math.floor(length / 2), length - 2]) {
      const broken = defective('broken', ({ index, outputs: [out] }) => {
        // one element of the last row, by a tenth
        if (index === wrong) out!.data[out!.data.length - 3]! += 0.1 * Math.hypot(...out!.data.slice(-out!.width))
      })
      const report = await replayAgainst(record, pkg, reference, { name: 'broken', backend: broken }, true)
      expect(report.pass).toBe(false)
      const { divergence } = report
      const { op, label } = pkg.plan.instructions[wrong]!
      expect(divergence).toMatchObject({ found: 'alone', instruction: wrong, op, label, judged: 'broken' })
      const { rows, width, largest } = divergence!.outputs[0]!
      expect(largest).toMatchObject({ row: rows - 1, column: width - 3 })
      expect(divergence!.error.value).toBeCloseTo(0.1, 2)
      expect(printDivergence(divergence!)).toContain(`instruction ${wrong}, ${op} "${label}", of broken`)
    }
  })

  it('blames the side that is wrong, and bits where the arithmetic is one', async () => {
    const broken = {
      name: 'broken',
      backend: defective('broken', ({ index, outputs: [out] }) => index === 4 && out!.data.fill(Number.NaN, 3, 4)),
    }
    const { steps } = replaySteps(record, pkg.plan)
    expect(await findDivergence(pkg, broken, cpu, steps)).toMatchObject({
      judged: 'broken',
      instruction: 4,
      found: 'alone',
    })
    const flipped = defective('reference', ({ index, outputs: [out] }) => {
      if (index === 5) out!.data[7]! *= 1 + 2 ** -52
    })
    const found = await findDivergence(pkg, reference, { name: 'flipped', backend: flipped }, steps)
    expect(found).toMatchObject({ found: 'bits', instruction: 5, row: 0, error: { allowed: 0 } })
    const unshown = findDivergence(pkg, cpu, { name: 'null', backend: nullBackend }, steps)
    await expect(unshown).rejects.toMatchObject({ code: 'TRACE_MISSING' })
  })
})
