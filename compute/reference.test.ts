import { describe, expect, it } from 'vitest'
import { activations, evaluate } from '../abi/ops/define.ts'
import { type OpName, opDef, opNames } from '../abi/ops/index.ts'
import { TOP_LOGPROBS } from '../abi/ops/sample.ts'
import { fillParams } from '../abi/param-block.ts'
import { createStep } from '../abi/step.ts'
import { type BatchInput, packStep, type SampleInput, type SequenceInput } from '../parity/batch.ts'
import { philox, uniform } from './reference/philox.ts'
import { erf } from './reference/pointwise.ts'
import { type Matrix, type ReferenceStep, readStep, referenceTable, runReference, type State } from './reference.ts'

const limits = { tokens: 128, rows: 128, sequences: 8, blocksPerSequence: 8, history: 64, biases: 16, copies: 4 }
const step = (batch: BatchInput): ReferenceStep => readStep(packStep(createStep(limits), batch))
const sequence = (count: number, rest: Partial<SequenceInput> = {}): SequenceInput => ({
  slot: 1,
  blocks: [1, 2, 3, 4],
  position: 0,
  tokens: Array.from({ length: count }, (_, i) => i),
  ...rest,
})
const tokens = (count: number) => step({ sequences: [sequence(count)] })

const rowsOf = (rows: readonly (readonly number[])[]): Matrix => ({
  data: Float64Array.from(rows.flat()),
  offset: 0,
  stride: rows[0]!.length,
  rows: rows.length,
  width: rows[0]!.length,
})
const weight = (rows: readonly (readonly number[])[]) => ({
  data: Float64Array.from(rows.flat()),
  rows: rows.length,
  cols: rows[0]!.length,
})

/** Deterministic values in [-1, 1). */
function noise(rows: number, cols: number, seed: number): number[][] {
  const value = (r: number, c: number) => uniform(seed, 7, r * 4096 + c) * 2 - 1
  return Array.from({ length: rows }, (_, r) => Array.from({ length: cols }, (_, c) => value(r, c)))
}

function memory(elements: number, blockTokens = 1): State {
  const units = new Map<number, Float64Array>()
  const unit = (index: number) => {
    if (!units.has(index)) units.set(index, new Float64Array(elements))
    return units.get(index)!
  }
  return { blockTokens, unit }
}
/** A state of the size that the definition gives it. */
function stateOf(op: OpName, params: Readonly<Record<string, number>>): Record<string, State> {
  const [name, def] = Object.entries(opDef(op).states)[0]!
  const elements = evaluate(def.elements, params)
  return { [name]: def.kind === 'paged' ? memory(elements * 32, 32) : memory(elements) }
}

interface Given {
  readonly params?: Record<string, number>
  readonly inputs?: Record<string, Matrix>
  readonly weights?: Record<string, ReturnType<typeof weight>>
  readonly states?: Record<string, State>
  readonly step?: ReferenceStep
}
function run(op: OpName, { params = {}, inputs = {}, weights = {}, states = {}, step = tokens(1) }: Given) {
  const outputs = runReference(op, {
    params: fillParams(opDef(op), params as never) as Record<string, number>,
    inputs,
    weights,
    states,
    step,
  })
  const list = (m: Matrix) =>
    Array.from({ length: m.rows }, (_, r) => [...m.data.subarray(r * m.width, (r + 1) * m.width)])
  return Object.fromEntries(Object.entries(outputs).map(([name, m]) => [name, list(m)]))
}

function close(
  actual: readonly (readonly number[])[] | undefined,
  expected: readonly (readonly number[])[],
  digits = 12,
) {
  expect(actual!.length).toBe(expected.length)
  for (const [r, values] of expected.entries())
    for (const [c, value] of values.entries()) expect(actual![r]![c], `(${r}, ${c})`).toBeCloseTo(value, digits)
}

const dotted = (a: readonly number[], b: readonly number[]) => a.reduce((sum, x, i) => sum + x * b[i]!, 0)
const softmax = (z: readonly number[]) => {
  const powers = z.map((x) => Math.exp(x))
  const sum = powers.reduce((a, b) => a + b, 0)
  return powers.map((p) => p / sum)
}
const f32 = Math.fround

it('defines every opcode', () => expect(Object.keys(referenceTable)).toEqual(opNames))

describe('tokens', () => {
  it('embed scales the row, adds position and type', () => {
    const table = weight([
      [1, 2],
      [3, 4],
      [5, 6],
    ])
    const given = { sequences: [sequence(2, { tokens: [2, 0], position: 1 })] }
    const out = run('embed', {
      params: { vocab: 3, width: 2, scale: 2, positions: 4, position_offset: 1, types: 1 },
      weights: {
        table,
        positions: weight([
          [0, 0],
          [0, 0],
          [10, 20],
          [30, 40],
        ]),
        types: weight([[100, 200]]),
      },
      step: step(given),
    })
    expect(out.out).toEqual([
      [120, 232],
      [132, 244],
    ])
  })
  it('embed applies the scale of each block of 256', () => {
    const table = weight([Array.from({ length: 257 }, () => 4)])
    const out = run('embed', { params: { vocab: 1, width: 257 }, weights: { table, scales: weight([[0.5, 0.25]]) } })
    expect(out.out![0]!.slice(255)).toEqual([2, 1])
  })
  it('gather_rows keeps the rows asked for, in order', () => {
    const s = step({ sequences: [sequence(3, { rows: [2] }), sequence(2, { rows: [0, 1] })] })
    const x = rowsOf([[0], [1], [2], [3], [4]])
    expect(run('gather_rows', { params: { width: 1 }, inputs: { x }, step: s }).out).toEqual([[2], [3], [4]])
  })
  it('pool takes mean, first or last of each sequence', () => {
    const s = step({ sequences: [sequence(2), sequence(1)] })
    const given = {
      inputs: {
        x: rowsOf([
          [1, 2],
          [3, 6],
          [3, 4],
        ]),
      },
      step: s,
    }
    expect(run('pool', { ...given, params: { width: 2, mode: 0 } }).out).toEqual([
      [2, 4],
      [3, 4],
    ])
    expect(run('pool', { ...given, params: { width: 2, mode: 1 } }).out).toEqual([
      [1, 2],
      [3, 4],
    ])
    expect(run('pool', { ...given, params: { width: 2, mode: 2 } }).out).toEqual([
      [3, 6],
      [3, 4],
    ])
    close(run('pool', { ...given, params: { width: 2, mode: 2, normalize: 1 } }).out, [
      [1 / Math.sqrt(5), 2 / Math.sqrt(5)],
      [0.6, 0.8],
    ])
  })
})

describe('norms', () => {
  it('rms_norm works per group, with an offset on the weight', () => {
    const out = run('rms_norm', {
      params: { width: 2, count: 2, eps: 0, weight_offset: 1 },
      inputs: { x: rowsOf([[3, 4, 1, 1]]) },
      weights: { weight: weight([[0, 1]]) },
    })
    close(out.out, [[3 / Math.sqrt(12.5), 8 / Math.sqrt(12.5), 1, 2]])
  })
  it('layer_norm centres and scales', () => {
    const out = run('layer_norm', {
      params: { width: 4, eps: 0 },
      inputs: { x: rowsOf([[1, 2, 3, 4]]) },
      weights: { weight: weight([[1, 1, 2, 2]]), bias: weight([[0, 0, 0, 1]]) },
    })
    const unit = Math.sqrt(1.25)
    close(out.out, [[-1.5 / unit, -0.5 / unit, 1 / unit, 3 / unit + 1]])
  })
})

describe('products', () => {
  const [w, x] = [noise(5, 33, 1), noise(3, 33, 2)]
  it('linear is x W^T with its epilogue, on columns of a wider register', () => {
    const wide = rowsOf(x.map((values) => [9, ...values, 9]))
    const bias = noise(1, 5, 3)
    const base = noise(3, 5, 4)
    const out = run('linear', {
      params: { n: 5, k: 33, activation: activations.relu },
      inputs: { x: { ...wide, offset: 1, width: 33 }, residual: rowsOf(base) },
      weights: { weight: weight(w), bias: weight(bias) },
    })
    close(
      out.out,
      x.map((values, r) => w.map((v, n) => base[r]![n]! + Math.max(0, dotted(values, v) + bias[0]![n]!))),
    )
  })
  it('linear multiplies 256 columns by their scale and 32 by their sub-scale', () => {
    const x = noise(3, 290, 6)
    const q = noise(5, 290, 7).map((values) => values.map((value) => Math.round(value * 7)))
    const scales = noise(5, 2, 5)
    const subScales = noise(5, 10, 8).map((values) => values.map((value) => Math.round(value * 15)))
    const exact = q.map((values, r) =>
      values.map((value, c) => value * subScales[r]![Math.floor(c / 32)]! * scales[r]![Math.floor(c / 256)]!),
    )
    const out = run('linear', {
      params: { n: 5, k: 290 },
      inputs: { x: rowsOf(x) },
      weights: { weight: weight(q), scales: weight(scales), sub_scales: weight(subScales) },
    })
    close(
      out.out,
      x.map((values) => exact.map((v) => dotted(values, v))),
      10,
    )
  })
  it('logits scales, then caps', () => {
    const given = { inputs: { x: rowsOf(x) }, weights: { weight: weight(w) } }
    const out = run('logits', { ...given, params: { vocab: 5, k: 33, scale: 2, softcap: 3 }, step: tokens(3) })
    close(
      out.out,
      x.map((values) => w.map((v) => 3 * Math.tanh((2 * dotted(values, v)) / 3))),
    )
  })
})

describe('pointwise', () => {
  it('knows erf to the last digits', () => {
    // Abramowitz and Stegun, table 7.1
    expect(erf(0.5)).toBeCloseTo(0.5204998778130465, 15)
    expect(erf(-1)).toBeCloseTo(-0.8427007929497149, 15)
    expect(erf(3)).toBeCloseTo(0.9999779095030014, 15)
    expect(erf(7)).toBe(1)
  })
  it.each([
    ['none', -0.5],
    ['silu', -0.1887703343990727],
    ['gelu', -0.15426876936299344],
    ['gelu_tanh', -0.15428599017485606],
    ['relu', 0],
    ['sigmoid', 0.3775406687981454],
    ['tanh', -0.4621171572600097],
    ['relu2', 0],
  ] as const)('%s(-0.5)', (name, expected) => {
    const out = run('activation', {
      params: { width: 1, activation: activations[name] },
      inputs: { x: rowsOf([[-0.5]]) },
    })
    close(out.out, [[expected]], 14)
  })
  it('glu, residual and multiply', () => {
    const [a, b] = [rowsOf([[2, -3]]), rowsOf([[5, 7]])]
    expect(run('glu', { params: { width: 2, activation: activations.relu }, inputs: { gate: a, up: b } }).out).toEqual([
      [10, 0],
    ])
    expect(run('residual', { params: { width: 2, scale: 0.5 }, inputs: { x: a, y: b } }).out).toEqual([[4.5, 0.5]])
    expect(run('multiply', { params: { width: 2 }, inputs: { x: a, y: b } }).out).toEqual([[10, -21]])
  })
})

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

describe('moe', () => {
  const [width, ff, experts] = [3, 4, 5]
  const [gate, up, down] = [noise(20, 3, 21), noise(20, 3, 22), noise(15, 4, 23)]
  const x = noise(2, 3, 24)
  const silu = (z: number) => z / (1 + Math.exp(-z))
  const expert = (e: number, row: readonly number[]) => {
    const inner = Array.from(
      { length: ff },
      (_, i) => silu(dotted(row, gate[e * ff + i]!)) * dotted(row, up[e * ff + i]!),
    )
    return Array.from({ length: width }, (_, c) => dotted(inner, down[e * width + c]!))
  }
  const base = { width, ff, experts, top_k: 2, activation: activations.silu }
  const given = (router: number[][]) => ({
    inputs: { x: rowsOf(x), router_logits: rowsOf(router) },
    weights: { gate: weight(gate), up: weight(up), down: weight(down) },
  })
  it('sums the best experts by normalised score', () => {
    const router = [
      [0, 3, 1, -1, 2],
      [5, 4, 0, 0, 0],
    ]
    const chosen = [
      [1, 4],
      [0, 1],
    ]
    const out = run('moe', { ...given(router), params: { ...base, normalize: 1, scale: 3 } })
    const expected = x.map((row, r) => {
      const shares = softmax(chosen[r]!.map((e) => router[r]![e]!))
      return Array.from(
        { length: width },
        (_, c) =>
          3 *
          dotted(
            shares,
            chosen[r]!.map((e) => expert(e, row)[c]!),
          ),
      )
    })
    close(out.out, expected)
  })
  it('scores by sigmoid and breaks ties to the lower index', () => {
    const out = run('moe', {
      ...given([
        [1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1],
      ]),
      params: { ...base, router: 1 },
    })
    const sigmoid = 1 / (1 + Math.exp(-1))
    const expected = [
      [0, 1],
      [3, 4],
    ].map((chosen, r) =>
      Array.from({ length: width }, (_, c) => sigmoid * chosen.reduce((sum, e) => sum + expert(e, x[r]!)[c]!, 0)),
    )
    close(out.out, expected)
  })
})

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

describe('philox', () => {
  // known answers of Random123 1.14, kat_vectors, philox4x32 10
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ] as const)('%j', (counter, key, expected) => expect(philox(counter, key)).toEqual(expected))
  it('makes 53-bit numbers of the first two words', () =>
    expect(uniform(0, 0, 0)).toBe(Number((0x6627e8d5n << 21n) ^ (0xe169c58dn >> 11n)) * 2 ** -53))
})

describe('sample', () => {
  function pick(logits: readonly number[], sampling: SampleInput) {
    const s = step({ sequences: [sequence(1)], sampling: () => sampling })
    return run('sample', { params: { vocab: logits.length }, inputs: { logits: rowsOf([logits]) }, step: s })
  }
  const token = (logits: readonly number[], sampling: SampleInput) => pick(logits, sampling).tokens![0]![0]!
  /** How often each id is drawn over `count` positions. */
  function frequencies(logits: readonly number[], sampling: SampleInput, count = 2000): number[] {
    const drawn = logits.map(() => 0)
    for (let position = 0; position < count; position++) drawn[token(logits, { ...sampling, position })]! += 1 / count
    return drawn
  }
  it('is greedy at temperature 0, ties to the lower id', () => expect(token([1, 5, 5, 2], {})).toBe(1))
  it('leaves rows that are not sampled alone', () => expect(token([1, 2], { flags: 2 })).toBe(-1))
  it('adds the bias before all else', () => expect(token([1, 2, 3], { bias: [[0, 4]] })).toBe(0))
  it('penalises repetition over prompt and output, by sign', () => {
    const history = { history: [2, 1], history_prompt: 1 }
    expect(token([-1, -1.5, 3], { repetition_penalty: 2, ...history })).toBe(2)
    expect(token([-1, -0.6, 3], { repetition_penalty: 4, ...history })).toBe(2)
    expect(token([1, -0.6, 3], { repetition_penalty: 4, ...history })).toBe(0)
    expect(token([-2, -1, -0.9], { repetition_penalty: 2, history: [2], history_prompt: 1 })).toBe(1)
  })
  it('penalises presence and frequency over the output only', () => {
    const history = [0, 0, 0, 1, 1]
    expect(token([3, 2], { presence_penalty: 2, history, history_prompt: 5 })).toBe(0)
    expect(token([3, 4], { presence_penalty: 2, history, history_prompt: 3 })).toBe(0)
    expect(token([3, 4], { frequency_penalty: 0.4, history, history_prompt: 3 })).toBe(1)
    expect(token([3, 4], { frequency_penalty: 0.6, history, history_prompt: 3 })).toBe(0)
  })
  it('draws from the softmax at its temperature', () => {
    const drawn = frequencies([0, 1, 2], { temperature: 2, seed_low: 5 })
    close([drawn], [softmax([0, 0.5, 1])], 1)
  })
  it('repeats with the seed and the position, whatever else', () => {
    const logits = noise(1, 50, 41)[0]!
    const draws = (seed: number) =>
      Array.from({ length: 20 }, (_, position) => token(logits, { temperature: 1, seed_low: seed, position }))
    expect(draws(1)).toEqual(draws(1))
    expect(draws(1)).not.toEqual(draws(2))
  })
  it('walks the ids in order without limits, the ranks with them', () => {
    // position with a small draw: the first candidate wins
    const position = Array.from({ length: 100 }, (_, p) => p).find((p) => uniform(0, 0, p) < 0.05)!
    expect(token([0, 0, 1], { temperature: 1, position })).toBe(0)
    expect(token([0, 0, 1], { temperature: 1, top_k: 2, position })).toBe(2)
  })
  it('top_k keeps k, ties to the lower id', () => {
    const drawn = frequencies([1, 1, 1, 1], { temperature: 1, top_k: 2 }, 400)
    expect(drawn.map((share) => share > 0)).toEqual([true, true, false, false])
  })
  it('top_p keeps the smallest prefix that reaches it', () => {
    const logits = [0.5, 0.3, 0.2].map(Math.log)
    expect(frequencies(logits, { temperature: 1, top_p: 0.45 }, 400).map((share) => share > 0)).toEqual([
      true,
      false,
      false,
    ])
    expect(frequencies(logits, { temperature: 1, top_p: 0.79 }, 400).map((share) => share > 0)).toEqual([
      true,
      true,
      false,
    ])
    expect(frequencies(logits, { temperature: 1, top_p: 0.81 }, 400).map((share) => share > 0)).toEqual([
      true,
      true,
      true,
    ])
  })
  it('min_p keeps what reaches its share of the best', () => {
    const logits = [0.5, 0.3, 0.2].map(Math.log)
    expect(frequencies(logits, { temperature: 1, min_p: 0.5 }, 400).map((share) => share > 0)).toEqual([
      true,
      true,
      false,
    ])
  })
  it('reports log-softmax of the untouched logits', () => {
    const logits = [1, 3, 2, 3]
    const out = pick(logits, { bias: [[0, 9]], top_logprobs: 3 })
    const logs = softmax(logits).map(Math.log)
    expect(out.tokens).toEqual([[0]])
    expect(out.top_tokens![0]).toEqual([1, 3, 2, ...Array(TOP_LOGPROBS - 3).fill(-1)])
    close([out.logprobs![0]!.slice(0, 4)], [[logs[0]!, logs[1]!, logs[3]!, logs[2]!]])
  })
})
