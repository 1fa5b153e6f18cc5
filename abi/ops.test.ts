import { describe, expect, test } from 'vitest'
import { factor, type OpDef, type Size } from './ops/define.ts'
import { MAX_OPCODES, opDef, opName, opNames } from './ops/index.ts'

/** What plans already say. A line is added for a new opcode; none is ever changed or removed. */
const frozen = {
  1: 'embed',
  2: 'gather_rows',
  3: 'pool',
  4: 'rms_norm',
  5: 'layer_norm',
  6: 'linear',
  7: 'logits',
  8: 'rope',
  9: 'attention',
  10: 'glu',
  11: 'activation',
  12: 'residual',
  13: 'multiply',
  14: 'moe',
  15: 'conv_state',
  16: 'ssm_scan',
  17: 'delta_rule',
  18: 'sample',
}

test('ids are unique, in order, within the limit, and never reused', () => {
  const ids = opNames.map((name) => opDef(name).id)
  expect(new Set(ids).size).toBe(ids.length)
  expect(ids).toEqual(ids.toSorted((a, b) => a - b))
  expect(ids[0]).toBe(1)
  expect(ids.at(-1)).toBeLessThanOrEqual(MAX_OPCODES)
  expect(Object.fromEntries(opNames.map((name) => [opDef(name).id, name]))).toEqual(frozen)
  for (const name of opNames) expect(opName(opDef(name).id)).toBe(name)
  expect(opName(0)).toBeUndefined()
  expect(opName(MAX_OPCODES)).toBeUndefined()
})

const sizesOf = (definition: OpDef): Size[] => [
  ...[...Object.values(definition.inputs), ...Object.values(definition.outputs)].map((operand) => operand.width),
  ...Object.values(definition.weights).flatMap((weight) => weight.shape),
  ...Object.values(definition.states).map((state) => state.elements),
]

describe.each(opNames.map(opDef))('$name', (definition) => {
  test('its sizes name its own u32 parameters and have at most 3 factors', () => {
    for (const size of sizesOf(definition)) {
      expect(size.length).toBeLessThanOrEqual(3)
      for (const { param } of size.map(factor))
        if (param !== undefined) expect(definition.params[param]?.type).toBe('u32')
    }
  })

  test('it fits the fixed operand counts of a call', () => {
    const count = (slots: object) => Object.keys(slots).length
    expect(count(definition.inputs)).toBeLessThanOrEqual(8)
    expect(count(definition.outputs)).toBeLessThanOrEqual(4)
    expect(count(definition.weights)).toBeLessThanOrEqual(8)
    expect(count(definition.states)).toBeLessThanOrEqual(2)
    expect(count(definition.outputs)).toBeGreaterThan(0)
  })

  test('a field appended later has a default, and none is newer than the block', () => {
    let last = 0
    for (const { since = 0, default: value } of Object.values(definition.params)) {
      expect(since).toBeGreaterThanOrEqual(last)
      expect(since).toBeLessThanOrEqual(definition.paramVersion[1])
      if (since > 0) expect(value).toBeTypeOf('number')
      last = since
    }
  })
})
