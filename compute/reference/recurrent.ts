import type { Ops } from '../../abi/ops/index.ts'
import { dot, type ReferenceKernel, type ReferenceStep, row, type State, weightRow } from './kernel.ts'
import { activate } from './pointwise.ts'

/** Visits the tokens of every sequence in order with the record of the sequence's slot. */
function scan(step: ReferenceStep, state: State, visit: (token: number, record: Float64Array) => void): void {
  for (let s = 0; s < step.sequences; s++) {
    const record = state.unit(step.sequenceSlot[s]!)
    for (let t = step.sequenceStart[s]!; t < step.sequenceStart[s + 1]!; t++) visit(t, record)
  }
}

export const conv_state: ReferenceKernel<Ops['conv_state']> = ({ params, inputs, weights, states, step, outputs }) => {
  const { channels, kernel, history } = params
  const f = activate(params.activation)
  scan(step, states.window, (t, record) => {
    const [x, out] = [row(inputs.x, t), row(outputs.out, t)]
    for (let c = 0; c < channels; c++) {
      const taps = weightRow(weights.weight, c)
      let sum = (weights.bias?.data[c] ?? 0) + taps[kernel - 1]! * x[c]!
      for (let j = 0; j < history; j++) sum += taps[j]! * record[j * channels + c]!
      out[c] = f(sum)
    }
    if (history === 0) return
    record.copyWithin(0, channels)
    record.set(x, (history - 1) * channels)
  })
}

/** ln(1 + e^x) without overflow. */
const softplus = (x: number) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)))

export const ssm_scan: ReferenceKernel<Ops['ssm_scan']> = ({ params, inputs, weights, states, step, outputs }) => {
  const { heads, head_dim, groups, state: size } = params
  scan(step, states.scan, (t, record) => {
    const [x, dts, b, c] = [row(inputs.x, t), row(inputs.dt, t), row(inputs.b, t), row(inputs.c, t)]
    const out = row(outputs.out, t)
    for (let h = 0; h < heads; h++) {
      const raw = softplus(dts[h]! + weights.dt_bias.data[h]!)
      const dt = Math.min(Math.max(raw, params.dt_min), params.dt_max)
      const decay = Math.exp(-Math.exp(weights.a_log.data[h]!) * dt)
      const group = Math.floor(h / (heads / groups)) * size
      for (let i = h * head_dim; i < (h + 1) * head_dim; i++) {
        for (let n = 0; n < size; n++) record[i * size + n] = decay * record[i * size + n]! + dt * x[i]! * b[group + n]!
        out[i] = dot(record, i * size, c, group, size) + weights.d.data[h]! * x[i]!
      }
    }
  })
}

/** Keeps a zero vector finite, as the published kernels of the delta rule do. */
const UNIT_EPSILON = 1e-6

/** Elements [start, start + width) of x, at unit length when asked, times `scale`. */
function direction(x: Float64Array, start: number, width: number, normalize: number, scale: number): Float64Array {
  const length = normalize ? Math.sqrt(dot(x, start, x, start, width) + UNIT_EPSILON) : 1
  return x.slice(start, start + width).map((value) => (value / length) * scale)
}

export const delta_rule: ReferenceKernel<Ops['delta_rule']> = ({ params, inputs, states, step, outputs }) => {
  const { heads, key_heads, key_dim, value_dim, normalize, scale } = params
  scan(step, states.memory, (t, record) => {
    const [v, beta, decay, out] = [row(inputs.v, t), row(inputs.beta, t), row(inputs.decay, t), row(outputs.out, t)]
    for (let h = 0; h < heads; h++) {
      const shared = Math.floor(h / (heads / key_heads)) * key_dim
      const q = direction(row(inputs.q, t), shared, key_dim, normalize, scale)
      const k = direction(row(inputs.k, t), shared, key_dim, normalize, 1)
      const keep = Math.exp(decay[h]!)
      for (let c = 0; c < value_dim; c++) {
        const at = (i: number) => (h * key_dim + i) * value_dim + c
        let recalled = 0
        for (let i = 0; i < key_dim; i++) recalled += k[i]! * (record[at(i)]! *= keep)
        const change = beta[h]! * (v[h * value_dim + c]! - recalled)
        let sum = 0
        for (let i = 0; i < key_dim; i++) sum += q[i]! * (record[at(i)]! += change * k[i]!)
        out[h * value_dim + c] = sum
      }
    }
  })
}
