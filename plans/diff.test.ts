import { expect, test } from 'vitest'
import { diffPlans, printDiff } from './diff.ts'
import { decoderPlan, type MutablePlan, menageriePlan } from './example.test-plan.ts'

const changed = (spoil: (plan: MutablePlan) => void) => {
  const plan = decoderPlan()
  spoil(plan)
  return printDiff(diffPlans(decoderPlan(), plan))
}

test('a plan does not differ from itself', () => {
  expect(printDiff(diffPlans(menageriePlan(), menageriePlan()))).toBe('no difference\n')
})

test('a parameter', () => {
  const text = changed((plan) => {
    const attention = plan.instructions.find(({ label }) => label === 'layers.1.attention')!
    attention.params = { ...attention.params, window: 64 }
  })
  expect(text).toBe('instructions\n  ~ layers.1.attention attention\n    param window: 0 -> 64\n')
})

test('a layer more changes no instruction of the others, though every index after it moves', () => {
  const { instructions, tensors, states, registers } = diffPlans(decoderPlan('bf16', 2), decoderPlan('bf16', 3))
  expect(states.added).toEqual(['layers.2.kv'])
  expect(tensors.changed).toEqual([])
  expect(instructions.added).toHaveLength(8)
  expect(instructions.removed).toEqual([])
  expect(instructions.changed.map(({ key }) => key)).toEqual(['rows gather_rows'])
  expect(instructions.reordered).toBe(false)
  expect(registers.changed.map(({ key }) => key)).toContain('layers.1.down.out')
})

test('another dtype', () => {
  const { tensors } = diffPlans(decoderPlan('bf16'), decoderPlan('i8'))
  expect(tensors.added).toContain('layers.0.qkv.scales')
  expect(tensors.changed.find(({ key }) => key === 'layers.0.qkv')!.fields).toEqual([
    { field: 'dtype', before: 'bf16', after: 'i8' },
    { field: 'layout', before: 'tile16x2', after: 'tile16x4' },
    { field: 'bytes', before: '2048', after: '1024' },
  ])
})

test('the header, a register, an operand, the order', () => {
  expect(changed((plan) => void (plan.maxContext = 256))).toBe('plan\n    maxContext: 128 -> 256\n')
  expect(changed((plan) => void (plan.registers[2]!.offset = 640))).toContain('offset: 128 -> 640')
  expect(changed((plan) => void (plan.instructions[2]!.inputs[0]!.register = 0))).toContain(
    'x: layers.0.norm1.out[0:16], last read -> embed.out[0:16], last read',
  )
  expect(changed((plan) => void plan.tensors.reverse())).toContain('tensors\n  in another order')
  expect(changed((plan) => void (plan.instructions[1]!.weights[0] = undefined))).toContain(
    'weight: @layers.0.norm1 -> (absent)',
  )
})

test('entries of one name are told apart', () => {
  const text = changed((plan) => {
    for (const i of [1, 5]) plan.instructions[i]!.label = 'norm'
  })
  expect(text).toContain('+ norm rms_norm (2)')
})
