/** Runs the steps of a case on a backend, and says how far its outputs are from those of the reference. */

import { TOP_LOGPROBS } from '../../abi/ops/sample.ts'
import {
  createResult,
  createStep,
  type ResultView,
  ROW_RESULT_BYTES,
  resultHeader,
  type StepLimits,
} from '../../abi/step.ts'
import type { Backend, DeviceInfo, LinkedPackage, Runner, RunnerOptions } from '../../compute/device.ts'
import type { ExecutionPlan } from '../../plans/plan.ts'
import { type BatchInput, packStep } from '../batch.ts'
import type { NonFinite } from '../tolerances.ts'
import { noiseStep, poisonResult, resultFaults, stepFaults, type Traps } from './sentinels.ts'

/** More than any case uses: what is left holds noise. */
const limits: StepLimits = {
  tokens: 192,
  rows: 192,
  sequences: 8,
  blocksPerSequence: 64,
  history: 1024,
  biases: 64,
  copies: 8,
}

const matrices = ['logits', 'hidden', 'logprobs'] as const

/** What one step gave back. Matrices are row-major. */
export interface StepOutputs {
  readonly tokens: readonly number[]
  readonly topTokens: readonly number[]
  readonly logits: Float32Array
  readonly hidden: Float32Array
  /** Of the chosen token, then of the best. */
  readonly logprobs: Float32Array
  /** Elements of a row of each. */
  readonly widths: Readonly<Record<(typeof matrices)[number], number>>
  /** The sequence of each row: its slot, and whether this step has its first token. */
  readonly owners: readonly { readonly slot: number; readonly fresh: boolean }[]
}

export interface CaseRun {
  readonly outputs: readonly StepOutputs[]
  /** Sentinels that changed, by step. */
  readonly faults: readonly string[]
  /** Whether the runner watches its registers and states. */
  readonly guarded: boolean
  readonly info: DeviceInfo
}

/** Token, alternatives and their log-probabilities of every row. */
function sampledOf(view: ResultView, rows: number) {
  const words = ROW_RESULT_BYTES / 4
  const [tokens, topTokens]: [number[], number[]] = [[], []]
  const logprobs = new Float32Array(rows * (1 + TOP_LOGPROBS))
  for (let row = 0; row < rows; row++) {
    const ids = view.rows.subarray(row * words, (row + 1) * words)
    const floats = view.rowsF32.subarray(row * words, (row + 1) * words)
    tokens.push(ids[0]!)
    topTokens.push(...ids.subarray(2, 2 + TOP_LOGPROBS))
    logprobs[row * (1 + TOP_LOGPROBS)] = floats[1]!
    logprobs.set(floats.subarray(2 + TOP_LOGPROBS), row * (1 + TOP_LOGPROBS) + 1)
  }
  return { tokens, topTokens, logprobs }
}

/** The buffers of a case, used for one step after the other. */
function buffersOf({ outputs, vocab, hidden, registers }: ExecutionPlan) {
  const widths = { vocab: outputs.logits === undefined ? 0 : vocab, hidden: outputs.hidden === undefined ? 0 : hidden }
  const { view, offsets } = createResult(limits.rows, widths)
  const pooled = outputs.hidden !== undefined && registers[outputs.hidden]!.space === 'sequences'
  return { step: createStep(limits), result: view, offsets, widths, pooled }
}

async function runStep(
  runner: Runner,
  plan: ExecutionPlan,
  buffers: ReturnType<typeof buffersOf>,
  batch: BatchInput,
  traps: Traps,
) {
  const { result, offsets, widths, pooled } = buffers
  const step = packStep(buffers.step, batch, offsets)
  const before = noiseStep(step, traps, plan)
  poisonResult(result)
  await runner.step(step, result)
  const owners = batch.sequences.flatMap(({ slot, position, tokens, rows = tokens }) =>
    rows.map(() => ({ slot, fresh: position === 0 })),
  )
  const [rows, said] = [owners.length, result.header[resultHeader.word.rows]]
  if (said !== rows) throw new Error(`the result has ${said} rows, expected ${rows}`)
  const used = {
    logits: result.logits.subarray(0, rows * widths.vocab),
    hidden: result.hidden.subarray(0, (pooled ? batch.sequences.length : rows) * widths.hidden),
  }
  const faults = [
    ...stepFaults(step, before),
    ...resultFaults(result, rows, [used.logits, used.hidden]),
    ...(runner.sentinels?.() ?? []),
  ]
  const outputs: StepOutputs = {
    ...sampledOf(result, rows),
    logits: used.logits.slice(),
    hidden: used.hidden.slice(),
    widths: { logits: widths.vocab, hidden: widths.hidden, logprobs: 1 + TOP_LOGPROBS },
    owners,
  }
  return { outputs, faults }
}

/** The highest block and slot that the steps name, and one of each beyond, which stay traps. */
function unitsOf(steps: readonly BatchInput[]) {
  const sequences = steps.flatMap((step) => step.sequences)
  const most = (values: readonly number[]) => values.reduce((a, b) => Math.max(a, b), 0)
  const block = most([
    ...sequences.flatMap(({ blocks }) => blocks),
    ...steps.flatMap(({ copies }) => copies ?? []).flat(),
  ])
  const slot = most(sequences.map((sequence) => sequence.slot))
  return { blocks: block + 2, slots: slot + 2, traps: { block: block + 1, slot: slot + 1 } }
}

/** Opens `pkg`, runs `steps` one after the other among sentinels, and closes it. */
export async function runGuarded(
  backend: Backend,
  pkg: LinkedPackage,
  steps: readonly BatchInput[],
  options: Partial<RunnerOptions> = {},
): Promise<CaseRun> {
  const { traps, ...units } = unitsOf(steps)
  const runner = await backend.open(pkg, { limits, ...units, threads: 2, isa: '', guard: true, ...options })
  try {
    const buffers = buffersOf(pkg.plan)
    const outputs: StepOutputs[] = []
    const faults: string[] = []
    for (const [i, batch] of steps.entries()) {
      const run = await runStep(runner, pkg.plan, buffers, batch, traps)
      outputs.push(run.outputs)
      faults.push(...run.faults.map((fault) => `step ${i}: ${fault}`))
    }
    return { outputs, faults, guarded: runner.sentinels !== undefined, info: runner.info }
  } finally {
    runner.dispose()
  }
}

/** As runGuarded, for its outputs. */
export async function runSteps(
  backend: Backend,
  pkg: LinkedPackage,
  steps: readonly BatchInput[],
  isa = '',
): Promise<readonly StepOutputs[]> {
  return (await runGuarded(backend, pkg, steps, { isa })).outputs
}

/** An error over its bound, and where it is worst. */
export interface Deviation {
  /** Above 1: too far. Infinity: a number where there is none, none where there is one, or an error where none may be. */
  readonly worst: number
  readonly where: string
}

/** Error over bound of one element that the reference finds to be `expected`. */
function elementDeviation(expected: number, actual: number, tolerance: number, rule: NonFinite): number {
  if (expected === actual || Object.is(expected, actual)) return 0
  if (!Number.isFinite(expected)) return rule !== 'same' && !Number.isFinite(actual) ? 0 : Infinity
  const ratio = Math.abs(actual - expected) / tolerance
  return Number.isNaN(ratio) ? Infinity : ratio
}

/** By step and row: whether its sequence has had an element that is no number, then or before. */
function spoiled(expected: readonly StepOutputs[]): boolean[][] {
  const slots = new Set<number>()
  return expected.map(({ owners, hidden, widths }) => {
    for (const { slot, fresh } of owners) if (fresh) slots.delete(slot)
    for (const [row, { slot }] of owners.entries())
      if (!hidden.subarray(row * widths.hidden, (row + 1) * widths.hidden).every(Number.isFinite)) slots.add(slot)
    return owners.map(({ slot }) => slots.has(slot))
  })
}

function matrixDeviation(
  expected: Float32Array,
  actual: Float32Array,
  { width, tolerance, rule, free }: { width: number; tolerance: number; rule: NonFinite; free: readonly boolean[] },
): Deviation {
  if (actual.length !== expected.length) return { worst: Infinity, where: ` has ${actual.length} elements` }
  let [worst, where] = [0, '']
  for (let i = 0; i < expected.length; i++) {
    const row = Math.floor(i / width)
    if (free[row]) continue
    const error = elementDeviation(expected[i]!, actual[i]!, tolerance, rule)
    if (error <= worst) continue
    worst = error
    where = `[${row}, ${i % width}] is ${actual[i]}, expected ${expected[i]}`
  }
  return { worst, where }
}

/** Largest error over `tolerance` of all outputs; a token id is equal or infinitely wrong. */
export function deviation(
  expected: readonly StepOutputs[],
  actual: readonly StepOutputs[],
  tolerance: number,
  rule: NonFinite,
): Deviation {
  let worst: Deviation = { worst: 0, where: '' }
  const freed = rule === 'sequence' ? spoiled(expected) : []
  for (const [step, outputs] of expected.entries()) {
    const other = actual[step]!
    for (const name of ['tokens', 'topTokens'] as const) {
      const at = outputs[name].findIndex((token, i) => token !== other[name][i])
      const where = `step ${step}, ${name}[${at}] is ${other[name][at]}, expected ${outputs[name][at]}`
      if (at >= 0) return { worst: Infinity, where }
    }
    for (const name of matrices) {
      const how = { width: outputs.widths[name], tolerance, rule, free: freed[step] ?? [] }
      const found = matrixDeviation(outputs[name], other[name], how)
      if (found.worst > worst.worst) worst = { worst: found.worst, where: `step ${step}, ${name}${found.where}` }
    }
  }
  return worst
}

/** Largest absolute difference of all outputs. */
export const distance = (a: readonly StepOutputs[], b: readonly StepOutputs[]): number =>
  deviation(a, b, 1, 'same').worst

/** Largest magnitude of the finite float outputs: a case whose outputs vanish proves nothing. */
export function magnitude(outputs: readonly StepOutputs[]): number {
  let most = 0
  for (const each of outputs)
    for (const name of matrices)
      for (const value of each[name]) if (Number.isFinite(value)) most = Math.max(most, Math.abs(value))
  return most
}
