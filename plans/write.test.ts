import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ByteBuffer } from 'flatbuffers'
import { describe, expect, test } from 'vitest'
import { Plan } from '../abi/gen/plan_generated.ts'
import { packageRoot } from '../abi/native.ts'
import { decoderPlan, type MutablePlan, menageriePlan } from './example.test-plan.ts'
import { digestOf } from './hash.ts'
import { readPlan } from './read.ts'
import { writePlan } from './write.ts'

const plans = {
  'decoder.bin': () => decoderPlan(),
  'decoder-q8.bin': () => decoderPlan('i8', 1),
  'decoder-q4.bin': () => decoderPlan('i4', 1),
  'decoder-fp8.bin': () => decoderPlan('e4m3', 1),
  'menagerie.bin': () => menageriePlan(),
}

describe.each(Object.entries(plans))('%s', (file, build) => {
  test('reads back what was written', () => {
    expect(readPlan(writePlan(build()), file)).toEqual(build())
  })

  test('the same plan gives the same bytes', () => {
    expect(writePlan(build())).toEqual(writePlan(build()))
  })

  test('bytes equal the committed ones, which native/test/verify_test.cc reads too', () => {
    const path = join(packageRoot(), 'native/test/plans', file)
    if (process.env.INGOT_UPDATE_GOLDENS) writeFileSync(path, writePlan(build()))
    expect(digestOf(writePlan(build()))).toBe(digestOf(readFileSync(path)))
  })
})

test('writing what was read gives the same bytes', () => {
  const bytes = writePlan(decoderPlan())
  expect(writePlan(readPlan(bytes, 'decoder'))).toEqual(bytes)
})

test('the order in which outputs are named does not matter', () => {
  const plan = decoderPlan()
  const outputs = Object.fromEntries(Object.entries(plan.outputs).toReversed())
  expect(digestOf(writePlan({ ...plan, outputs }))).toBe(digestOf(writePlan(plan)))
})

test('reads bytes at any offset of their buffer', () => {
  const bytes = writePlan(decoderPlan())
  const shifted = new Uint8Array(bytes.length + 3)
  shifted.set(bytes, 3)
  expect(readPlan(shifted.subarray(3), 'shifted')).toEqual(decoderPlan())
})

function unfrozen(value: unknown, path: string): string[] {
  if (typeof value !== 'object' || value === null) return []
  const inside = Object.entries(value).flatMap(([key, each]) => unfrozen(each, `${path}.${key}`))
  return Object.isFrozen(value) ? inside : [path, ...inside]
}

test('everything that was read is frozen', () => {
  expect(unfrozen(readPlan(writePlan(menageriePlan()), 'menagerie'), 'plan')).toEqual([])
})

test('each ParamBlock lies at a multiple of 8, in the blob and in the file', () => {
  const bytes = writePlan(decoderPlan())
  const plan = Plan.getRootAsPlan(new ByteBuffer(bytes))
  expect((plan.paramsArray()!.byteOffset - bytes.byteOffset) % 8).toBe(0)
  for (let i = 0; i < plan.instructionsLength(); i++) expect(plan.instructions(i)!.paramsOffset() % 8).toBe(0)
})

test.each([
  ['a register width of 2^32', (plan: MutablePlan) => void (plan.registers[0]!.width = 2 ** 32)],
  ['a fraction of a byte', (plan: MutablePlan) => void (plan.tensors[0]!.bytes = 0.5)],
  ['a negative offset', (plan: MutablePlan) => void (plan.registers[1]!.offset = -64)],
  ['a vocabulary of 2^32', (plan: MutablePlan) => void (plan.vocab = 2 ** 32)],
])('refuses to write %s', (_, spoil) => {
  const plan = decoderPlan()
  spoil(plan)
  expect(() => writePlan(plan)).toThrow(expect.objectContaining({ code: 'PLAN_INVALID' }))
})
