import { activations } from '../../abi/ops/define.ts'
import type { Ops } from '../../abi/ops/index.ts'
import { type Matrix, type ReferenceKernel, row } from './kernel.ts'

/**
 * Error function to float64 accuracy by its series of positive terms (Abramowitz and Stegun 7.1.6); beyond |x| = 6 it
 * is 1 to the last bit.
 */
export function erf(x: number): number {
  if (Math.abs(x) >= 6) return Math.sign(x)
  let term = x
  let sum = x
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1)
    sum += term
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum
}

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))

/** Pointwise functions by id of `activations`. */
const functions: Readonly<Record<keyof typeof activations, (x: number) => number>> = {
  none: (x) => x,
  silu: (x) => x * sigmoid(x),
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  relu: (x) => Math.max(x, 0),
  sigmoid,
  tanh: Math.tanh,
  relu2: (x) => Math.max(x, 0) ** 2,
}

/** The function of an activation id; undefined ids never pass the verifier. */
export function activate(id: number): (x: number) => number {
  const name = (Object.keys(activations) as (keyof typeof activations)[]).find((key) => activations[key] === id)
  if (!name) throw new RangeError(`unknown activation ${id}`)
  return functions[name]
}

/** softcap(z) = cap * tanh(z / cap); cap 0 passes z through. */
export const softcapped = (cap: number) => (cap > 0 ? (z: number) => cap * Math.tanh(z / cap) : (z: number) => z)

function combine(out: Matrix, a: Matrix, b: Matrix, f: (x: number, y: number) => number): void {
  for (let r = 0; r < out.rows; r++) {
    const [to, x, y] = [row(out, r), row(a, r), row(b, r)]
    for (let c = 0; c < to.length; c++) to[c] = f(x[c]!, y[c]!)
  }
}

export const glu: ReferenceKernel<Ops['glu']> = ({ params, inputs, outputs }) => {
  const f = activate(params.activation)
  combine(outputs.out, inputs.gate, inputs.up, (gate, up) => f(gate) * up)
}

export const activation: ReferenceKernel<Ops['activation']> = ({ params, inputs, outputs }) => {
  const f = activate(params.activation)
  combine(outputs.out, inputs.x, inputs.x, (x) => f(x))
}

export const residual: ReferenceKernel<Ops['residual']> = ({ params, inputs, outputs }) =>
  combine(outputs.out, inputs.x, inputs.y, (x, y) => x + params.scale * y)

export const multiply: ReferenceKernel<Ops['multiply']> = ({ inputs, outputs }) =>
  combine(outputs.out, inputs.x, inputs.y, (x, y) => x * y)
