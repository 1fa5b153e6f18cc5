/**
 * Every tolerance of the parity checks, each with its reason. The reference computes in float64 on the stored weights,
 * so it differs from a golden file only by what the golden file's author rounded; the CPU computes in float32 and rounds
 * further where its kernels say so: bf16 products round their inputs to bf16, q8 and q4 products quantise theirs to int8 per
 * block of 256, and keys and values are kept in the checkpoint's dtype or, on request, as int8 by head and
 * position. Over bf16 and int8 ones, attention rounds its queries and weights to bf16 as well.
 */
import type { OpName } from '../abi/ops/index.ts'

export * from '../compute/tolerances.ts'

/** Unit roundoff: the largest relative error of rounding once to nearest. */
export const roundoff = {
  f32: 2 ** -24,
  f16: 2 ** -11,
  bf16: 2 ** -9,
  /** int8 with the block's largest magnitude at 127: half a step, relative to that magnitude. */
  i8: 1 / 254,
} as const

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
