import { describe, expect, it } from 'vitest'
import { close, dotted, f32, noise, rowsOf, run, sequence, softmax, stateOf, step, weight } from './run.test-op.ts'

describe('rope', () => {
  const inv_freq = weight([[1, 0.5]])
  const turn = (a: number, b: number, angle: number) => [
    a * Math.cos(angle) - b * Math.sin(angle),
    b * Math.cos(angle) + a * Math.sin(angle),
  ]
  const s = step({ sequences: [sequence(1, { position: 3 })] })
  const given = { inputs: { x: rowsOf([[1, 2, 3, 4, 5]]) }, weights: { inv_freq }, step: s }
  it('pairs halves', () => {
    const [[a, c], [b, d]] = [turn(1, 3, 3), turn(2, 4, 1.5)]
    close(run('rope', { ...given, params: { heads: 1, head_dim: 5, dim: 4 } }).out, [[a!, b!, c!, d!, 5]])
  })
  it('pairs neighbours, with a factor', () => {
    const expected = [...turn(1, 2, 3), ...turn(3, 4, 1.5)].map((value) => 2 * value)
    const out = run('rope', { ...given, params: { heads: 1, head_dim: 5, dim: 4, style: 1, attention_factor: 2 } })
    close(out.out, [[...expected, 5]])
  })
})

describe('attention', () => {
  const [heads, kvHeads, dim] = [4, 2, 5]
  const [q, k, v] = [noise(40, heads * dim, 11), noise(40, kvHeads * dim, 12), noise(40, kvHeads * dim, 13)]
  const params = { heads, kv_heads: kvHeads, head_dim: dim, scale: 0.75 }
  const head = (row: readonly number[], h: number) => row.slice(h * dim, (h + 1) * dim)
  /** Token t over positions [from, to), straight from the formula. */
  function dense(t: number, from: number, to: number, cap = 0): number[] {
    const positions = Array.from({ length: to - from }, (_, i) => from + i)
    return Array.from({ length: heads }, (_, h) => h).flatMap((h) => {
      const z = positions.map((p) => 0.75 * dotted(head(q[t]!, h), head(k[p]!, h >> 1)))
      const shares = softmax(cap ? z.map((x) => cap * Math.tanh(x / cap)) : z)
      return Array.from({ length: dim }, (_, c) =>
        dotted(
          shares,
          positions.map((p) => head(v[p]!, h >> 1)[c]!),
        ),
      )
    })
  }
  /** Runs tokens 0 to 39 in chunks over one state. */
  function chunked(sizes: readonly number[], extra: Record<string, number> = {}, weights = {}): number[][] {
    const filled = { ...params, ...extra }
    const states = stateOf('attention', filled)
    let position = 0
    return sizes.flatMap((size) => {
      const range = [position, (position += size)] as const
      const [qs, ks, vs] = [q, k, v].map((m) => rowsOf(m.slice(...range)))
      const s = step({ sequences: [sequence(size, { position: range[0], blocks: [3, 5] })] })
      return run('attention', { params: filled, inputs: { q: qs!, k: ks!, v: vs! }, weights, states, step: s }).out!
    })
  }
  it('is causal softmax over paged state, across blocks', () =>
    close(
      chunked([40]),
      q.map((_, t) => dense(t, 0, t + 1)),
    ))
  it('does not depend on the chunking', () => expect(chunked([1, 31, 2, 6])).toEqual(chunked([40])))
  it('keeps to the window', () =>
    close(
      chunked([33, 7], { window: 5 }),
      q.map((_, t) => dense(t, Math.max(0, t - 4), t + 1)),
    ))
  it('caps the scores', () =>
    close(
      chunked([40], { softcap: 0.5 }),
      q.map((_, t) => dense(t, 0, t + 1, 0.5)),
    ))
  it('attends to the whole sequence when it is not causal, and needs no state', () => {
    const s = step({ sequences: [sequence(30), sequence(10)] })
    const inputs = { q: rowsOf(q), k: rowsOf(k), v: rowsOf(v) }
    const out = run('attention', { params: { ...params, causal: 0 }, inputs, step: s })
    close(
      out.out,
      q.map((_, t) => (t < 30 ? dense(t, 0, 30) : dense(t, 30, 40))),
    )
  })
  it('keeps sequences apart', () => {
    const states = stateOf('attention', params)
    const sequences = [sequence(30, { blocks: [2] }), sequence(10, { blocks: [6], slot: 2 })]
    const inputs = { q: rowsOf(q), k: rowsOf(k), v: rowsOf(v) }
    const out = run('attention', { params, inputs, states, step: step({ sequences }) })
    close(
      out.out,
      q.map((_, t) => dense(t, t < 30 ? 0 : 30, t + 1)),
    )
  })
  it('norms and turns q and k as the separate opcodes do', () => {
    const weights = {
      q_norm: weight(noise(1, dim, 14)),
      k_norm: weight(noise(1, dim, 15)),
      inv_freq: weight([[1, 0.1]]),
    }
    const fused = { rope_dim: 4, norm_eps: f32(1e-5), norm_offset: 1 }
    const s = step({ sequences: [sequence(40, { blocks: [3, 5] })] })
    const separate = (x: number[][], count: number, norm: ReturnType<typeof weight>) => {
      const normed = run('rms_norm', {
        params: { width: dim, count, eps: 1e-5, weight_offset: 1 },
        inputs: { x: rowsOf(x) },
        weights: { weight: norm },
      })
      return run('rope', {
        params: { heads: count, head_dim: dim, dim: 4 },
        inputs: { x: rowsOf(normed.out!) },
        weights: { inv_freq: weights.inv_freq },
        step: s,
      }).out!
    }
    const inputs = {
      q: rowsOf(separate(q, heads, weights.q_norm)),
      k: rowsOf(separate(k, kvHeads, weights.k_norm)),
      v: rowsOf(v),
    }
    const unfused = run('attention', { params, inputs, states: stateOf('attention', params), step: s })
    close(chunked([40], fused, weights), unfused.out!)
  })
})
