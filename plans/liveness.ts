/**
 * Liveness of registers and the least memory that any placement needs. The compiler writes these values into a plan,
 * and the load-time verifier (native/core/verify_memory.cc) derives them again and compares.
 */
import { spaces } from '../abi/ops/define.ts'
import { type Instruction, NONE, type Register } from './plan.ts'

export interface Liveness {
  /** By register: the instruction that defines it; NONE where nothing does. */
  readonly first: number[]
  /** By register: the last instruction that reads it, `first` where none does, the instruction count for an output. */
  readonly last: number[]
  /** By instruction: bit i is set when the register of input i dies here, which an output of the plan never does. */
  readonly lastUse: number[]
}

/** Liveness from the instructions in order; `outputs` are the registers that outlive the plan's last instruction. */
export function deriveLiveness(
  instructions: readonly Pick<Instruction, 'inputs' | 'outputs'>[],
  registerCount: number,
  outputs: readonly number[],
): Liveness {
  const first = new Array<number>(registerCount).fill(NONE)
  const last = new Array<number>(registerCount).fill(NONE)
  for (const [index, instruction] of instructions.entries()) {
    for (const input of instruction.inputs) if (input) last[input.register] = index
    for (const output of instruction.outputs) first[output] = last[output] = index
  }
  for (const output of outputs) last[output] = instructions.length
  const lastUse = instructions.map(({ inputs }, index) =>
    inputs.reduce((bits, input, i) => (input && last[input.register] === index ? bits | (1 << i) : bits), 0),
  )
  return { first, last, lastUse }
}

/**
 * Bytes per row of capacity, one entry a space: the most that is live at one instruction. A register is live from the
 * instruction that defines it to the last that reads it, both included, so an output never takes the place of an input.
 */
export function lowerBound(
  registers: readonly Pick<Register, 'space' | 'stride' | 'first' | 'last'>[],
  instructionCount: number,
): number[] {
  const change = Object.keys(spaces).map(() => new Float64Array(instructionCount + 2))
  for (const { space, stride, first, last } of registers) {
    change[spaces[space]]![first]! += stride
    change[spaces[space]]![last + 1]! -= stride
  }
  return change.map((deltas) => {
    let live = 0
    return deltas.reduce((most, delta) => Math.max(most, (live += delta)), 0)
  })
}
