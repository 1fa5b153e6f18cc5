/** What a step wrote, as every backend tells it: the layout of a trace buffer, and the units of state that a step reaches. */
import { type StepView, stepHeader } from '../abi/step.ts'
import { digestOf } from '../plans/hash.ts'
import type { ExecutionPlan, Instruction } from '../plans/plan.ts'
import type { InstructionTrace, StateUnit, TracedOutput } from './device.ts'

/** Rows of a register in this step. */
const rowsOf = (plan: ExecutionPlan, step: StepView, register: number) =>
  step.header[stepHeader.word[plan.registers[register]!.space]]!

/** Bytes of the outputs of all instructions, packed: f32 and i32 elements. */
export function traceBytes(plan: ExecutionPlan, step: StepView): number {
  const elements = (register: number) => rowsOf(plan, step, register) * plan.registers[register]!.width
  return plan.instructions.flatMap(({ outputs }) => outputs).reduce((sum, output) => sum + 4 * elements(output), 0)
}

/** Views of the packed outputs in `buffer`, by instruction. */
export function readOutputs(plan: ExecutionPlan, step: StepView, buffer: ArrayBuffer): TracedOutput[][] {
  let at = 0
  const read = (register: number): TracedOutput => {
    const { width, dtype } = plan.registers[register]!
    const rows = rowsOf(plan, step, register)
    const values = new (dtype === 'i32' ? Int32Array : Float32Array)(buffer, at, rows * width)
    at += values.byteLength
    return { register, rows, width, values }
  }
  return plan.instructions.map(({ outputs }) => outputs.map(read))
}

/** Units of state `index` that hold what the step writes: blocks of its positions, slots of its sequences; in order. */
export function reachedUnits(plan: ExecutionPlan, step: StepView, index: number): number[] {
  const { kind, blockTokens } = plan.states[index]!
  const { tokens, sequences, blocks_per_sequence } = stepHeader.word
  if (kind === 'fixed') return [...new Set(step.sequenceSlot.subarray(0, step.header[sequences]))].filter(Boolean)
  const width = step.header[blocks_per_sequence]!
  const block = (_: unknown, t: number) =>
    step.blockTable[step.tokenSequence[t]! * width + Math.floor(step.positions[t]! / blockTokens)]!
  // unit 0 is the dump
  return [...new Set(Array.from({ length: step.header[tokens]! }, block))].filter(Boolean)
}

const written = ({ states }: Instruction) => states.flatMap((use) => (use && use.access !== 'read' ? [use.state] : []))

/** The units that each instruction may have written, as they are now; `read` gives the bytes of one. */
export function traceUnits(
  plan: ExecutionPlan,
  step: StepView,
  read: (state: number, unit: number) => Uint8Array,
): StateUnit[][] {
  const digest = (state: number, unit: number): StateUnit => ({
    state,
    unit,
    sha256: digestOf(read(state, unit)),
  })
  const ofState = (state: number) => reachedUnits(plan, step, state).map((unit) => digest(state, unit))
  return plan.instructions.map((instruction) => written(instruction).flatMap(ofState))
}

/** Outputs and units by instruction, together. */
export const joinTrace = (outputs: readonly TracedOutput[][], units: readonly StateUnit[][]): InstructionTrace[] =>
  outputs.map((each, index) => ({ outputs: each, units: units[index]! }))
