/** Runs a recorded step (compute/record.ts) again, on any backend: first the history that made its state, then the step. */
import type { DeviceInfo, LinkedPackage, StateUnit } from '../compute/device.ts'
import { digestRow, parseRecord, type RecordedSequence, type StepRecord } from '../compute/record.ts'
import { unitsOf } from '../compute/recorder.ts'
import { fail } from '../errors.ts'
import { readBytes } from '../models/files.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import type { BatchInput, SequenceInput } from './batch.ts'
import { findDivergence } from './divergence.ts'
import type { Divergence } from './matrix-report.ts'
import { type BackendRow, Session, sameArithmetic } from './steps.ts'

/** Tokens of history that one step computes. */
const CHUNK = 256

/** A package with the digests that a record names. */
export interface ReplayPackage extends LinkedPackage {
  readonly planHash: string
  readonly weightsHash: string
}

/** Throws FILE_MISSING, FILE_UNREADABLE, RECORD_INVALID or RECORD_NEWER. */
export async function readRecord(path: string): Promise<StepRecord> {
  return parseRecord((await readBytes(path, 'a recorded step')).toString('utf8'), path)
}

/** Throws RECORD_MISMATCH unless the record is of this package's plan and weights; `path` is the record's. */
export function assertRecordOf(record: StepRecord, pkg: ReplayPackage, path: string): void {
  const parts = [
    ['plan', record.plan, pkg.planHash],
    ['weights', record.weights, pkg.weightsHash],
  ] as const
  for (const [thing, expected, got] of parts)
    if (expected !== got) throw fail('RECORD_MISMATCH', { path, thing, expected, package: pkg.path, got })
}

/** New numbers for units, from 1 in the order they are met: those of the engine say only which are the same. */
class Numbers {
  readonly #known = new Map<number, number>()
  of(unit: number): number {
    const number = this.#known.get(unit) ?? this.#known.size + 1
    this.#known.set(unit, number)
    return number
  }
}

export interface ReplaySteps {
  /** The history, then the step itself. */
  readonly steps: readonly BatchInput[]
  /** Number in `steps` of a recorded block or slot. */
  readonly block: (unit: number) => number
  readonly slot: (unit: number) => number
}

/** Steps that compute one sequence's history into the blocks that hold it before the step. */
function historySteps(sequence: SequenceInput, history: readonly number[], fixed: boolean): BatchInput[] {
  return Array.from({ length: Math.ceil(history.length / CHUNK) }, (_, i) => ({
    sequences: [{ ...sequence, position: i * CHUNK, tokens: history.slice(i * CHUNK, (i + 1) * CHUNK), rows: [] }],
    resets: fixed && i === 0 ? [sequence.slot] : [],
  }))
}

/** What running `record` again takes. A block that the step copies first is computed in the block that it comes from. */
export function replaySteps(record: StepRecord, plan: ExecutionPlan): ReplaySteps {
  const [blocks, slots] = [new Numbers(), new Numbers()]
  const [block, slot] = [(unit: number) => blocks.of(unit), (unit: number) => slots.of(unit)]
  const source = new Map(record.copies.map(([from, to]) => [to, from]))
  const fixed = plan.states.some(({ kind }) => kind === 'fixed')
  const packed = ({ history: _, ...sequence }: RecordedSequence): SequenceInput => ({
    ...sequence,
    slot: slot(sequence.slot),
    blocks: sequence.blocks.map(block),
  })
  const history = record.sequences.flatMap((sequence) => {
    const before = { ...sequence, blocks: sequence.blocks.map((unit) => source.get(unit) ?? unit) }
    return historySteps(packed(before), sequence.history, fixed)
  })
  const step: BatchInput = {
    sequences: record.sequences.map(packed),
    copies: record.copies.map(([from, to]) => [block(from), block(to)]),
    resets: record.resets.map(slot),
    sampling: (row) => record.sampling[row]!,
  }
  return { steps: [...history, step], block, slot }
}

export interface Replay {
  readonly device: DeviceInfo
  readonly rows: readonly { readonly token: number; readonly sha256: string }[]
  /** By the numbers of the record. */
  readonly units: readonly StateUnit[]
}

/** Runs the recorded step on `row`. Throws DeviceError. */
export async function replay(record: StepRecord, pkg: LinkedPackage, row: BackendRow): Promise<Replay> {
  const { plan } = pkg
  const { steps, block, slot } = replaySteps(record, plan)
  using session = await Session.open(row, pkg, steps)
  for (const batch of steps.slice(0, -1)) await session.run(batch)
  const { step, result } = await session.run(steps.at(-1)!)
  const rows = record.sampling.map((_, index) => digestRow(plan, step, result, index))
  const digests = new Map(
    (session.runner.readState ? unitsOf(session.runner, plan, step) : []).map((each) => [keyOf(each), each]),
  )
  const units = (record.result?.units ?? []).flatMap(({ state, unit }) => {
    const found = digests.get(keyOf({ state, unit: plan.states[state]?.kind === 'fixed' ? slot(unit) : block(unit) }))
    return found ? [{ state, unit, sha256: found.sha256 }] : []
  })
  return { device: session.runner.info, rows, units }
}

const keyOf = ({ state, unit }: { state: number; unit: number }) => `${state} ${unit}`

export interface ReplayReport {
  readonly pass: boolean
  /** Names of what is compared: a row, or "the record". */
  readonly expected: string
  readonly actual: string
  /** Whether the two must agree in every bit. */
  readonly sameArithmetic: boolean
  readonly rows: number
  /** Rows whose bits differ, and of those the ones with another token. */
  readonly differingRows: readonly number[]
  readonly differingTokens: readonly number[]
  /** Units of state compared, and those whose bits differ. */
  readonly units: number
  readonly differingUnits: readonly { readonly state: string; readonly unit: number }[]
  readonly divergence?: Divergence
}

function compare(plan: ExecutionPlan, expected: Pick<Replay, 'rows' | 'units'>, actual: Replay) {
  const others = new Map(actual.units.map((unit) => [keyOf(unit), unit.sha256]))
  const units = expected.units.filter((unit) => others.has(keyOf(unit)))
  const indices = expected.rows.map((_, row) => row)
  return {
    rows: expected.rows.length,
    differingRows: indices.filter((row) => expected.rows[row]!.sha256 !== actual.rows[row]!.sha256),
    differingTokens: indices.filter((row) => expected.rows[row]!.token !== actual.rows[row]!.token),
    units: units.length,
    differingUnits: units
      .filter((unit) => others.get(keyOf(unit)) !== unit.sha256)
      .map(({ state, unit }) => ({ state: plan.states[state]!.name, unit })),
  }
}

/** Whether the arithmetic that made the record is that of `device`. */
const recordedOn = ({ backend, isa }: StepRecord, device: DeviceInfo): boolean =>
  sameArithmetic({ ...device, backend, isa }, device)

/** Replays on `row` and compares with what was recorded: bits where the arithmetic is that of the record. */
export async function replayRecord(record: StepRecord, pkg: ReplayPackage, row: BackendRow): Promise<ReplayReport> {
  const actual = await replay(record, pkg, row)
  const expected = { rows: record.result?.rows ?? actual.rows, units: record.result?.units ?? [] }
  const same = recordedOn(record, actual.device)
  const compared = compare(pkg.plan, expected, same ? actual : { ...actual, units: [] })
  const agrees = compared.differingRows.length === 0 && compared.differingUnits.length === 0
  return { pass: !same || agrees, expected: 'the record', actual: row.name, sameArithmetic: same, ...compared }
}

/**
 * Replays on both rows. The same arithmetic passes with the same bits; different ones pass where no instruction of either
 * is wrong by the reference, which takes `bisect`: without, only what came out is compared. Throws TRACE_MISSING.
 */
export async function replayAgainst(
  record: StepRecord,
  pkg: ReplayPackage,
  expected: BackendRow,
  actual: BackendRow,
  bisect: boolean,
): Promise<ReplayReport> {
  const [a, b] = [await replay(record, pkg, expected), await replay(record, pkg, actual)]
  const same = sameArithmetic(a.device, b.device)
  const compared = compare(pkg.plan, a, same ? b : { ...b, units: [] })
  const agrees = compared.differingRows.length === 0 && compared.differingUnits.length === 0
  const { steps } = replaySteps(record, pkg.plan)
  const divergence = bisect ? await findDivergence(pkg, expected, actual, steps) : undefined
  const pass = same ? agrees && !divergence : divergence?.found !== 'alone'
  return {
    pass,
    expected: expected.name,
    actual: actual.name,
    sameArithmetic: same,
    ...compared,
    ...(divergence && { divergence }),
  }
}
