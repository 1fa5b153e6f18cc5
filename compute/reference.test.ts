import { describe, expect, it } from 'vitest'
import { activations } from '../abi/ops/define.ts'
import { opNames } from '../abi/ops/index.ts'
import { erf } from './reference/pointwise.ts'
import { close, dotted, noise, rowsOf, run, sequence, softmax, step, tokens, weight } from './reference/run.test-op.ts'
import { referenceTable } from './reference.ts'

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
