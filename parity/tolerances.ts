/**
 * Every tolerance of the parity checks, each with its reason. The reference computes in float64 on the stored weights,
 * so it differs from a golden file only by what the golden file's author rounded; the CPU computes in float32 and rounds
 * further where its kernels say so: bf16 products round their inputs to bf16, q8 and q4 products quantise theirs to int8 per
 * block of 256, and keys and values are kept in the checkpoint's dtype or, on request, as int8 by head and
 * position. Over bf16 and int8 ones, attention rounds its queries and weights to bf16 as well.
 */

import type { DType } from '../abi/dtypes.ts'
import type { OpName } from '../abi/ops/index.ts'
import type { ExecutionPlan, Instruction } from '../plans/plan.ts'

/** Unit roundoff: the largest relative error of rounding once to nearest. */
export const roundoff = {
  f32: 2 ** -24,
  f16: 2 ** -11,
  bf16: 2 ** -9,
  /** int8 with the block's largest magnitude at 127: half a step, relative to that magnitude. */
  i8: 1 / 254,
} as const

export type WeightsClass = 'f32' | 'f16' | 'bf16' | 'q8' | 'q4'
/** `reference` is exact; `float` is every backend that rounds as described above. */
export type BackendClass = 'reference' | 'float'

/** Figures for golden logits of standard deviation 1; scaled up with theirs. */
export interface Tolerance {
  /** Root mean square of the logit errors. The tight one: every defect of a kernel moves it. */
  readonly rms: number
  /** Largest logit error. Some tokens are conditioned worse than others, so this is 10 times the above. */
  readonly logits: number
  /** Largest error of the mean loss per token, in nats; where the loss is above 1, relative to it. */
  readonly nll: number
  readonly reason: string
}

/** Soft-max and norms amplify the error of single tokens: the worst of 400 random ones is 12 times the rms of all. */
const tolerance = (rms: number, nll: number, reason: string): Tolerance => ({ rms, logits: 10 * rms, nll, reason })

const exact = tolerance(
  1e-5,
  1e-4,
  'golden files hold float32 and come from float32 norm statistics, soft-max and rope angles: 1e-6 rms, and a few times that at position 400',
)

const quantised = tolerance(
  0.14,
  2e-2,
  'the golden file is of the weights before q8: half a step of 1/127 of a block of 256, whose largest is 2.9 rms, is 0.66 % of a weight rms, and as much again for activations; over 8 layers of 4 products 0.0093 * sqrt(32) = 5.3 %, twice that where attention is sharp, with margin 1.3',
)

const q4 = tolerance(
  0.9,
  2e-2,
  'the golden file is of the weights before q4: 8 % of a weight rms; over 8 layers of 4 products 0.08 * sqrt(32) = 45 %, twice that where attention is sharp. That judges the format; a kernel is judged by `sameWeights`',
)

/**
 * Two backends on the same q4 package, rms of the logit errors: int8 activations in each of 4 products over 8 layers,
 * 0.0066 * sqrt(32) = 3.7 %, twice that where attention is sharp.
 */
export const sameWeights = 0.074

export const goldenTolerances: Readonly<Record<BackendClass, Readonly<Record<WeightsClass, Tolerance>>>> = {
  reference: { f32: exact, f16: exact, bf16: exact, q8: quantised, q4 },
  float: {
    f32: tolerance(
      5e-5,
      1e-4,
      'float32 throughout: 2^-24 * sqrt(K) a product, about 1e-6 over a model, and float32 rope angles grow with the position: 2^-24 * 1000',
    ),
    f16: tolerance(
      3e-3,
      1e-3,
      'as f32, with keys and values rounded to f16: 2^-11 / sqrt(3) rms twice a layer, 0.0011 over 8 layers, twice that where attention is sharp, with margin 1.3',
    ),
    bf16: tolerance(
      0.025,
      2e-3,
      'inputs of products, and queries, keys, values and weights of attention rounded to bf16: 2^-9 / sqrt(3) rms, 8 times a layer, over 8 layers 0.9 %; twice that where attention is sharp, with margin 1.4',
    ),
    q8: quantised,
    q4,
  },
}

/**
 * A greedy token may differ where the golden's best logit leads by less than this: the difference of two logits errs by
 * sqrt(2) times their rms error, so this is nearly 3 standard deviations.
 */
export const tieMargin = ({ rms }: Tolerance) => 4 * rms

/** Backend class of a backend's name. */
export const backendClass = (backend: string): BackendClass => (backend === 'reference' ? 'reference' : 'float')

/** Class of a plan's weights: that of the coarsest matrix in it. */
export function weightsClass(plan: Pick<ExecutionPlan, 'tensors'>): WeightsClass {
  const dtypes = new Set(plan.tensors.filter(({ layout }) => layout !== 'row').map(({ dtype }) => dtype))
  if (dtypes.has('i4')) return 'q4'
  if (dtypes.has('i8')) return 'q8'
  // One f16 matrix among f32 ones may be the embedding, whose dtype keys and values have.
  return dtypes.has('bf16') ? 'bf16' : dtypes.has('f16') ? 'f16' : 'f32'
}

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
  linear: { c: 2, reason: 'rounding the inputs: one sum of K errors, with margin 1.5 over the worst of 1e4' },
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

const coarsest = (plan: Pick<ExecutionPlan, 'tensors'>, weights: Instruction['weights']) => {
  const dtypes = new Set(weights.flatMap((w) => (w === undefined ? [] : [plan.tensors[w]!])).map(matrixDType))
  return dtypes.has('i4') || dtypes.has('i8')
    ? BLOCK_PEAK * roundoff.i8
    : dtypes.has('bf16')
      ? roundoff.bf16
      : roundoff.f32
}
/** What a product rounds its inputs for; scales and gains stand beside the matrix and say nothing. */
const matrixDType = ({ dtype, layout }: ExecutionPlan['tensors'][number]): DType | undefined =>
  layout === 'row' ? undefined : dtype

const ofState = { f32: roundoff.f32, f16: roundoff.f16, bf16: roundoff.bf16, i8: roundoff.i8 } as const

/** Largest relative error of a row of one instruction's output, alone; `position`: the last that the step reaches. */
export function aloneTolerance(
  plan: Pick<ExecutionPlan, 'tensors' | 'states'>,
  instruction: Instruction,
  position: number,
): number {
  const { op, weights, states } = instruction
  const { c } = aloneTolerances[op]
  const stored = states.flatMap((use) => (use ? [ofState[plan.states[use.state]!.dtype as keyof typeof ofState]] : []))
  const eps = Math.max(roundoff.f32, op === 'embed' ? 0 : coarsest(plan, weights), ...stored)
  const turned = op === 'attention' || op === 'rope' ? c * angle(position) : 0
  return c === 0 || op === 'sample' ? 0 : c * eps + turned + ACCUMULATION * roundoff.f32
}
