import { BRANCH_RUN, QUANT_BLOCK, QUANT_GROUP } from '../../abi/ops/define.ts'
import type { Ops } from '../../abi/ops/index.ts'
import { dot, type Matrix, matrix, type ReferenceKernel, row, type Weight } from './kernel.ts'
import { rmsNormalize } from './norm.ts'
import { activate, softcapped } from './pointwise.ts'

const products = new WeakMap<Weight, Weight>()

/**
 * weight * scale of its 256 along the columns, or of its row (* sub-scale of its 32), computed once a weight; itself
 * without scales.
 */
export function dequantized(weight: Weight, scales: Weight | undefined, subScales?: Weight): Weight {
  if (!scales) return weight
  const known = products.get(weight)
  if (known) return known
  const data = new Float64Array(weight.data.length)
  for (let r = 0; r < weight.rows; r++)
    for (let c = 0; c < weight.cols; c++) {
      const block = scales.cols === 1 ? 0 : Math.floor(c / QUANT_BLOCK)
      const scale = scales.data[r * scales.cols + block]!
      const subScale = subScales ? subScales.data[r * subScales.cols + Math.floor(c / QUANT_GROUP)]! : 1
      data[r * weight.cols + c] = weight.data[r * weight.cols + c]! * subScale * scale
    }
  const product = { data, rows: weight.rows, cols: weight.cols }
  products.set(weight, product)
  return product
}

/** visit(row, n, x[row] . weight[n]) for every output; one row of the weight serves all rows of x. */
export function product(x: Matrix, weight: Weight, visit: (row: number, n: number, sum: number) => void): void {
  for (let n = 0; n < weight.rows; n++)
    for (let r = 0; r < x.rows; r++)
      visit(r, n, dot(x.data, x.offset + r * x.stride, weight.data, n * weight.cols, weight.cols))
}

/** Rows of x after their norm; x itself where there is none. */
function normalized(x: Matrix, weight: Weight | undefined, eps: number, offset: number): Matrix {
  if (!weight) return x
  const out = matrix(x.rows, x.width)
  for (let r = 0; r < x.rows; r++) {
    row(out, r).set(row(x, r))
    rmsNormalize(out.data, r * x.width, x.width, { eps, offset, weight })
  }
  return out
}

export const linear: ReferenceKernel<Ops['linear']> = ({ params, inputs, weights, outputs }) => {
  const { out } = outputs
  const { residual } = inputs
  const { branches } = params
  const f = activate(params.activation)
  const x = normalized(inputs.x, weights.norm, params.norm_eps, params.norm_offset)
  const sums = matrix(x.rows, branches * params.n)
  product(x, dequantized(weights.weight, weights.scales, weights.sub_scales), (r, n, sum) => {
    sums.data[r * sums.stride + n] = sum + (weights.bias?.data[n] ?? 0)
  })
  for (let r = 0; r < out.rows; r++) {
    const [to, from, base] = [row(out, r), row(sums, r), residual && row(residual, r)]
    for (let n = 0; n < params.n; n++) {
      // Of two branches, runs of the gate and of what it multiplies alternate.
      const gate = branches === 2 ? n + (n - (n % BRANCH_RUN)) : n
      const value = branches === 2 ? f(from[gate]!) * from[gate + BRANCH_RUN]! : f(from[gate]!)
      to[n] = (base?.[n] ?? 0) + value
    }
  }
}

export const logits: ReferenceKernel<Ops['logits']> = ({ params, inputs, weights, outputs }) => {
  const { out } = outputs
  const cap = softcapped(params.softcap)
  product(inputs.x, dequantized(weights.weight, weights.scales), (r, n, sum) => {
    out.data[out.offset + r * out.stride + n] = cap(params.scale * (sum + (weights.bias?.data[n] ?? 0)))
  })
}
