/** Runs the same steps on two backends and says how far their outputs are apart. */

import { TOP_LOGPROBS } from '../../abi/ops/sample.ts'
import { createResult, createStep, type ResultView, ROW_RESULT_BYTES, type StepLimits } from '../../abi/step.ts'
import type { Backend, LinkedPackage, Runner } from '../../compute/device.ts'
import { type BatchInput, packStep } from '../batch.ts'

const limits: StepLimits = {
  tokens: 192,
  rows: 192,
  sequences: 8,
  blocksPerSequence: 64,
  history: 1024,
  biases: 64,
  copies: 8,
}

/** What one step gave back. */
export interface StepOutputs {
  readonly tokens: readonly number[]
  readonly topTokens: readonly number[]
  /** Of the chosen token and of the best, a row. */
  readonly logprobs: readonly number[]
  readonly logits: Float32Array
  readonly hidden: Float32Array
}

function outputsOf(view: ResultView, rows: number): StepOutputs {
  const words = ROW_RESULT_BYTES / 4
  const ints = (from: number, count: number) =>
    Array.from({ length: rows }, (_, r) => [...view.rows.subarray(r * words + from, r * words + from + count)]).flat()
  const floats = (from: number, count: number) =>
    Array.from({ length: rows }, (_, r) => [
      ...view.rowsF32.subarray(r * words + from, r * words + from + count),
    ]).flat()
  return {
    tokens: ints(0, 1),
    topTokens: ints(2, TOP_LOGPROBS),
    logprobs: [...floats(1, 1), ...floats(2 + TOP_LOGPROBS, TOP_LOGPROBS)],
    logits: view.logits,
    hidden: view.hidden,
  }
}

async function runStep(runner: Runner, pkg: LinkedPackage, batch: BatchInput): Promise<StepOutputs> {
  const { outputs, vocab, hidden } = pkg.plan
  const widths = { vocab: outputs.logits === undefined ? 0 : vocab, hidden: outputs.hidden === undefined ? 0 : hidden }
  const { view, offsets } = createResult(limits.rows, widths)
  const step = packStep(createStep(limits), batch, offsets)
  await runner.step(step, view)
  return outputsOf(view, view.header[0]!)
}

/** Opens `pkg`, runs `steps` one after the other, and closes it. */
export async function runSteps(
  backend: Backend,
  pkg: LinkedPackage,
  steps: readonly BatchInput[],
  isa = '',
): Promise<StepOutputs[]> {
  const runner = await backend.open(pkg, { limits, blocks: 70, slots: 9, threads: 2, isa })
  try {
    const results: StepOutputs[] = []
    for (const batch of steps) results.push(await runStep(runner, pkg, batch))
    return results
  } finally {
    runner.dispose()
  }
}

function largest(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let most = 0
  for (let i = 0; i < a.length; i++) most = Math.max(most, a[i] === b[i] ? 0 : Math.abs(a[i]! - b[i]!))
  return most
}

/** Largest absolute difference of all float outputs; NaN where either has one. */
export const distance = (a: readonly StepOutputs[], b: readonly StepOutputs[]): number =>
  a.reduce((most, expected, i) => {
    const errors = (['logits', 'hidden', 'logprobs'] as const).map((name) => largest(expected[name], b[i]![name]))
    return Math.max(most, ...errors)
  }, 0)

/** Every token id that was chosen or named; these are equal or wrong. */
export const choices = (outputs: readonly StepOutputs[]): number[] =>
  outputs.flatMap(({ tokens, topTokens }) => [...tokens, ...topTokens])

/** Largest magnitude of the float outputs: a case whose outputs vanish proves nothing. */
export const magnitude = (a: readonly StepOutputs[]): number => distance(a, a.map(zeroed))
const zeroed = (outputs: StepOutputs): StepOutputs => ({
  ...outputs,
  logits: new Float32Array(outputs.logits.length),
  hidden: new Float32Array(outputs.hidden.length),
  logprobs: outputs.logprobs.map(() => 0),
})
