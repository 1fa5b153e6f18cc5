/**
 * How far the logits of two backends, or of two packages of one model, may be apart, each with its reason: what the parity
 * gate and a shadow (inference/shadow.ts) judge by. What each rounds is said in parity/tolerances.ts.
 */
import type { ExecutionPlan } from '../plans/plan.ts'

export type WeightsClass = 'f32' | 'f16' | 'bf16' | 'q8' | 'fp8' | 'q4'
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
 * rms of rounding to e4m3, relative to the value: a step of 1/8 of the power of two below it, over sqrt(12), over sqrt(7/3).
 * Beside 32 products of it, embedding and head of fp8 are nothing: they are q8, 0.66 % each.
 */
const E4M3_RMS = 0.0236
const fp8 = (rms: number, what: string) =>
  tolerance(
    rms,
    2e-2,
    `the golden file is of the weights before fp8: rounding to e4m3 is 2.4 % rms, ${what}; twice that where attention is sharp, with margin 1.3`,
  )

/** Two backends on the same fp8 package: e4m3 activations in each of 4 products over 8 layers, twice where attention is sharp. */
export const sameFp8Weights = 2 * E4M3_RMS * Math.sqrt(32)

/**
 * Two backends on the same q4 package, rms of the logit errors: int8 activations in each of 4 products over 8 layers,
 * 0.0066 * sqrt(32) = 3.7 %, twice that where attention is sharp.
 */
export const sameWeights = 0.074

export const goldenTolerances: Readonly<Record<BackendClass, Readonly<Record<WeightsClass, Tolerance>>>> = {
  reference: {
    f32: exact,
    f16: exact,
    bf16: exact,
    q8: quantised,
    q4,
    fp8: fp8(0.35, 'of weights: over 8 layers of 4 products 0.024 * sqrt(32) = 13 %'),
  },
  float: {
    f32: tolerance(
      5e-5,
      1e-4,
      'float32 throughout: 2^-24 * sqrt(K) a product, about 1e-6 over a model, and float32 rope angles grow with the position: 2^-24 * 1000',
    ),
    f16: tolerance(
      3e-3,
      1e-3,
      'as f32, with keys and values rounded to f16: 2^-11 / sqrt(3) rms twice a layer, 0.0011 over 8 layers, twice that where attention is sharp, with margin 1.3; where inputs of products are rounded to f16 as well, 0.0023 in all',
    ),
    bf16: tolerance(
      0.025,
      2e-3,
      'inputs of products, and queries, keys, values and weights of attention rounded to bf16: 2^-9 / sqrt(3) rms, 8 times a layer, over 8 layers 0.9 %; twice that where attention is sharp, with margin 1.4',
    ),
    q8: quantised,
    q4,
    fp8: fp8(0.49, 'of weights and, where many rows are multiplied, of activations: 0.033 * sqrt(32) = 19 %'),
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
  if (dtypes.has('e4m3')) return 'fp8'
  if (dtypes.has('i8')) return 'q8'
  // One f16 matrix among f32 ones may be the embedding, whose dtype keys and values have.
  return dtypes.has('bf16') ? 'bf16' : dtypes.has('f16') ? 'f16' : 'f32'
}

/** The coarsest last. */
const classes: readonly WeightsClass[] = ['f32', 'f16', 'bf16', 'q8', 'fp8', 'q4']

/** Of two backends on one package, where that is tighter than what the golden file allows. */
const same: Readonly<Partial<Record<WeightsClass, number>>> = { q8: sameWeights, q4: sameWeights, fp8: sameFp8Weights }

/**
 * Largest difference of two logits of a row, over the standard deviation of the row, between what two backends compute from
 * `plans`: one plan or two of the same model. Both err, independently: sqrt(2) times what one may against the truth.
 */
export function pairTolerance(a: ExecutionPlan, b: ExecutionPlan): number {
  const [coarsest] = [a, b].map(weightsClass).sort((x, y) => classes.indexOf(y) - classes.indexOf(x))
  const rms = (a === b ? same[coarsest!] : undefined) ?? goldenTolerances.float[coarsest!].rms
  return Math.SQRT2 * tolerance(rms, 0, '').logits
}
