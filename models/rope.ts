/**
 * Rotary frequencies: the scaled variants as an inv_freq table and an attention factor, computed once when a checkpoint
 * is compiled. The formulas and their float32 rounding follow transformers' modeling_rope_utils, so that angles agree
 * to the last bits at any position.
 */
import { fail } from '../errors.ts'

const ropeTypes = ['default', 'linear', 'llama3', 'yarn'] as const
export type RopeType = (typeof ropeTypes)[number]

/** Parameters of every rope type, absent ones undefined. */
export interface RopeParameters {
  readonly type: RopeType
  readonly theta: number
  /** Share of each head that is rotated, from its start. */
  readonly partial: number
  readonly factor?: number | undefined
  /** Context of pretraining, before scaling. */
  readonly originalContext: number
  readonly lowFreqFactor?: number | undefined
  readonly highFreqFactor?: number | undefined
  readonly attentionFactor?: number | undefined
  readonly betaFast?: number | undefined
  readonly betaSlow?: number | undefined
  readonly mscale?: number | undefined
  readonly mscaleAllDim?: number | undefined
  readonly truncate?: boolean | undefined
}

export interface Rope {
  /** Elements of a head that are rotated; even. */
  readonly dim: number
  /** (dim / 2) radians per position. */
  readonly invFreq: Float32Array
  /** Multiplies cosine and sine. */
  readonly attentionFactor: number
}

const f32 = Math.fround

/** theta^(2 i / dim) for i in [0, dim / 2). */
function periods(dim: number, theta: number): Float32Array {
  return Float32Array.from({ length: dim / 2 }, (_, i) => f32(f32(theta) ** f32((2 * i) / dim)))
}

const inverse = (values: Float32Array) => values.map((value) => 1 / value)

/** Llama 3.1: long wavelengths are divided by `factor`, short ones kept, those between blended. */
function llama3({ factor = 1, lowFreqFactor = 1, highFreqFactor = 4, originalContext }: RopeParameters) {
  const [longest, shortest] = [f32(originalContext / lowFreqFactor), f32(originalContext / highFreqFactor)]
  return (frequency: number): number => {
    const wavelength = f32(f32(1 / frequency) * f32(2 * Math.PI))
    if (wavelength < shortest) return frequency
    if (wavelength > longest) return frequency / factor
    const cycles = f32(f32(1 / wavelength) * originalContext)
    const smooth = f32(f32(cycles - lowFreqFactor) / (highFreqFactor - lowFreqFactor))
    return f32(f32(f32(1 - smooth) * frequency) / factor) + f32(smooth * frequency)
  }
}

const yarnScale = (factor: number, scale: number) => (factor <= 1 ? 1 : 0.1 * scale * Math.log(factor) + 1)

/** Yarn's scale of cosine and sine (Peng et al., 2023, section 3.4). */
function yarnAttention(rope: RopeParameters, factor: number): number {
  if (rope.attentionFactor !== undefined) return rope.attentionFactor
  if (rope.mscale && rope.mscaleAllDim) return yarnScale(factor, rope.mscale) / yarnScale(factor, rope.mscaleAllDim)
  return yarnScale(factor, 1)
}

/** Yarn (Peng et al., 2023): interpolates slow dimensions, keeps fast ones, a linear ramp between. */
function yarn(rope: RopeParameters, dim: number, factor: number): Float32Array {
  const dimensionOf = (rotations: number) =>
    (dim * Math.log(rope.originalContext / (rotations * 2 * Math.PI))) / (2 * Math.log(rope.theta))
  const [start, stop] = [dimensionOf(rope.betaFast || 32), dimensionOf(rope.betaSlow || 1)]
  const truncate = rope.truncate ?? true
  const low = Math.max(truncate ? Math.floor(start) : start, 0)
  let high = Math.min(truncate ? Math.ceil(stop) : stop, dim - 1)
  if (low === high) high += 0.001
  return periods(dim, rope.theta).map((period, i) => {
    const ramp = Math.min(1, Math.max(0, f32(f32(i - low) / f32(high - low))))
    const kept = f32(1 - ramp)
    return f32(f32(1 / f32(factor * period)) * f32(1 - kept)) + f32(f32(1 / period) * kept)
  })
}

/** inv_freq and attention factor of heads of `headDim` elements; `context` is the longest position. */
export function computeRope(rope: RopeParameters, headDim: number, context: number): Rope {
  const dim = Math.trunc(headDim * rope.partial)
  const plain = () => inverse(periods(dim, rope.theta))
  switch (rope.type) {
    case 'default':
      return { dim, invFreq: plain(), attentionFactor: 1 }
    case 'linear':
      return { dim, invFreq: plain().map((frequency) => frequency / rope.factor!), attentionFactor: 1 }
    case 'llama3':
      return { dim, invFreq: plain().map(llama3(rope)), attentionFactor: 1 }
    case 'yarn': {
      const factor = rope.factor ?? context / rope.originalContext
      return { dim, invFreq: yarn(rope, dim, factor), attentionFactor: yarnAttention(rope, factor) }
    }
  }
}

/** The rope type of a name, or ROPE_UNSUPPORTED. */
export function ropeType(name: string, path: string): RopeType {
  const known = ropeTypes.find((type) => type === name)
  if (!known) throw fail('ROPE_UNSUPPORTED', { path, got: name, expected: ropeTypes })
  return known
}
