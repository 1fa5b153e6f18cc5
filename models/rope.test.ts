import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { readRope } from './config.ts'
import { computeRope } from './rope.ts'

/** inv_freq and attention factors that transformers 5.18 computes from the same parameters. */
interface Golden {
  readonly headDim: number
  readonly context: number
  readonly rope_parameters: Readonly<Record<string, unknown>>
  readonly attentionFactor: number
  readonly invFreq: readonly number[]
}
const goldens = JSON.parse(
  readFileSync(fileURLToPath(new URL('./fixtures/rope.json', import.meta.url)), 'utf8'),
) as Golden[]

const rope = (config: object, headDim: number, context: number) =>
  computeRope(readRope(config, context, headDim, 'config.json'), headDim, context)

describe('inv_freq and attention factor', () => {
  test.each(goldens.map((golden) => [JSON.stringify(golden.rope_parameters), golden] as const))('%s', (_, golden) => {
    const { invFreq, attentionFactor } = rope(golden, golden.headDim, golden.context)
    expect(invFreq).toHaveLength(golden.invFreq.length)
    // float32 arithmetic in the same order: one unit in the last place of slack for powf.
    for (const [i, expected] of golden.invFreq.entries())
      expect(Math.abs(invFreq[i]! / expected - 1)).toBeLessThan(2.5e-7)
    expect(attentionFactor).toBeCloseTo(golden.attentionFactor, 12)
  })

  test('default is theta^(-2 i / dim)', () => {
    const { invFreq, attentionFactor, dim } = rope({ rope_theta: 10_000 }, 8, 64)
    expect([...invFreq].map((x) => Number(x.toPrecision(6)))).toEqual([1, 0.1, 0.01, 0.001])
    expect([attentionFactor, dim]).toEqual([1, 8])
  })

  test('a partial factor rotates the start of the head', () => {
    expect(rope({ partial_rotary_factor: 0.5 }, 16, 64)).toMatchObject({ dim: 8 })
  })
})

describe('spellings', () => {
  const scaling = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 }
  const v5 = { rope_parameters: { rope_type: 'llama3', rope_theta: 500_000, ...scaling } }
  test.each([
    ['transformers 4', { rope_theta: 500_000, rope_scaling: { rope_type: 'llama3', ...scaling } }],
    ['transformers 4, type', { rope_theta: 500_000, rope_scaling: { type: 'llama3', ...scaling } }],
    ['a null rope_scaling beside rope_parameters', { ...v5, rope_scaling: null }],
  ])('%s', (_, config) => {
    expect(readRope(config, 512, 16, 'c')).toEqual(readRope(v5, 512, 16, 'c'))
  })

  test.each([
    ['dynamic', { rope_scaling: { type: 'dynamic', factor: 2 } }, 'ROPE_UNSUPPORTED'],
    ['longrope', { rope_parameters: { rope_type: 'longrope' } }, 'ROPE_UNSUPPORTED'],
    ['linear without factor', { rope_scaling: { type: 'linear' } }, 'CONFIG_INVALID'],
    ['a factor of zero', { rope_scaling: { type: 'linear', factor: 0 } }, 'CONFIG_INVALID'],
    ['a theta of text', { rope_theta: '1e4' }, 'CONFIG_INVALID'],
    ['high at or below low', { rope_scaling: { type: 'llama3', ...scaling, high_freq_factor: 1 } }, 'CONFIG_INVALID'],
    ['one rope a layer type', { rope_parameters: { full_attention: { rope_type: 'default' } } }, 'CONFIG_INVALID'],
    ['an odd rotated size', { partial_rotary_factor: 0.2 }, 'CONFIG_INVALID'],
    ['a list', { rope_scaling: [] }, 'CONFIG_INVALID'],
  ])('%s is refused', (_, config, code) => {
    expect(() => readRope(config, 512, 16, 'c')).toThrow(expect.objectContaining({ code }))
  })
})
