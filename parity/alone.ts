/**
 * Judges each instruction alone: the reference answers it on the operands that the backend really had, so that no error
 * of an instruction before it counts. Nothing has to be searched: the first that errs by more than it may is the culprit,
 * however little of it shows at the end of the step.
 */

import type { StepView } from '../abi/step.ts'
import { sampleFlags } from '../abi/step.ts'
import type { LinkedPackage, Trace, TracedOutput } from '../compute/device.ts'
import { sampleOptions } from '../compute/reference/sample.ts'
import { type Matrix, type ReferenceRunner, referenceBackend } from '../compute/reference.ts'
import type { ExecutionPlan, Instruction } from '../plans/plan.ts'
import type { BatchInput } from './batch.ts'
import { type BackendRow, Session } from './steps.ts'

/** The worst row of one instruction's output. */
export interface RowError {
  /** rms of the row's errors over the rms of the row; infinite where one side alone is NaN or infinite. */
  readonly error: number
  readonly row: number
  readonly output: number
}

const none: RowError = { error: 0, row: -1, output: -1 }
type Values = ArrayLike<number>

/** Difference of two elements; both NaN, or the same infinity, is none. */
export const difference = (expected: number, got: number): number =>
  Object.is(expected, got) || expected === got
    ? 0
    : Number.isFinite(expected - got)
      ? Math.abs(expected - got)
      : Number.POSITIVE_INFINITY

/** rms of the errors of elements [start, start + width) over their expected rms. */
export function rowError(expected: Values, got: Values, start: number, width: number): number {
  let [errors, squares] = [0, 0]
  for (let i = start; i < start + width; i++) {
    const error = difference(expected[i]!, got[i]!)
    errors += error * error
    squares += expected[i]! * expected[i]!
  }
  return errors === 0 ? 0 : Math.sqrt(errors / squares)
}

/** Rows of an instruction that mean anything: a row that does not sample leaves what sampling writes to chance. */
const counts = (op: Instruction['op'], step: StepView, row: number): boolean =>
  op !== 'sample' || (sampleOptions(step, row).flags & sampleFlags.sample) !== 0

/** Ids are equal or wrong; of sampling only the token is judged, as alternatives of equal logprob may swap. */
function worstRow(
  op: Instruction['op'],
  step: StepView,
  expected: readonly Matrix[],
  got: readonly TracedOutput[],
): RowError {
  let worst = none
  for (const [output, { rows, width, values }] of got.entries()) {
    if (op === 'sample' && output > 0) break
    for (let row = 0; row < rows; row++) {
      if (!counts(op, step, row)) continue
      const error = rowError(expected[output]!.data, values, row * width, width)
      if (error > worst.error || Number.isNaN(error))
        worst = { error: Number.isNaN(error) ? Number.POSITIVE_INFINITY : error, row, output }
    }
  }
  return worst
}

/** What is known of an instruction when it is judged; valid during the call. */
export interface Judgement {
  readonly index: number
  readonly instruction: Instruction
  readonly worst: RowError
  readonly expected: readonly Matrix[]
  readonly got: readonly TracedOutput[]
}

/** Runs a step on the reference with every output replaced by the backend's, and hands over each instruction. */
async function answer(
  reference: ReferenceRunner,
  plan: ExecutionPlan,
  session: Session,
  batch: BatchInput,
  trace: Trace,
  judge: (judgement: Judgement) => void,
): Promise<void> {
  const { step, result } = session.pack(batch)
  await reference.step(step, result, (index, expected) => {
    const instruction = plan.instructions[index]!
    const got = trace.instructions[index]!.outputs
    judge({ index, instruction, worst: worstRow(instruction.op, step, expected, got), expected, got })
    for (const [output, { values }] of got.entries()) expected[output]!.data.set(values)
  })
}

/**
 * Runs `steps` on `row` and judges every instruction of each; `judge` hears of all, in the order they ran, and ends the
 * work by returning true. Throws TRACE_MISSING where the backend shows nothing.
 */
export async function judgeAlone(
  pkg: LinkedPackage,
  row: BackendRow,
  steps: readonly BatchInput[],
  judge: (judgement: Judgement, step: number, trace: Trace) => boolean | undefined,
): Promise<void> {
  using session = await Session.open(row, pkg, steps)
  using packing = await Session.open({ name: 'reference', backend: referenceBackend }, pkg, steps)
  const reference = packing.runner as ReferenceRunner
  for (const [index, batch] of steps.entries()) {
    const { trace } = await session.run(batch, true)
    let enough = false
    await answer(reference, pkg.plan, packing, batch, trace!, (judgement) => {
      if (!enough) enough = judge(judgement, index, trace!) === true
    })
    if (enough) return
  }
}
