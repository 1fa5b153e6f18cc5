import { describe, expect, test } from 'vitest'
import { IngotError, PlanError } from '../errors.ts'
import { decoderPlan, menageriePlan } from '../plans/example.test-plan.ts'
import { verifyPlan } from '../plans/verify.ts'
import { writePlan } from '../plans/write.ts'
import { backendNames, backendOf, backends } from './backends.ts'
import { cpuTable } from './cpu.ts'
import { cudaTable, deviceGaps } from './cuda.ts'
import { link, linkGaps } from './link.ts'
import { nullTable } from './null.ts'

describe('linkGaps', () => {
  test('finds none where the table has everything', () => {
    expect(linkGaps(decoderPlan('bf16'), cpuTable)).toEqual([])
    expect(linkGaps(decoderPlan('i8'), cpuTable)).toEqual([])
    expect(linkGaps(decoderPlan('i4'), cpuTable)).toEqual([])
    expect(linkGaps(menageriePlan(), nullTable)).toEqual([])
  })

  test('finds none in fp8 whose embedding and head are floats, as packages of before have it', () => {
    const plan = decoderPlan('e4m3', 1, 'bf16')
    verifyPlan(writePlan(plan), 'fp8')
    expect(linkGaps(plan, cudaTable)).toEqual([])
  })

  test('says what to do about a dtype that a kernel does not read', () => {
    expect(linkGaps(decoderPlan('e4m3', 1), cpuTable)).toEqual([
      'linear: weight weight of dtype e4m3; the kernel reads f32, f16, bf16, i8, i4: no CPU product of fp8 yet; run it on cuda or reference, or compile with q8 (layers.0.qkv and 3 more)',
    ])
  })

  test('of a device come beside those of the table', () => {
    const plan = decoderPlan('e4m3', 1)
    expect(deviceGaps(plan, 'NVIDIA L40S', '8.9')).toEqual([])
    expect(deviceGaps(plan, 'NVIDIA H200', '9.0')).toEqual([])
    expect(deviceGaps(plan, 'NVIDIA B200', '10.0')).toEqual([])
    expect(deviceGaps(decoderPlan('i8', 1), 'NVIDIA A100', '8.0')).toEqual([])
    const [gap, ...none] = deviceGaps(plan, 'NVIDIA A100', '8.0')
    expect(none).toEqual([])
    expect(gap).toMatch(
      /^compute_capability_below_sm89: .*layers\.0\.qkv and \d more.* need .* 8\.9; NVIDIA A100 has 8\.0/,
    )
    const old = { ...cudaTable, glu: { unsupported: 'gone' } }
    expect(() => link('cuda', old, { path: 'x.ingot', plan }, {}, [gap!])).toThrow(
      /^backend "cuda" cannot run x\.ingot: glu: gone.*; compute_capability_below_sm89: /,
    )
  })

  test('reports every unsupported opcode at once, with its reason', () => {
    const gaps = linkGaps(menageriePlan(), cpuTable)
    for (const op of ['layer_norm', 'conv_state', 'ssm_scan', 'delta_rule', 'moe'])
      expect(gaps.filter((gap) => gap.startsWith(`${op}: no topology uses it yet`))).toHaveLength(1)
  })

  test('reports versions, dtypes and limits, once for all instructions that share the gap', () => {
    const plan = decoderPlan('bf16', 3)
    for (const { op, params } of plan.instructions) if (op === 'attention') params.head_dim = 513
    plan.instructions[0]!.version = 2
    const gaps = linkGaps(plan, {
      ...cpuTable,
      linear: { symbol: 'linear', version: 1, weights: ['f32', 'i8'] },
      attention: { ...cpuTable.attention, states: ['f32'] },
    })
    expect(gaps).toEqual([
      'embed: version 2; the kernel implements 1 (embed)',
      'linear: weight weight of dtype bf16; the kernel reads f32, i8 (layers.0.qkv and 11 more)',
      'attention: state of dtype bf16; the kernel reads f32 (layers.0.attention and 2 more)',
      'attention: head_dim 513; the kernel takes at most 512 (layers.0.attention and 2 more)',
    ])
  })

  test('refuses a kernel that is launched once a slot, unless that is allowed', () => {
    const table = { ...cpuTable, glu: { ...cpuTable.glu, perSlot: 'no batched kernel' } }
    const plan = decoderPlan('bf16', 2)
    expect(linkGaps(plan, table)).toEqual([
      expect.stringMatching(/^glu: launched once a slot: no batched kernel; .*allowPerSlot.* and 1 more\)$/),
    ])
    expect(linkGaps(plan, table, { allowPerSlot: true })).toEqual([])
  })

  test('throws LINK_GAPS with all of them', () => {
    const refused = () => link('cpu', cpuTable, { path: 'x.ingot', plan: menageriePlan() })
    expect(refused).toThrow(PlanError)
    expect(refused).toThrow(/^backend "cpu" cannot run x\.ingot: .*moe.*$/)
  })
})

describe('backends', () => {
  test('say their names, and why they are not available', () => {
    for (const name of backendNames) expect(backends[name].name).toBe(name)
    expect(backends.triton.unavailable()).toEqual({ code: 'not_built', reason: 'this build has no Triton kernels' })
    expect(backendOf('null')).toBe(backends.null)
  })

  test('refuse by typed errors', async () => {
    const code = (run: () => unknown) => {
      try {
        run()
      } catch (error) {
        return (error as IngotError).code
      }
      return undefined
    }
    expect(code(() => backendOf('gpu'))).toBe('BACKEND_UNKNOWN')
    expect(code(() => backendOf('toString'))).toBe('BACKEND_UNKNOWN')
    expect(code(() => backendOf('triton'))).toBe('BACKEND_UNAVAILABLE')
    await expect(backends.triton.open(undefined as never, undefined as never)).rejects.toBeInstanceOf(IngotError)
  })
})
