/**
 * Every tolerance of the parity checks, each with its reason. The reference computes in float64 on the stored weights,
 * so it differs from a golden file only by what the golden file's author rounded; others compute in float32 and round
 * further where they say so. A backend's table says to what its products round their inputs, by dtype of the weights
 * (`operands`): on the CPU bf16 for bf16 and int8 per block of 256 for q8 and q4, on CUDA f16 for f16, at most e4m3 for
 * fp8 and int8 for q8, and bf16 for the rest.
 * Bounds of products follow from that alone, whatever the dtype. Keys and values are kept in the checkpoint's dtype or, on
 * request, as int8 by head and position. Over bf16 and int8 ones, attention rounds its queries and weights to bf16 as well;
 * on CUDA over f16 ones to f16.
 */
import { type OpName, opDef } from '../abi/ops/index.ts'
import type { Kernel, KernelTable, OperandDType } from '../compute/table.ts'
import { goldenTolerances, sameFp8Weights, sameWeights, weightsClass } from '../compute/tolerances.ts'
import type { ExecutionPlan, Instruction } from '../plans/plan.ts'

export * from '../compute/tolerances.ts'

/**
 * What rounding to nearest counts for in bounds of sums: the largest relative error of doing so once, of bf16 half of it,
 * with which the factors below were found.
 */
export const roundoff = {
  f32: 2 ** -24,
  f16: 2 ** -11,
  bf16: 2 ** -9,
  /** int8 with the block's largest magnitude at 127: half a step, relative to that magnitude. */
  i8: 1 / 254,
  e4m3: 2 ** -4,
} as const

/** The largest relative error of rounding once to nearest. */
export const unitRoundoff = { ...roundoff, bf16: 2 ** -8 } as const

export interface OpTolerance {
  /** Bound of an output is c * eps * sqrt(K) * scale; K is the length of its sums. */
  readonly c: number
  readonly reason: string
}

const copied = { c: 0, reason: 'bytes are copied' } as const
const function32 = {
  c: 8,
  reason:
    'float32 exponentials and divisions are good to a few units in the last place, and four of them follow each other',
} as const

/**
 * Factor c of every opcode, where operands lie in [-1, 1]: an error is at most eps a product, so a sum of K has standard
 * deviation below eps * sqrt(K) / 3, and the worst of a case of 1e4 outputs is 4 times that.
 */
export const opTolerances: Readonly<Record<OpName, OpTolerance>> = {
  embed: { c: 2, reason: 'one product and at most two sums' },
  gather_rows: copied,
  pool: { c: 4, reason: 'a sum over tokens and a division; a square root when normalised' },
  rms_norm: {
    c: 4,
    reason:
      'the mean of squares has positive terms: its relative error is below eps * sqrt(K) / 2, then four roundings',
  },
  layer_norm: { c: 8, reason: 'as rms_norm, with a mean subtracted first' },
  linear: {
    c: 2,
    reason:
      'rounding the inputs: one sum of K errors, with margin 1.5 over the worst of 1e4; sqrt(2) of it where integer weights are rounded to bf16 as well, as cuBLASLt has them',
  },
  logits: { c: 2, reason: 'one sum of K products; the soft cap has slope at most 1' },
  rope: { c: 4, reason: 'two products and a sum; the angle itself is judged by `angle`' },
  attention: {
    c: 4,
    reason:
      'two chained sums of products around a soft-max whose relative error is the absolute error of its scores; keys and values err by eps each, and over bf16 and int8 ones queries and weights by that of bf16',
  },
  glu: function32,
  activation: function32,
  residual: { c: 2, reason: 'one product and one sum' },
  multiply: { c: 1, reason: 'one product' },
  moe: { c: 8, reason: 'three chained products and a soft-max' },
  conv_state: { c: 2, reason: 'one short sum of products' },
  ssm_scan: {
    c: 16,
    reason: 'a contracting recurrence: the errors of past steps decay, and three functions follow each other',
  },
  delta_rule: { c: 16, reason: 'a recurrence whose change is a difference: errors of past steps decay with its gate' },
  sample: { c: 16, reason: 'log-softmax of float32 logits; the token itself must be equal' },
}

/**
 * Besides, a product accumulates in float32: K additions each round a partial sum of up to sqrt(K) / 3, which lanes and
 * blocks of K keep shorter; 3.6 is the most seen, at K = 700.
 */
export const ACCUMULATION = 8

/** Error of a float32 angle p * inv_freq, in radians: one rounding of the product, and as much in the reduction. */
export const angle = (position: number) => 2 * roundoff.f32 * position

/**
 * What an output owes where the reference's is NaN or infinite. `same`: the same of the three; `not finite`: any of
 * them; `sequence`: any of them, and the rows of that sequence hold anything from then on. Whatever the rule, all else
 * that the reference finds finite is bounded as ever: what is no number stays in its own row, or its own sequence.
 */
export type NonFinite = 'same' | 'not finite' | 'sequence'

export interface NonFiniteRule {
  readonly rule: NonFinite
  readonly reason: string
}

const ieee = { rule: 'same', reason: 'element by element, and IEEE 754 says what comes of each' } as const
const summed = {
  rule: 'not finite',
  reason:
    'whoever adds infinities in parts may end with NaN, and int8 holds neither: the scale of a block with one of them is NaN; no number may come of them',
} as const

/** What every opcode does with inputs that are no numbers. */
export const nonFiniteRules: Readonly<Record<OpName, NonFiniteRule>> = {
  embed: ieee,
  gather_rows: ieee,
  pool: ieee,
  rms_norm: { rule: 'same', reason: 'a NaN takes its whole group; an infinity is NaN, and the rest of its group 0' },
  layer_norm: { rule: 'not finite', reason: 'both take the whole row, by way of its mean' },
  linear: summed,
  logits: summed,
  rope: ieee,
  attention: {
    rule: 'not finite',
    reason:
      'a NaN in a query takes its head, one in a key those of the tokens that see it; a score of -infinity weighs nothing',
  },
  glu: ieee,
  activation: ieee,
  residual: ieee,
  multiply: ieee,
  moe: summed,
  conv_state: { rule: 'not finite', reason: 'as a sum, for as long as the window holds it' },
  ssm_scan: { rule: 'not finite', reason: 'as a sum; the record keeps it until it is reset' },
  delta_rule: { rule: 'not finite', reason: 'as a sum; the record keeps it until it is reset' },
  sample: {
    rule: 'not finite',
    reason: 'NaN ranks as -infinity, tokens are equal; beside an infinite logit no log-probability is a number',
  },
}

/**
 * A value of attention that is no number: those who do not see it weigh it by 0, which is NaN, so it spoils the sequence.
 */
export const spoiledValue: NonFiniteRule = {
  rule: 'sequence',
  reason: 'kernels multiply whole pages of values by weights that are 0 where a token must not look',
}

/** Largest value of a quantised block of 256 over its rms, as above: what makes half a step of int8 a relative error. */
const BLOCK_PEAK = 2.9

/**
 * Factor c of an instruction judged alone on its real operands: the rms of the errors of any one row is at most
 * c * eps of the rms of the row, where eps is the coarsest rounding that the instruction makes of what it reads.
 */
export const aloneTolerances: Readonly<Record<OpName, OpTolerance>> = {
  ...opTolerances,
  embed: { c: 1, reason: 'one product; the stored row itself is exact' },
  linear: {
    c: 6,
    reason:
      'errors that add up at random give 1 / sqrt(3); outputs that cancel, and a gate times its product, up to 2.4 (8 models, 8 prompts of 200 tokens), with margin 2.5. Integers: half a step of a block whose largest value is 2.9 rms, 2.6 of that seen',
  },
  logits: { c: 6, reason: 'as linear: 2.1 seen, integers 1.5' },
  attention: {
    c: 30,
    reason:
      'a score of s rounds to eps * s, and so the weight of a position by as much: scores of trained models reach 20 before the soft-max; 12 seen, int8 states 13, with margin 2.3',
  },
  moe: { c: 12, reason: 'a linear after a gated linear' },
}

const kernelOf = ({ op }: Instruction, table: KernelTable | undefined): Kernel | undefined => {
  const entry = table?.[op]
  return entry && 'symbol' in entry ? entry : undefined
}

/** What the kernel of `table` rounds the inputs of an instruction's products to; float32 without a table. */
const operandsOf = (
  { tensors }: Pick<ExecutionPlan, 'tensors'>,
  instruction: Instruction,
  table: KernelTable | undefined,
  of = ({ operands }: Kernel) => operands,
): readonly OperandDType[] => {
  const kernel = kernelOf(instruction, table)
  const names = Object.keys(opDef(instruction.op).weights)
  return instruction.weights.flatMap((index, i) => {
    // scales and gains stand beside the matrix and say nothing
    const tensor = index === undefined || names[i]!.endsWith('scales') ? undefined : tensors[index]
    const rounded = kernel && tensor && tensor.layout !== 'row' ? of(kernel)?.[tensor.dtype] : undefined
    return rounded ? [rounded] : []
  })
}

/** Roundoff of the operands of an instruction's products, relative to the largest of a block; 0: they are float32. */
export const operandRoundoff = (
  plan: Pick<ExecutionPlan, 'tensors'>,
  instruction: Instruction,
  table: KernelTable | undefined,
): number => Math.max(0, ...operandsOf(plan, instruction, table).map((dtype) => roundoff[dtype]))

/**
 * Of what an instruction's output is kept in, where only products that keep their inputs rounded read it: it is rounded once,
 * to what the deterministic mode multiplies, whatever the mode.
 */
function keptRoundoff(
  plan: Pick<ExecutionPlan, 'tensors' | 'instructions' | 'outputs'>,
  { outputs }: Instruction,
  table: KernelTable | undefined,
): number {
  const reads = ({ inputs }: Instruction) => inputs.some((input) => input && outputs.includes(input.register))
  const readers = plan.instructions.filter(reads)
  const keeps = (reader: Instruction) => {
    const norm = Object.keys(opDef(reader.op).weights).indexOf('norm')
    const others = reader.inputs.slice(1).some((input) => input && outputs.includes(input.register))
    return kernelOf(reader, table)?.keepsOperands && !others && reader.weights[norm] === undefined
  }
  const shown = Object.values(plan.outputs).some((register) => outputs.includes(register))
  if (shown || !readers.every(keeps)) return 0
  const kept = ({ operands, deterministicOperands }: Kernel) => deterministicOperands ?? operands
  return Math.max(
    0,
    ...readers.flatMap((each) => operandsOf(plan, each, table, kept)).map((dtype) => unitRoundoff[dtype]),
  )
}

/** Relative to the rms of a row. */
const ofOperand = { ...roundoff, i8: BLOCK_PEAK * roundoff.i8 } as const
const ofState = { f32: roundoff.f32, f16: roundoff.f16, bf16: roundoff.bf16, i8: roundoff.i8 } as const

/**
 * Largest relative error of a row of one instruction's output, alone, by a kernel that does what `table` says; `position`:
 * the last that the step reaches.
 */
export function aloneTolerance(
  plan: Pick<ExecutionPlan, 'tensors' | 'states' | 'instructions' | 'outputs'>,
  instruction: Instruction,
  position: number,
  table: KernelTable | undefined,
): number {
  const { op, states } = instruction
  const { c } = aloneTolerances[op]
  const stored = states.flatMap((use) => (use ? [ofState[plan.states[use.state]!.dtype as keyof typeof ofState]] : []))
  const rounded = operandsOf(plan, instruction, table).map((dtype) => ofOperand[dtype])
  const eps = Math.max(roundoff.f32, ...rounded, ...stored)
  // the reference rounds its angles to float32 as well, so only their reduction differs: 0.07 of one seen
  const turned = op === 'attention' || op === 'rope' ? 4 * angle(position) : 0
  const own = c === 0 || op === 'sample' ? 0 : c * eps + turned + ACCUMULATION * roundoff.f32
  return own + keptRoundoff(plan, instruction, table)
}

/** rms of the logit errors of two backends on the same package, over the deviation of the logits; and its reason. */
export const matrixTolerances = {
  f32: { rms: goldenTolerances.float.f32.rms, reason: goldenTolerances.float.f32.reason },
  f16: { rms: goldenTolerances.float.f16.rms, reason: goldenTolerances.float.f16.reason },
  bf16: { rms: goldenTolerances.float.bf16.rms, reason: goldenTolerances.float.bf16.reason },
  q8: { rms: sameWeights, reason: 'the same weights: int8 activations alone, as for q4 (`sameWeights`)' },
  q4: { rms: sameWeights, reason: 'the same weights: int8 activations in 4 products a layer (`sameWeights`)' },
  fp8: { rms: sameFp8Weights, reason: 'the same weights: e4m3 activations in 4 products a layer (`sameFp8Weights`)' },
  /** Added to the above, as a square, where keys and values are int8. */
  q8State: {
    rms: 0.053,
    reason:
      'half a step of 1/127 of a head whose largest is 2.9 rms, 0.66 %, for keys and for values of 8 layers: 0.0066 * sqrt(16) = 2.6 %, twice that where attention is sharp',
  },
  /** Factors on the rms. */
  largest: { factor: 10, reason: 'the worst of 400 tokens is conditioned 12 times worse than the rms of all' },
  tie: {
    factor: 4,
    reason: 'the difference of two logits errs by sqrt(2) times their rms: nearly 3 standard deviations',
  },
  bothRound: { factor: Math.SQRT2, reason: 'two backends that both round differ by the root of the sum of squares' },
  kl: {
    factor: 2,
    reason:
      'times the rms squared: half the variance of the errors under the distribution, at twice their rms where it is dense',
  },
  mismatch: {
    share: 1e-3,
    reason: 'beyond 4 times the allowed rms lies 1 of 16,000 of a normal distribution, and what the worst tokens add',
  },
  layer: {
    factor: 10,
    reason: 'the worst row of the residual stream, relative to itself: as the largest logit error to the rms of all',
  },
} as const

export interface MatrixTolerance {
  readonly rms: number
  readonly maxAbs: number
  readonly tie: number
  readonly kl: number
  readonly mismatch: number
  /** Relative error of the worst row of the residual stream, behind any layer. */
  readonly layer: number
}

/** What two backends of different arithmetic may be apart on `plan`, for expected logits of standard deviation `deviation`. */
export function matrixTolerance(
  plan: Pick<ExecutionPlan, 'tensors' | 'states'>,
  deviation: number,
  bothRound: boolean,
): MatrixTolerance {
  const t = matrixTolerances
  const state = plan.states.some(({ dtype }) => dtype === 'i8') ? t.q8State.rms : 0
  const relative = Math.hypot(t[weightsClass(plan)].rms, state) * (bothRound ? t.bothRound.factor : 1)
  const rms = relative * Math.max(1, deviation)
  return {
    rms,
    maxAbs: t.largest.factor * rms,
    tie: t.tie.factor * rms,
    kl: t.kl.factor * rms * rms,
    mismatch: t.mismatch.share,
    layer: t.layer.factor * relative,
  }
}
