/**
 * What a step has to do at least: bytes of weights and state that must come from memory, and multiply-adds. Derived from
 * the definitions of abi/ops and the tensors' stored bytes. Activations are not counted: they stay in caches.
 */
import { type OpName, opDef, ops } from '../abi/ops/index.ts'
import { type ExecutionPlan, type Instruction, NONE, type Tensor } from '../plans/plan.ts'

/** Arithmetic that has a peak of its own: by the dtype of the weights, int8 and int4 alike. */
export type Arithmetic = 'f32' | 'bf16' | 'i8'

/** Counts of a step; the mean of several where they differ. */
export interface StepShape {
  readonly tokens: number
  readonly rows: number
  readonly sequences: number
  /** Positions known after the step, summed over its sequences. */
  readonly positions: number
  /** Positions up to its own, summed over the tokens. */
  readonly attended: number
}

export interface Work {
  /** Of one call. A tensor that several instructions read counts at the first: the others find it in a cache. */
  readonly weightBytes: number
  /** Of a step: state read and written. */
  readonly stateBytes: number
  /** Of a step; a multiply-add is two. */
  readonly operations: number
  /** Whose peak limits it: the type of its largest operand from memory. */
  readonly arithmetic: Arithmetic
}

/** A step of `sequences` that each compute `tokens` after `context` known positions, and want one row each. */
export function stepShape(sequences: number, tokens: number, context: number): StepShape {
  const attended = tokens * context + (tokens * (tokens + 1)) / 2
  return {
    tokens: sequences * tokens,
    rows: sequences,
    sequences,
    positions: sequences * (context + tokens),
    attended: sequences * attended,
  }
}

/** An instruction in a step. */
interface Use {
  readonly plan: ExecutionPlan
  readonly instruction: Instruction
  readonly params: Readonly<Record<string, number>>
  readonly step: StepShape
  /** Rows of its outputs in this step. */
  readonly count: number
  /** The weight of a name, if present. */
  readonly weight: (name: string) => Tensor | undefined
}

interface Model {
  /** Multiply-adds. */
  readonly multiplyAdds: (use: Use) => number
  /** Share of a weight that a call reads; all of it unless said. */
  readonly touched?: (use: Use, weight: string) => number
  /** State positions or records read and written; none unless said. */
  readonly state?: (use: Use) => number
}

const elements = ({ weight }: Use, name: string) => {
  const found = weight(name)
  return found ? found.rows * found.cols : 0
}
const product: Model = { multiplyAdds: (use) => use.count * elements(use, 'weight') }
const pointwise: Model = { multiplyAdds: ({ count, params }) => count * params.width! }
const fixed = ({ step }: Use) => 2 * step.sequences

/** Positions that attention reads: at most a window for each sequence, and for each token of a step. */
function attendedBy({ params, step }: Use): { positions: number; pairs: number } {
  const { window, causal } = params
  if (!causal) return { positions: 0, pairs: (step.tokens * step.tokens) / Math.max(1, step.sequences) }
  if (!window) return { positions: step.positions, pairs: step.attended }
  const reach = step.sequences * (window - 1) + step.tokens
  return { positions: Math.min(step.positions, reach), pairs: Math.min(step.attended, step.tokens * window) }
}

/** Every opcode: one that is missing does not compile. */
const models: { readonly [K in OpName]: Model } = {
  embed: {
    multiplyAdds: ({ count, params }) => count * params.width!,
    touched: (use, name) => {
      const { rows } = use.weight(name)!
      return Math.min(1, (name === 'types' ? 1 : use.step.tokens) / rows)
    },
  },
  gather_rows: { multiplyAdds: () => 0 },
  pool: { multiplyAdds: ({ step, params }) => step.tokens * params.width! },
  rms_norm: { multiplyAdds: ({ count, params }) => 2 * count * params.count! * params.width! },
  layer_norm: { multiplyAdds: ({ count, params }) => 3 * count * params.width! },
  linear: product,
  logits: product,
  rope: { multiplyAdds: ({ count, params }) => 2 * count * params.heads! * params.dim! },
  attention: {
    multiplyAdds: (use) => 2 * attendedBy(use).pairs * use.params.heads! * use.params.head_dim!,
    state: (use) => attendedBy(use).positions + use.step.tokens,
  },
  glu: pointwise,
  activation: pointwise,
  residual: pointwise,
  multiply: pointwise,
  moe: {
    multiplyAdds: ({ count, params }) => count * params.top_k! * 3 * params.ff! * params.width!,
    touched: ({ count, params }) => Math.min(1, (count * params.top_k!) / params.experts!),
  },
  conv_state: { multiplyAdds: ({ count, params }) => count * params.channels! * params.kernel!, state: fixed },
  ssm_scan: {
    multiplyAdds: ({ count, params }) => 3 * count * params.heads! * params.head_dim! * params.state!,
    state: fixed,
  },
  delta_rule: {
    multiplyAdds: ({ count, params }) => 4 * count * params.heads! * params.key_dim! * params.value_dim!,
    state: fixed,
  },
  sample: { multiplyAdds: ({ count, params }) => count * params.vocab! },
}

/** Peaks of what is stored so: int4 is multiplied as int8, e4m3 as bf16; f16 has no product of its own. */
function arithmeticOf({ plan, instruction, weight }: Use): Arithmetic {
  const matrix = weight('weight') ?? weight('gate')
  const state = instruction.states.find((use) => use !== undefined)
  const dtype = matrix?.dtype ?? (state && plan.states[state.state]!.dtype)
  return dtype === 'i8' || dtype === 'i4' ? 'i8' : dtype === 'bf16' || dtype === 'e4m3' ? 'bf16' : 'f32'
}

function useOf(plan: ExecutionPlan, instruction: Instruction, step: StepShape): Use {
  const { op, params } = instruction
  const names = Object.keys(ops[op].weights)
  const output = plan.registers[instruction.outputs[0] ?? NONE]
  const weight = (name: string) => {
    const tensor = instruction.weights[names.indexOf(name)]
    return tensor === undefined ? undefined : plan.tensors[tensor]
  }
  const count = output ? step[output.space] : step.tokens
  return { plan, instruction, params, step, count, weight }
}

/** Work of every instruction of `plan` in a step of that shape, by index. */
export function work(plan: ExecutionPlan, step: StepShape): readonly Work[] {
  const read = new Set<number>()
  return plan.instructions.map((instruction) => {
    const { multiplyAdds, touched, state }: Model = models[instruction.op]
    const use = useOf(plan, instruction, step)
    let weightBytes = 0
    for (const [i, name] of Object.keys(opDef(instruction.op).weights).entries()) {
      const tensor = instruction.weights[i]
      if (tensor === undefined || read.has(tensor)) continue
      const share = touched?.(use, name) ?? 1
      if (share === 1) read.add(tensor)
      weightBytes += share * plan.tensors[tensor]!.bytes
    }
    const units = state?.(use) ?? 0
    const stateBytes = instruction.states.reduce((sum, used) => {
      const kept = used && plan.states[used.state]!
      return sum + (kept ? (units * kept.sizeBytes) / kept.blockTokens : 0)
    }, 0)
    return { weightBytes, stateBytes, operations: 2 * multiplyAdds(use), arithmetic: arithmeticOf(use) }
  })
}

/** Bytes of weights and state of one step in which every instruction runs. */
export const stepBytes = (plan: ExecutionPlan, step: StepShape): number =>
  work(plan, step).reduce((sum, { weightBytes, stateBytes }) => sum + weightBytes + stateBytes, 0)
