import { ropeStyles } from '../../abi/ops/attention.ts'
import type { Ops } from '../../abi/ops/index.ts'
import { dot, type Matrix, matrix, type ReferenceCall, type ReferenceKernel, row, type Weight } from './kernel.ts'
import { rmsNormalize } from './norm.ts'
import { softcapped } from './pointwise.ts'

interface Rope {
  readonly inv_freq: Weight
  readonly style: number
  readonly attention_factor: number
}

/**
 * Rotates one head, x[start, ...), in place, for `position`. The angle is rounded to float32, as models are trained with
 * it: at position 400 an exact one moves logits by up to 4e-4 where attention is sharp.
 */
function rotate(x: Float64Array, start: number, position: number, { inv_freq, style, attention_factor }: Rope): void {
  const pairs = inv_freq.cols
  for (let i = 0; i < pairs; i++) {
    const angle = Math.fround(position * inv_freq.data[i]!)
    const [cos, sin] = [Math.cos(angle) * attention_factor, Math.sin(angle) * attention_factor]
    const first = start + (style === ropeStyles.half ? i : 2 * i)
    const second = style === ropeStyles.half ? first + pairs : first + 1
    const [a, b] = [x[first]!, x[second]!]
    x[first] = a * cos - b * sin
    x[second] = b * cos + a * sin
  }
}

export const rope: ReferenceKernel<Ops['rope']> = ({ params, inputs, weights, step, outputs }) => {
  const options = { ...params, inv_freq: weights.inv_freq }
  for (let t = 0; t < step.tokens; t++) {
    const out = row(outputs.out, t)
    out.set(row(inputs.x, t))
    for (let h = 0; h < params.heads; h++) rotate(out, h * params.head_dim, step.positions[t]!, options)
  }
}

type Call = ReferenceCall<Ops['attention']>

/** A copy of q or k (tokens, heads * head_dim) after the norm and the rope of the call. */
function prepared({ params, weights, step }: Call, x: Matrix, norm: Weight | undefined): Matrix {
  const out = matrix(x.rows, x.width)
  const rms = norm && { eps: params.norm_eps, offset: params.norm_offset, weight: norm }
  const turn = weights.inv_freq && { ...params, style: params.rope_style, inv_freq: weights.inv_freq }
  for (let t = 0; t < x.rows; t++) {
    const values = row(out, t)
    values.set(row(x, t))
    for (let start = 0; start < x.width; start += params.head_dim) {
      if (rms) rmsNormalize(values, start, params.head_dim, rms)
      if (turn) rotate(values, start, step.positions[t]!, turn)
    }
  }
  return out
}

/** Keys and values of one sequence, (length, kv_heads * head_dim) each. */
interface Memory {
  readonly keys: Matrix
  readonly values: Matrix
}

/** Writes or reads position p of sequence s in the paged state: block of K then V, each (kv_heads, B, padded head_dim). */
function transfer(call: Call, s: number, p: number, write: boolean, key: Float64Array, value: Float64Array): void {
  const { kv_heads, head_dim } = call.params
  const state = call.states.kv!
  const padded = Math.ceil(head_dim / 16) * 16
  const index = s * call.step.blocksPerSequence + Math.floor(p / state.blockTokens)
  const block = state.unit(call.step.blockTable[index]!)
  for (const [plane, side] of [key, value].entries())
    for (let h = 0; h < kv_heads; h++) {
      const at = ((plane * kv_heads + h) * state.blockTokens + (p % state.blockTokens)) * padded
      if (write) block.set(side.subarray(h * head_dim, (h + 1) * head_dim), at)
      else side.set(block.subarray(at, at + head_dim), h * head_dim)
    }
}

/** What the tokens of sequence s attend to: its state up to its length, or its tokens of this step. */
function remembered(call: Call, s: number, k: Matrix, v: Matrix): Memory {
  const { step } = call
  const start = step.sequenceStart[s]!
  const length = call.states.kv ? step.sequenceLength[s]! : step.sequenceStart[s + 1]! - start
  const memory = { keys: matrix(length, k.width), values: matrix(length, k.width) }
  for (let p = 0; p < length; p++) {
    const [key, value] = [row(memory.keys, p), row(memory.values, p)]
    if (call.states.kv) transfer(call, s, p, false, key, value)
    else {
      key.set(row(k, start + p))
      value.set(row(v, start + p))
    }
  }
  return memory
}

/** One head of one token over memory positions [from, to). */
function attend(call: Call, q: Float64Array, out: Float64Array, h: number, memory: Memory, from: number, to: number) {
  const { heads, kv_heads, head_dim, scale, softcap } = call.params
  const { keys, values } = memory
  const column = Math.floor(h / (heads / kv_heads)) * head_dim
  const cap = softcapped(softcap)
  const scores = new Float64Array(to - from)
  for (let p = from; p < to; p++)
    scores[p - from] = cap(scale * dot(q, h * head_dim, keys.data, p * keys.stride + column, head_dim))
  let [best, sum] = [Number.NEGATIVE_INFINITY, 0]
  for (const score of scores) best = Math.max(best, score)
  for (let i = 0; i < scores.length; i++) sum += scores[i] = Math.exp(scores[i]! - best)
  for (let p = from; p < to; p++) {
    const share = scores[p - from]! / sum
    const at = p * values.stride + column
    for (let c = 0; c < head_dim; c++) out[h * head_dim + c]! += share * values.data[at + c]!
  }
}

export const attention: ReferenceKernel<Ops['attention']> = (call) => {
  const { params, inputs, weights, states, step, outputs } = call
  const q = prepared(call, inputs.q, weights.q_norm)
  const k = prepared(call, inputs.k, weights.k_norm)
  if (params.causal && states.kv)
    for (let t = 0; t < step.tokens; t++)
      transfer(call, step.tokenSequence[t]!, step.positions[t]!, true, row(k, t), row(inputs.v, t))
  for (let s = 0; s < step.sequences; s++) {
    const memory = remembered(call, s, k, inputs.v)
    for (let t = step.sequenceStart[s]!; t < step.sequenceStart[s + 1]!; t++) {
      const own = states.kv ? step.positions[t]! : t - step.sequenceStart[s]!
      const to = params.causal ? own + 1 : memory.keys.rows
      const from = params.causal && params.window ? Math.max(0, own + 1 - params.window) : 0
      const [query, out] = [row(q, t), row(outputs.out, t)]
      for (let h = 0; h < params.heads; h++) attend(call, query, out, h, memory, from, to)
    }
  }
}
