/**
 * Mutation score of the gate: seeded defects of kernels, plans and the host, each judged as any backend is, by op
 * conformance and, where that finds nothing, by the model matrix. A defect that both pass lives, and fails the score; so
 * does a gate that the sound kernels do not pass.
 */
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { addon, packageRoot } from '../../abi/native.ts'
import { type OpName, opNames } from '../../abi/ops/index.ts'
import { cpuBackend, cpuBackendOf } from '../../compute/cpu-backend.ts'
import type { Backend } from '../../compute/device.ts'
import { referenceBackend } from '../../compute/reference.ts'
import { fail } from '../../errors.ts'
import { temporaryFolder } from '../../models/files.ts'
import { type BackendRow, conformance } from '../conformance.ts'
import { type MatrixModel, parityMatrix } from '../matrix.ts'
import { Suite } from '../ops/suite.ts'
import { packageAt } from '../precisions.ts'
import { backendDefects } from './backends.ts'
import { buildMutants, SOUND } from './build.ts'
import { type KernelDefect, kernelDefects } from './defects.ts'

/** Something to be caught. */
export interface GateDefect {
  readonly name: string
  readonly kind: 'kernel' | 'plan' | 'host'
  readonly why: string
  readonly row: BackendRow
  /** Opcodes whose cases can show it; none: whole models only. */
  readonly ops: readonly OpName[]
}

export interface Caught {
  /** What saw it: an opcode's cases, or a cell of the matrix. */
  readonly by: 'op' | 'model'
  readonly where: string
  readonly reason: string
}

export interface GateResult extends Pick<GateDefect, 'name' | 'kind' | 'why'> {
  /** Undefined: it lives. */
  readonly caught: Caught | undefined
  readonly seconds: number
}

export interface GateScore {
  readonly pass: boolean
  readonly caught: number
  readonly total: number
  readonly results: readonly GateResult[]
  /** Defects of instruction sets that this machine lacks, and why. */
  readonly skipped: readonly { readonly name: string; readonly reason: string }[]
  /** What the gate holds against the sound kernels: nothing, or it proves nothing. */
  readonly control: readonly Caught[]
  /** To build the mutated kernels. */
  readonly buildSeconds: number
  readonly seconds: number
}

export interface GateOptions {
  /** Names of defects; absent: all. */
  readonly only?: readonly string[]
  readonly onProgress?: (done: number, total: number, what: string) => void
}

/** The gate, with what its calls share. */
export class Gate implements AsyncDisposable {
  readonly #suite: Suite
  readonly #folder: string
  #models: Promise<MatrixModel[]> | undefined

  private constructor(suite: Suite, folder: string) {
    this.#suite = suite
    this.#folder = folder
  }

  static async open(): Promise<Gate> {
    return new Gate(await Suite.open(), await temporaryFolder('gate'))
  }

  /** The first thing that the op cases of `ops` hold against a row: of a few cases, or else of all. */
  async ops(row: BackendRow, ops: readonly OpName[]): Promise<Caught | undefined> {
    return (await this.#cases(row, ops, 'thin')) ?? (await this.#cases(row, ops, 'full'))
  }

  async #cases(row: BackendRow, ops: readonly OpName[], slice: 'thin' | 'full'): Promise<Caught | undefined> {
    for (const op of ops) {
      const { cells } = await conformance(row, { ops: [op], suite: this.#suite, expected: [], slice })
      const cell = cells.find(({ verdict }) => verdict === 'fail')
      const [failure] = cell?.failures ?? []
      if (failure) return { by: 'op', where: `${op}: ${failure.case}`, reason: failure.reason }
    }
    return undefined
  }

  /** The first thing that the matrix holds against a row; what ends a step counts. */
  async models(row: BackendRow): Promise<Caught | undefined> {
    const reference = { name: 'reference', backend: referenceBackend }
    const judged = { name: row.name, backend: row.backend, ...(row.isa !== undefined && { isa: row.isa }) }
    for (const model of await this.#opened()) {
      const where = `${model.name} ${model.precision}`
      try {
        const { cells } = await parityMatrix([reference, judged], [model])
        const cell = cells.find(({ verdict }) => verdict === 'fail')
        if (cell) return { by: 'model', where: `${where}: ${cell.shape}`, reason: cell.failures[0] ?? '' }
      } catch (error) {
        return { by: 'model', where, reason: (error as Error).message }
      }
    }
    return undefined
  }

  async judge({ row, ops }: Pick<GateDefect, 'row' | 'ops'>): Promise<Caught | undefined> {
    return (await this.ops(row, ops)) ?? (await this.models(row))
  }

  /** One checkpoint with a tokenizer, one with head norms, one with windows. */
  #opened(): Promise<MatrixModel[]> {
    const shipped = [
      ['parity/goldens/qwen3', 'bf16'],
      ['parity/goldens/mistral', 'q8'],
      ['checkpoints/storyteller-1m', 'bf16'],
    ] as const
    this.#models ??= Promise.all(
      shipped.map(async ([path, precision]) => {
        const name = path.split('/').at(-1)!
        const folder = join(this.#folder, name)
        await mkdir(folder)
        const pkg = await packageAt(join(packageRoot(), path), precision, folder)
        return { name, precision, pkg }
      }),
    )
    return this.#models
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#suite[Symbol.asyncDispose]()
    await rm(this.#folder, { recursive: true, force: true })
  }
}

/** Defects of plans and of the host: nothing has to be built. */
export const builtDefects = (): GateDefect[] =>
  backendDefects.map(({ name, why, backend, ops }) => ({
    name,
    kind: name.startsWith('plan_') ? 'plan' : 'host',
    why,
    row: { name, backend },
    ops,
  }))

/** A row without a defect, and what of the gate it must pass. */
interface Sound {
  readonly row: BackendRow
  readonly ops: readonly OpName[]
  readonly models: boolean
}

/** The kernels that mutants were made of, in all of the gate; those of an instruction set, where it has defects. */
function soundRows(mutated: Backend, defects: readonly KernelDefect[]): Sound[] {
  const isas = [...new Set(defects.flatMap(({ isa }) => (isa ? [isa] : [])))]
  const touched = (isa: string) => [...new Set(defects.flatMap((defect) => (defect.isa === isa ? defect.ops : [])))]
  return [
    { row: { name: 'sound', backend: mutated, isa: SOUND }, ops: opNames, models: true },
    ...isas.map((isa) => ({
      row: { name: `sound, ${isa}`, backend: cpuBackend, isa },
      ops: touched(isa),
      models: false,
    })),
  ]
}

/** What the gate holds against rows without a defect. */
async function controlled(gate: Gate, sound: readonly Sound[], advance: (what: string) => void): Promise<Caught[]> {
  const found: Caught[] = []
  for (const { row, ops, models } of sound) {
    advance(row.name)
    const caught = models ? await gate.judge({ row, ops }) : await gate.ops(row, ops)
    if (caught) found.push({ ...caught, where: `${row.name}: ${caught.where}` })
  }
  return found
}

async function judged(gate: Gate, defect: GateDefect): Promise<GateResult> {
  const started = performance.now()
  const caught = await gate.judge(defect)
  const { name, kind, why } = defect
  return { name, kind, why, caught, seconds: (performance.now() - started) / 1000 }
}

/** Throws OPTION_INVALID for a name that no defect has, MUTANT_STALE and MUTANT_BUILD. */
export async function scoreGate({ only, onProgress }: GateOptions = {}): Promise<GateScore> {
  const started = performance.now()
  const names = [...kernelDefects, ...backendDefects].map(({ name }) => name)
  const unknown = only?.find((name) => !names.includes(name))
  if (unknown !== undefined) throw fail('OPTION_INVALID', { option: 'only', expected: names.join(', '), got: unknown })
  const wanted = ({ name }: { readonly name: string }) => only === undefined || only.includes(name)
  const kernels = kernelDefects.filter(wanted)
  let done = 0
  const total = 4 + kernels.length + backendDefects.filter(wanted).length
  const advance = (what: string) => onProgress?.(done++, total, what)
  advance(`building ${kernels.length} mutated kernels`)
  await using built = await buildMutants(addon().machine(), kernels)
  await using gate = await Gate.open()
  const mutated = cpuBackendOf(() => built.addon)
  const defects: GateDefect[] = [
    ...kernels
      .filter(({ name }) => !built.missing.has(name))
      .map(({ name, why, ops }) => ({
        name,
        kind: 'kernel' as const,
        why,
        row: { name, backend: mutated, isa: name },
        ops,
      })),
    ...builtDefects().filter(wanted),
  ]
  const present = kernels.filter(({ name }) => !built.missing.has(name))
  const control = await controlled(gate, soundRows(mutated, present), advance)
  const results: GateResult[] = []
  for (const defect of defects) {
    advance(defect.name)
    results.push(await judged(gate, defect))
  }
  onProgress?.(total, total, 'done')
  const caught = results.filter((result) => result.caught).length
  return {
    pass: caught === results.length && results.length > 0 && control.length === 0,
    caught,
    total: results.length,
    results,
    skipped: [...built.missing].map(([name, reason]) => ({ name, reason })),
    control,
    buildSeconds: built.seconds,
    seconds: (performance.now() - started) / 1000,
  }
}

const clip = (text: string, width: number) => (text.length > width ? `${text.slice(0, width - 1)}…` : text)

/** The score as lines for people. */
export function printGateScore({ results, skipped, control, ...score }: GateScore): string {
  const width = Math.max(...results.map(({ name }) => name.length))
  const line = ({ name, why, caught, seconds }: GateResult) =>
    [
      caught ? 'caught' : 'LIVES ',
      name.padEnd(width),
      `${seconds.toFixed(1).padStart(6)} s`,
      caught ? `${clip(caught.where, 60)}: ${clip(caught.reason, 90)}` : why,
    ].join('  ')
  return [
    ...results.map(line),
    ...skipped.map(({ name, reason }) => `skipped ${name}: ${reason}`),
    ...control.map(({ where, reason }) => `CONTROL ${where}: ${reason}`),
    `${score.caught} of ${score.total} defects caught; the sound kernels ${control.length ? 'FAIL' : 'pass'}`,
    `${score.seconds.toFixed(0)} s, ${score.buildSeconds.toFixed(0)} s of them to build the mutants`,
    score.pass ? 'pass' : 'FAIL',
  ].join('\n')
}
