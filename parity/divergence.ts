/** Finds the first instruction where two backends part, and says what it read and wrote there. */

import { opDef } from '../abi/ops/index.ts'
import { sampleFlags } from '../abi/step.ts'
import type { Backend, LinkedPackage, Trace, TracedOutput } from '../compute/device.ts'
import type { ExecutionPlan, Instruction } from '../plans/plan.ts'
import { difference, type Judgement, judgeAlone, rowError } from './alone.ts'
import type { BatchInput } from './batch.ts'
import type { Divergence, OperandStatistics } from './matrix-report.ts'
import { type BackendRow, Session, sameArithmetic } from './steps.ts'
import { aloneTolerance } from './tolerances.ts'

type Values = ArrayLike<number>
/** Rows of a register, on the judged side and, where it is known, on the expected one. */
interface Side {
  readonly rows: number
  readonly width: number
  readonly at: (row: number, column: number) => number
  readonly expected?: ((row: number, column: number) => number) | undefined
}

function statistics(name: string, { rows, width, at, expected }: Side): OperandStatistics {
  let [min, max, sum, squares, nans, infinities] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, 0, 0, 0]
  let largest: OperandStatistics['largest'] = null
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < width; column++) {
      const value = at(row, column)
      const apart = expected ? difference(expected(row, column), value) : 0
      if (apart > (largest?.difference ?? 0)) largest = { difference: apart, row, column }
      if (Number.isNaN(value)) nans++
      else if (!Number.isFinite(value)) infinities++
      else [min, max, sum, squares] = [Math.min(min, value), Math.max(max, value), sum + value, squares + value * value]
    }
  const finite = rows * width - nans - infinities
  const none = finite === 0
  return {
    name,
    rows,
    width,
    min: none ? 0 : min,
    max: none ? 0 : max,
    mean: none ? 0 : sum / finite,
    rms: none ? 0 : Math.sqrt(squares / finite),
    nans,
    infinities,
    largest,
  }
}

/** The output that wrote `register`, last before instruction `index`. */
function definition(plan: ExecutionPlan, trace: Trace, register: number): TracedOutput {
  const { first } = plan.registers[register]!
  return trace.instructions[first]!.outputs[plan.instructions[first]!.outputs.indexOf(register)]!
}

function inputStatistics(
  plan: ExecutionPlan,
  { op, inputs }: Instruction,
  trace: Trace,
  expected?: Trace,
): OperandStatistics[] {
  return Object.keys(opDef(op).inputs).flatMap((name, i) => {
    const operand = inputs[i]
    if (!operand) return []
    const column =
      ({ values, width }: TracedOutput) =>
      (row: number, c: number) =>
        values[row * width + operand.column + c]!
    const got = definition(plan, trace, operand.register)
    const other = expected && column(definition(plan, expected, operand.register))
    return [statistics(name, { rows: got.rows, width: operand.width, at: column(got), expected: other })]
  })
}

function outputStatistics(
  { op }: Instruction,
  got: readonly TracedOutput[],
  expected: readonly { data: Values }[],
): OperandStatistics[] {
  return Object.keys(opDef(op).outputs).flatMap((name, i) => {
    const output = got[i]
    if (!output) return []
    const { rows, width, values } = output
    const read = (from: Values) => (row: number, column: number) => from[row * width + column]!
    return [statistics(name, { rows, width, at: read(values), expected: read(expected[i]!.data) })]
  })
}

/** Position in its sequence of a row of an instruction's output; null where a row is a sequence. */
function positionOf(plan: ExecutionPlan, { outputs }: Instruction, batch: BatchInput, row: number): number | null {
  const space = plan.registers[outputs[0]!]!.space
  if (row < 0 || space === 'sequences') return null
  const tokens = batch.sequences.flatMap(({ position, tokens, rows }) => {
    const indices = space === 'rows' ? (rows ?? [...tokens.keys()]) : [...tokens.keys()]
    return indices.map((index) => position + index)
  })
  return tokens[row] ?? null
}

const lastPosition = ({ sequences }: BatchInput) =>
  sequences.reduce((last, { position, tokens }) => Math.max(last, position + tokens.length), 0)

/** What is allowed of the instructions of a step, by index. */
export const allowances = (plan: ExecutionPlan, batch: BatchInput, { table }: Backend): number[] =>
  plan.instructions.map((instruction) => aloneTolerance(plan, instruction, lastPosition(batch), table))

/** The first instruction of `row` that, alone, errs by more than it may; else the one that comes nearest. */
async function firstWrong(pkg: LinkedPackage, row: BackendRow, steps: readonly BatchInput[]): Promise<Divergence> {
  let found: Divergence | undefined
  let share = -1
  const allowed = steps.map((batch) => allowances(pkg.plan, batch, row.backend))
  await judgeAlone(pkg, row, steps, ({ index, instruction, worst, got, expected }: Judgement, step, trace) => {
    const limit = allowed[step]![index]!
    const wrong = worst.error > limit
    const ratio = worst.error === 0 ? 0 : worst.error / limit
    if (!wrong && ratio <= share) return undefined
    share = ratio
    const batch = steps[step]!
    found = {
      judged: row.name,
      instruction: index,
      op: instruction.op,
      label: instruction.label,
      found: wrong ? 'alone' : 'largest',
      error: { value: worst.error, allowed: limit },
      step,
      row: worst.row,
      position: positionOf(pkg.plan, instruction, batch, worst.row),
      inputs: inputStatistics(pkg.plan, instruction, trace),
      outputs: outputStatistics(instruction, got, expected),
      states: [],
    }
    return wrong
  })
  return found!
}

/** A row that does not sample leaves what sampling writes to chance. */
const means = ({ op }: Instruction, { sampling }: BatchInput, row: number) =>
  op !== 'sample' || ((sampling?.(row).flags ?? sampleFlags.sample) & sampleFlags.sample) !== 0

/** First row of the outputs that differs in any bit; undefined: none does. */
function differingRow(
  expected: readonly TracedOutput[],
  got: readonly TracedOutput[],
  counts: (row: number) => boolean,
): { row: number; error: number } | undefined {
  for (const [output, { rows, width, values }] of got.entries())
    for (let row = 0; row < rows; row++) {
      if (!counts(row)) continue
      const wanted = expected[output]!.values
      for (let i = row * width; i < (row + 1) * width; i++)
        if (!Object.is(values[i], wanted[i])) return { row, error: rowError(wanted, values, row * width, width) }
    }
  return undefined
}

/** States that instruction `index` left in different bits, by name. */
const differingStates = (plan: ExecutionPlan, index: number, expected: Trace, got: Trace): string[] => {
  const units = expected.instructions[index]!.units
  const differing = got.instructions[index]!.units.filter((unit, i) => unit.sha256 !== units[i]?.sha256)
  return [...new Set(differing.map(({ state }) => plan.states[state]!.name))]
}

/** The first instruction whose output, or state, differs in any bit; undefined: none does. */
async function firstDifferent(
  pkg: LinkedPackage,
  expected: BackendRow,
  actual: BackendRow,
  steps: readonly BatchInput[],
): Promise<Divergence | undefined> {
  const { plan } = pkg
  using a = await Session.open(expected, pkg, steps)
  using b = await Session.open(actual, pkg, steps)
  for (const [step, batch] of steps.entries()) {
    const [want, got] = [(await a.run(batch, true)).trace!, (await b.run(batch, true)).trace!]
    for (const [index, instruction] of plan.instructions.entries()) {
      const outputs = got.instructions[index]!.outputs
      const wanted = want.instructions[index]!.outputs
      const at = differingRow(wanted, outputs, (row) => means(instruction, batch, row))
      const states = differingStates(plan, index, want, got)
      if (!at && states.length === 0) continue
      return {
        judged: actual.name,
        instruction: index,
        op: instruction.op,
        label: instruction.label,
        found: 'bits',
        error: { value: at?.error ?? 0, allowed: 0 },
        step,
        row: at?.row ?? -1,
        position: positionOf(plan, instruction, batch, at?.row ?? -1),
        inputs: inputStatistics(plan, instruction, got, want),
        outputs: outputStatistics(
          instruction,
          outputs,
          wanted.map(({ values }) => ({ data: values })),
        ),
        states,
      }
    }
  }
  return undefined
}

/**
 * Where two backends part: in bits, where both have the same arithmetic; else the first instruction of either that is wrong
 * by the reference. Undefined where every bit is the same. `same`: whether it is one arithmetic, where that is known.
 * Throws TRACE_MISSING.
 */
export async function findDivergence(
  pkg: LinkedPackage,
  expected: BackendRow,
  actual: BackendRow,
  steps: readonly BatchInput[],
  same?: boolean,
): Promise<Divergence | undefined> {
  if (same ?? (await oneArithmetic(pkg, expected, actual, steps))) return firstDifferent(pkg, expected, actual, steps)
  const judged = await firstWrong(pkg, actual, steps)
  if (judged.found === 'alone' || expected.backend.name === 'reference') return judged
  const other = await firstWrong(pkg, expected, steps)
  return other.found === 'alone' ? other : judged
}

async function oneArithmetic(
  pkg: LinkedPackage,
  expected: BackendRow,
  actual: BackendRow,
  steps: readonly BatchInput[],
) {
  using a = await Session.open(expected, pkg, steps)
  using b = await Session.open(actual, pkg, steps)
  return sameArithmetic(a.runner.info, b.runner.info)
}

const figure = (value: number) => (value === 0 ? '0' : Number.isFinite(value) ? value.toExponential(2) : String(value))

/** A divergence as lines for people. */
export function printDivergence(d: Divergence): string {
  const how = {
    bits: 'the first whose bits differ',
    alone: 'the first that is wrong alone, on the operands that it had',
    largest: 'no instruction is wrong alone; this one comes nearest to what it may err',
  }[d.found]
  const where = d.row < 0 ? '' : `, row ${d.row}${d.position === null ? '' : ` (position ${d.position})`}`
  const operand = (side: string) => (s: OperandStatistics) => {
    const apart = s.largest && `, differs by ${figure(s.largest.difference)} at (${s.largest.row}, ${s.largest.column})`
    const odd = s.nans + s.infinities ? `, ${s.nans} NaN, ${s.infinities} infinite` : ''
    const range = `min ${figure(s.min)}, max ${figure(s.max)}, mean ${figure(s.mean)}, rms ${figure(s.rms)}`
    return `  ${side} ${s.name} (${s.rows}, ${s.width}): ${range}${odd}${apart ?? ''}`
  }
  return [
    `instruction ${d.instruction}, ${d.op} "${d.label}", of ${d.judged}: ${how}`,
    `  step ${d.step}${where}: relative error ${figure(d.error.value)}, allowed ${figure(d.error.allowed)}`,
    ...d.inputs.map(operand('reads ')),
    ...d.outputs.map(operand('writes')),
    ...(d.states.length ? [`  states that differ: ${d.states.join(', ')}`] : []),
  ].join('\n')
}
