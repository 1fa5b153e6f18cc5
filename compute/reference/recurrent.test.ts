import { describe, expect, it } from 'vitest'
import { activations } from '../../abi/ops/define.ts'
import type { OpName } from '../../abi/ops/index.ts'
import { close, dotted, type Given, noise, rowsOf, run, stateOf, tokens, weight } from './run.test-op.ts'

/** Runs an opcode over 6 tokens in chunks on one state. */
function scanned(
  op: OpName,
  params: Record<string, number>,
  inputs: Record<string, number[][]>,
  rest: Given,
  sizes: number[],
) {
  const states = stateOf(op, params)
  let position = 0
  return sizes.flatMap((size) => {
    const range = [position, (position += size)] as const
    const chunk = Object.fromEntries(Object.entries(inputs).map(([name, m]) => [name, rowsOf(m.slice(...range))]))
    return run(op, { ...rest, params, inputs: chunk, states, step: tokens(size) }).out!
  })
}

describe('recurrent', () => {
  it('conv_state is the causal convolution, whatever the chunking', () => {
    const [x, w] = [noise(6, 3, 31), noise(3, 4, 32)]
    const params = { channels: 3, kernel: 4, history: 3, activation: activations.tanh }
    const rest = { weights: { weight: weight(w), bias: weight([[0.1, 0.2, 0.3]]) } }
    const expected = x.map((_, t) =>
      w.map((taps, c) =>
        Math.tanh(0.1 * (c + 1) + taps.reduce((sum, tap, j) => sum + tap * (x[t - 3 + j]?.[c] ?? 0), 0)),
      ),
    )
    close(scanned('conv_state', params, { x }, rest, [6]), expected)
    expect(scanned('conv_state', params, { x }, rest, [1, 3, 2])).toEqual(
      scanned('conv_state', params, { x }, rest, [6]),
    )
  })

  it('ssm_scan is its recurrence, unrolled for two tokens', () => {
    const params = { heads: 2, head_dim: 1, groups: 1, state: 2, dt_min: 0, dt_max: 1 }
    const [x, dt, b, c] = [
      [
        [1, 2],
        [3, 4],
      ],
      [
        [0.1, 5],
        [0.2, 0.3],
      ],
      [
        [1, 2],
        [3, 5],
      ],
      [
        [7, 11],
        [13, 17],
      ],
    ] as const
    const [aLog, d, bias] = [
      [-0.5, 0.25],
      [0.5, 2],
      [0.01, 0.02],
    ] as const
    const rest = { weights: { a_log: weight([aLog]), d: weight([d]), dt_bias: weight([bias]) } }
    const size = (t: number, h: number) => Math.min(1, Math.log(1 + Math.exp(dt[t]![h]! + bias[h]!)))
    const expected = [0, 1].map((t) =>
      [0, 1].map((h) => {
        let y = d[h]! * x[t]![h]!
        for (let u = 0; u <= t; u++) {
          const decay = u < t ? Math.exp(-Math.exp(aLog[h]!) * size(t, h)) : 1
          y += decay * size(u, h) * x[u]![h]! * dotted(b[u]!, c[t]!)
        }
        return y
      }),
    )
    const inputs = {
      x: x.map((r) => [...r]),
      dt: dt.map((r) => [...r]),
      b: b.map((r) => [...r]),
      c: c.map((r) => [...r]),
    }
    close(scanned('ssm_scan', params, inputs, rest, [2]), expected)
    expect(scanned('ssm_scan', params, inputs, rest, [1, 1])).toEqual(scanned('ssm_scan', params, inputs, rest, [2]))
  })

  it('delta_rule recalls what it stored, and overwrites it', () => {
    const params = { heads: 2, key_heads: 1, key_dim: 2, value_dim: 1, scale: 1 }
    const inputs = {
      q: [
        [1, 0],
        [1, 0],
        [0, 1],
      ],
      k: [
        [1, 0],
        [1, 0],
        [0, 1],
      ],
      v: [
        [5, 6],
        [7, 8],
        [9, 10],
      ],
      beta: [
        [1, 0.5],
        [1, 0.5],
        [1, 1],
      ],
      decay: [
        [0, 0],
        [0, Math.log(0.5)],
        [0, 0],
      ],
    }
    // head 1: S = 3, then 0.5 * 3 + 0.5 * (8 - 1.5)
    close(scanned('delta_rule', params, inputs, {}, [3]), [
      [5, 3],
      [7, 4.75],
      [9, 10],
    ])
    close(scanned('delta_rule', params, inputs, {}, [2, 1]), [
      [5, 3],
      [7, 4.75],
      [9, 10],
    ])
  })
  it('delta_rule takes q and k at unit length', () => {
    const params = { heads: 1, key_heads: 1, key_dim: 2, value_dim: 1, scale: 2, normalize: 1 }
    const inputs = { q: [[3, 4]], k: [[30, 40]], v: [[5]], beta: [[1]], decay: [[0]] }
    close(scanned('delta_rule', params, inputs, {}, [1]), [[10]], 5)
  })
})
