/** Runs the steps of a case on a backend, and says how far its outputs are from those of the reference. */

import { TOP_LOGPROBS } from '../../abi/ops/sample.ts'
import { createResult, createStep, type ResultView, ROW_RESULT_BYTES, type StepLimits } from '../../abi/step.ts'
import type { Backend, DeviceInfo, LinkedPackage, Runner, RunnerOptions } from '../../compute/device.ts'
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
  const each = <T>(read: (at: number) => T[]) => Array.from({ length: rows }, (_, r) => read(r * words)).flat()
  return {
    tokens: each((at) => [view.rows[at]!]),
    topTokens: each((at) => [...view.rows.subarray(at + 2, at + 2 + TOP_LOGPROBS)]),
    logprobs: Float32Array.from(
      each((at) => [view.rowsF32[at + 1]!, ...view.rowsF32.subarray(at + 2 + TOP_LOGPROBS, at + words)]),
    ),
  }
}

async function runStep(runner: Runner, pkg: LinkedPackage, batch: BatchInput, traps: Traps) {
  const { outputs, vocab, hidden, registers } = pkg.plan
  const widths = { vocab: outputs.logits === undefined ? 0 : vocab, hidden: outputs.hidden === undefined ? 0 : hidden }
  const { view, offsets } = createResult(limits.rows, widths)
  const step = packStep(createStep(limits), batch, offsets)
  const before = noiseStep(step, traps, pkg.plan)
  poisonResult(view)
  await runner.step(step, view)
  const rows = view.header[0]!
  const pooled = outputs.hidden !== undefined && registers[outputs.hidden]!.space === 'sequences'
  const used = {
    logits: view.logits.subarray(0, rows * widths.vocab),
    hidden: view.hidden.subarray(0, (pooled ? batch.sequences.length : rows) * widths.hidden),
  }
  const faults = [
    ...stepFaults(step, before),
    ...resultFaults(view, rows, [used.logits, used.hidden]),
    ...(runner.sentinels?.() ?? []),
  ]
  const outputWidths = { logits: widths.vocab, hidden: widths.hidden, logprobs: 1 + TOP_LOGPROBS }
  return { outputs: { ...sampledOf(view, rows), ...used, widths: outputWidths }, faults }
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
    const outputs: StepOutputs[] = []
    const faults: string[] = []
    for (const [i, batch] of steps.entries()) {
      const run = await runStep(runner, pkg, batch, traps)
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
  if (!Number.isFinite(expected)) return rule === 'not finite' && !Number.isFinite(actual) ? 0 : Infinity
  const ratio = Math.abs(actual - expected) / tolerance
  return Number.isNaN(ratio) ? Infinity : ratio
}

const allFinite = (row: Float32Array) => row.every((value) => Number.isFinite(value))

function matrixDeviation(
  expected: Float32Array,
  actual: Float32Array,
  width: number,
  tolerance: number,
  rule: NonFinite,
): Deviation {
  if (actual.length !== expected.length) return { worst: Infinity, where: ` has ${actual.length} elements` }
  let [worst, where] = [0, '']
  for (let start = 0; start < expected.length; start += width) {
    if (rule === 'row' && !allFinite(expected.subarray(start, start + width))) continue
    for (let i = start; i < start + width; i++) {
      const error = elementDeviation(expected[i]!, actual[i]!, tolerance, rule)
      if (error <= worst) continue
      worst = error
      where = `[${start / width}, ${i - start}] is ${actual[i]}, expected ${expected[i]}`
    }
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
  for (const [step, outputs] of expected.entries()) {
    const other = actual[step]!
    for (const name of ['tokens', 'topTokens'] as const) {
      const at = outputs[name].findIndex((token, i) => token !== other[name][i])
      const where = `step ${step}, ${name}[${at}] is ${other[name][at]}, expected ${outputs[name][at]}`
      if (at >= 0) return { worst: Infinity, where }
    }
    for (const name of matrices) {
      const found = matrixDeviation(outputs[name], other[name], outputs.widths[name], tolerance, rule)
      if (found.worst > worst.worst) worst = { worst: found.worst, where: `step ${step}, ${name}${found.where}` }
    }
  }
  return worst
}

/** Largest absolute difference of all outputs. */
export const distance = (a: readonly StepOutputs[], b: readonly StepOutputs[]): number =>
  deviation(a, b, 1, 'same').worst

/** Largest magnitude of the finite float outputs: a case whose outputs vanish proves nothing. */
export const magnitude = (outputs: readonly StepOutputs[]): number =>
  outputs
    .flatMap((each) => matrices.flatMap((name) => [...each[name]]))
    .reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 0)
