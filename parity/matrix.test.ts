import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { backends } from '../compute/backends.ts'
import { fail } from '../errors.ts'
import { defective, type Wrote } from './defective.test-backend.ts'
import { type BackendRow, type MatrixModel, missingCells, parityMatrix, parseMatrix, readMatrix } from './matrix.ts'
import type { MatrixReport } from './matrix-report.ts'
import { type Precision, packageAt } from './precisions.ts'
import { printMatrix } from './print-matrix.ts'
import { renderReport } from './report.ts'

const reference: BackendRow = { name: 'reference', backend: backends.reference }
const cpu = (isa: string): BackendRow => ({ name: `cpu:${isa}`, backend: backends.cpu, isa })

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-matrix-'))
})
afterAll(() => rm(folder, { recursive: true }))

async function modelOf(path: string, precision: Precision): Promise<MatrixModel> {
  const name = path.split('/').at(-1)!
  return {
    name,
    precision,
    pkg: await packageAt(join(packageRoot(), path), precision, await mkdtemp(join(folder, name))),
  }
}

/** Multiplies what layer 2 attends to by 1.1 for tokens whose pair with the one before stood in the step before. */
function drift({ instruction, step, outputs: [out] }: Wrote): void {
  if (instruction.label !== 'layers.2.attention') return
  const seen = new Set<string>()
  for (let t = 1; t < out!.rows; t++) {
    const pair = `${step.tokenSequence[t]} ${step.tokenIds[t - 1]} ${step.tokenIds[t]}`
    if (step.tokenSequence[t] === step.tokenSequence[t - 1] && seen.has(pair))
      for (let c = 0; c < out!.width; c++) out!.data[t * out!.stride + c]! *= 1.1
    seen.add(pair)
  }
}

/** Whatever is done to its text, a matrix is refused by name or can be printed and drawn. */
function fuzz(text: string): void {
  const edit = fc.tuple(
    fc.nat(text.length),
    fc.nat(6),
    fc.constantFrom('', 'null', '0', '"', '-1', '[]', '{}', ',', 'true'),
  )
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 3 }), (edits) => {
      const edited = edits.reduce((t, [at, cut, put]) => t.slice(0, at) + put + t.slice(at + cut), text)
      let report: MatrixReport
      try {
        report = parseMatrix(edited, 'm.json')
      } catch (error) {
        expect(error).toMatchObject({ code: 'MATRIX_INVALID' })
        return
      }
      expect(printMatrix(report) + renderReport({ title: '', matrix: report })).toContain('cells')
    }),
    { numRuns: 300 },
  )
}

/** A reference in float64 takes its time where others take the processors. */
const PATIENCE = 240_000

describe('the matrix', { timeout: PATIENCE }, () => {
  it('passes the CPU on every precision, with the same bits on its instruction sets', async () => {
    const models: MatrixModel[] = []
    for (const precision of ['bf16', 'f16', 'f32', 'q8', 'q4', 'q8-state'] as const)
      models.push(await modelOf('parity/goldens/llama', precision))
    const seen: string[] = []
    const rows = [reference, cpu('portable'), cpu('avx2')]
    const report = await parityMatrix(rows, models, { onProgress: (done, total) => seen.push(`${done}/${total}`) })
    expect(report.pass, printMatrix(report)).toBe(true)
    // no tokenizer: random ids in 3 shapes, 3 pairs of rows
    expect(report.cells.length).toBe(6 * 3 * 3)
    expect(seen.at(-1)).toBe('54/54')
    expect(missingCells(report)).toEqual([])
    for (const cell of report.cells) {
      expect(cell.sameBits).toBe(cell.expected !== 'reference')
      expect(cell.layers!.map(({ label }) => label)).toEqual(['embed', 'layers.0', 'layers.1', 'layers.2'])
      expect(cell.metrics!.tokens).toBeGreaterThan(100)
    }
    // figures that cannot be nought unless something was not compared
    const judged = report.cells.filter(({ expected }) => expected === 'reference')
    for (const { metrics, layers } of judged) {
      expect(metrics!.rms.value).toBeGreaterThan(1e-8)
      expect(metrics!.rms.value).toBeLessThan(metrics!.rms.allowed)
      expect(layers!.at(-1)!.worst.value).toBeGreaterThan(1e-8)
    }
    const linear = report.operations.filter(({ op }) => op === 'linear')
    expect(linear.map(({ precision }) => precision)).toEqual(models.map(({ precision }) => precision))
    expect(report.models.map(({ weights, state }) => `${weights} ${state}`)).toEqual([
      'bf16 bf16',
      'f16 f16',
      'f32 f32',
      'q8 bf16',
      'q4 bf16',
      'bf16 i8',
    ])
    const path = join(folder, 'matrix.json')
    await writeFile(path, JSON.stringify(report))
    expect(await readMatrix(path)).toEqual(JSON.parse(JSON.stringify(report)))
    fuzz(JSON.stringify({ ...report, cells: report.cells.slice(0, 2) }))
    expect(missingCells({ ...report, cells: report.cells.slice(1) })).toEqual([
      'llama / bf16 / random, alone, whole / reference / cpu:portable',
    ])
  })

  it('fails a backend that is right on random ids and wrong on text only', async () => {
    const model = await modelOf('checkpoints/storyteller-1m', 'bf16')
    const row = { name: 'drifting', backend: defective('drifting', drift) }
    const shapes = ['text, batch of 4, whole', 'random, batch of 4, whole']
    const report = await parityMatrix([reference, row], [model], { shapes })
    const verdicts = Object.fromEntries(report.cells.map(({ shape, verdict }) => [shape, verdict]))
    expect(report.pass).toBe(false)
    for (const [shape, verdict] of Object.entries(verdicts))
      if (shape.startsWith('random')) expect(verdict, shape).toBe('pass')
    const failed = report.cells.find(({ shape }) => shape === 'text, batch of 4, whole')!
    expect(failed.verdict).toBe('fail')
    expect(failed.failures.join()).toContain('attention "layers.2.attention", alone errs by 1.0')
    expect(failed.divergence).toMatchObject({
      op: 'attention',
      label: 'layers.2.attention',
      found: 'alone',
      judged: 'drifting',
    })
    // at random ids every instruction is exact: the gate that runs only those would pass it
    const random = report.operations.filter(({ kind, op }) => kind === 'random' && op === 'attention')
    expect(random.flatMap(({ errors }) => errors).every((error) => error === 0)).toBe(true)
    expect(printMatrix(report)).toContain('FAIL storyteller-1m, bf16: drifting by reference')
  })

  it('demands bits where the arithmetic is one, and finds the first that differs', async () => {
    const model = await modelOf('parity/goldens/qwen3', 'bf16')
    const last = model.pkg.plan.instructions.length - 1
    const flip = ({ index, outputs: [out], step }: Wrote) => {
      if (index === last - 3 && step.positions[0]! > 4) out!.data[1]! *= 1 + 2 ** -52
    }
    const rows = [
      { name: 'one', backend: defective('made', () => {}) },
      { name: 'other', backend: defective('made', flip) },
    ]
    const report = await parityMatrix(rows, [model], { shapes: ['random, batch of 4, chunks of 7'] })
    const failed = report.cells.find(({ verdict }) => verdict === 'fail')!
    expect(failed.failures).toContain('bits differ, and the arithmetic of both is one')
    expect(failed.divergence).toMatchObject({ found: 'bits', instruction: last - 3 })
    expect(failed.divergence!.step).toBeGreaterThan(0)
  })

  it('catches what one position alone gets wrong: NaN, a shifted row', async () => {
    const model = await modelOf('parity/goldens/qwen3', 'f32')
    const defects = {
      nan: ({ instruction, outputs: [out] }: Wrote) => instruction.op === 'logits' && out!.data.fill(Number.NaN, 5, 6),
      shifted: ({ instruction, outputs: [out] }: Wrote) =>
        instruction.op === 'logits' && out!.data.copyWithin(out!.width, 0, out!.width),
    }
    for (const [name, change] of Object.entries(defects)) {
      const rows = [reference, { name, backend: defective(name, change) }]
      const report = await parityMatrix(rows, [model], { shapes: ['random, alone, whole'] })
      expect(
        report.cells.some(({ verdict }) => verdict === 'fail'),
        name,
      ).toBe(true)
      expect(report.pass).toBe(false)
    }
  })

  it('skips what a backend says it cannot run, and refuses a matrix of nothing', async () => {
    const model = await modelOf('parity/goldens/qwen3', 'bf16')
    const gaps = {
      ...backends.cpu,
      open: async () => {
        throw fail('LINK_GAPS', { backend: 'half', path: 'x', gaps: 'linear: weight of dtype bf16' })
      },
    }
    const report = await parityMatrix(
      [reference, cpu(''), { name: 'cuda', backend: { ...backends.cuda } }, { name: 'half', backend: gaps }],
      [model],
    )
    const of = (name: string) =>
      report.cells.filter(({ expected, actual }) => expected === 'reference' && actual === name)
    expect(of('half').every(({ verdict, reason }) => verdict === 'skipped' && reason!.includes('dtype bf16'))).toBe(
      true,
    )
    expect(of('cuda').every(({ verdict, reason }) => verdict === 'skipped' && reason!.startsWith('cuda: '))).toBe(true)
    expect(report.pass).toBe(true)
    expect(missingCells(report)).toEqual([])
    const opaque: BackendRow = {
      name: 'opaque',
      backend: {
        ...backends.cpu,
        open: async (pkg, options) => {
          const runner = await backends.cpu.open(pkg, options)
          return {
            info: runner.info,
            step: runner.step.bind(runner),
            memory: () => runner.memory(),
            dispose: () => runner.dispose(),
          }
        },
      },
    }
    const unseen = await parityMatrix([reference, cpu(''), opaque], [model], { shapes: ['random, batch of 4, whole'] })
    expect(unseen.pass).toBe(true)
    expect(unseen.cells.find(({ expected }) => expected === 'cpu:')).toMatchObject({ sameBits: true, layers: [] })
    expect(printMatrix(unseen)).toContain('opaque does not show what its instructions write: none is judged alone')
    await expect(parityMatrix([reference], [model])).rejects.toMatchObject({ code: 'OPTION_INVALID' })
    await expect(parityMatrix([reference, reference], [model])).rejects.toMatchObject({ code: 'OPTION_INVALID' })
    await expect(parityMatrix([reference, cpu('')], [])).rejects.toMatchObject({ code: 'OPTION_INVALID' })
  })

  it.each(['', '{}', 'null', '{"format":"ingot-parity-matrix","version":2}'])('is not read from %j', (text) => {
    expect(() => parseMatrix(text, 'm.json')).toThrow(expect.objectContaining({ code: 'MATRIX_INVALID' }) as Error)
  })
})
