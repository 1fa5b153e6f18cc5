import type { Ops } from '../../abi/ops/index.ts'
import { dot, type ReferenceKernel, row, type Weight } from './kernel.ts'

/** Root-mean-square norm of x[start, start + width), in place. */
export function rmsNormalize(
  x: Float64Array,
  start: number,
  width: number,
  options: { readonly eps: number; readonly offset: number; readonly weight: Weight | undefined },
): void {
  const { eps, offset, weight } = options
  const inverse = 1 / Math.sqrt(dot(x, start, x, start, width) / width + eps)
  for (let i = 0; i < width; i++) x[start + i]! *= inverse * (weight ? offset + weight.data[i]! : 1)
}

export const rms_norm: ReferenceKernel<Ops['rms_norm']> = ({ params, inputs, weights, outputs }) => {
  const options = { eps: params.eps, offset: params.weight_offset, weight: weights.weight }
  for (let r = 0; r < outputs.out.rows; r++) {
    const out = row(outputs.out, r)
    out.set(row(inputs.x, r))
    for (let group = 0; group < params.count; group++) rmsNormalize(out, group * params.width, params.width, options)
  }
}

export const layer_norm: ReferenceKernel<Ops['layer_norm']> = ({ params, inputs, weights, outputs }) => {
  const { width, eps } = params
  for (let r = 0; r < outputs.out.rows; r++) {
    const [out, x] = [row(outputs.out, r), row(inputs.x, r)]
    let [mean, variance] = [0, 0]
    for (const value of x) mean += value / width
    for (const value of x) variance += (value - mean) ** 2 / width
    const inverse = 1 / Math.sqrt(variance + eps)
    for (let c = 0; c < width; c++)
      out[c] = (x[c]! - mean) * inverse * (weights.weight?.data[c] ?? 1) + (weights.bias?.data[c] ?? 0)
  }
}
