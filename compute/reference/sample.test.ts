import { describe, expect, it } from 'vitest'
import { TOP_LOGPROBS } from '../../abi/ops/sample.ts'
import type { SampleInput } from '../../parity/batch.ts'
import { philox, uniform } from './philox.ts'
import { close, noise, rowsOf, run, sequence, softmax, step } from './run.test-op.ts'

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
