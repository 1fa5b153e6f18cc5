import { mkdtemp, rm, truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createResult, createStep, resultHeader, type StepView } from '../../abi/step.ts'
import { type BatchInput, packStep } from '../../parity/batch.ts'
import { inputs, inputTensor, type OpCase, outputTokens, prompt } from '../../parity/ops/case.ts'
import { packageCase } from '../../parity/ops/open.ts'
import type { LinkedPackage, Runner } from '../device.ts'
import { referenceBackend } from '../reference.ts'

const limits = { tokens: 64, rows: 64, sequences: 4, blocksPerSequence: 8, history: 8, biases: 4, copies: 4 }
const WIDTH = 3

/** A convolution with state over an embedding, then attention with state over that. */
const stateful: OpCase = {
  op: 'conv_state',
  name: 'stateful',
  vocab: 67,
  tensors: [inputTensor(WIDTH), { name: 'taps', shape: [WIDTH, 4], dtype: 'f32' }],
  build: (graph) => {
    const x = graph.add('conv_state', 'conv', {
      inputs: { x: inputs(graph, WIDTH)[0]! },
      weights: { weight: graph.weight('taps', [WIDTH, 4]) },
      states: { window: { name: 'window', dtype: 'f32' } },
      params: { channels: WIDTH, kernel: 4, history: 3 },
    }).out
    const params = { heads: 1, kv_heads: 1, head_dim: WIDTH, scale: 1 }
    const states = { kv: { name: 'kv', dtype: 'f32' as const } }
    outputTokens(graph, graph.add('attention', 'attention', { inputs: { q: x, k: x, v: x }, states, params }).out)
  },
  steps: [],
  tolerance: 0,
}

let folder: string
let pkg: LinkedPackage
let runner: Runner
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-reference-'))
  pkg = await packageCase(stateful, folder)
  runner = await referenceBackend.open(pkg, { limits, blocks: 9, slots: 5, threads: 0, isa: '' })
})
afterAll(() => rm(folder, { recursive: true }))

async function run(batch: BatchInput, change: (step: StepView) => void = () => {}): Promise<number[]> {
  const { view, offsets } = createResult(limits.rows, { vocab: 0, hidden: WIDTH })
  const step = packStep(createStep(limits), batch, offsets)
  change(step)
  await runner.step(step, view)
  return [...view.hidden.subarray(0, view.header[0]! * WIDTH)]
}
const whole = prompt(40, { blocks: [1, 2] })
const part = (from: number, to: number, rest = {}) => ({
  ...whole,
  position: from,
  tokens: whole.tokens.slice(from, to),
  ...rest,
})

describe('states', () => {
  it('carry a sequence from step to step', async () => {
    const once = await run({ sequences: [whole], resets: [1] })
    const head = await run({ sequences: [part(0, 33)], resets: [1] })
    const tail = await run({ sequences: [part(33, 40)] })
    expect([...head, ...tail]).toEqual(once)
  })
  it('keep slots and blocks apart, in any order', async () => {
    const other = { ...whole, slot: 2, blocks: [4, 3] }
    const once = await run({ sequences: [whole], resets: [1] })
    const both = await run({ sequences: [other, part(0, 10)], resets: [1, 2] })
    expect(both).toEqual([...once, ...once.slice(0, 10 * WIDTH)])
  })
  it('start from zero only after a reset', async () => {
    const fresh = await run({ sequences: [whole], resets: [1] })
    expect(await run({ sequences: [whole] })).not.toEqual(fresh)
    expect(await run({ sequences: [whole], resets: [1] })).toEqual(fresh)
  })
  it('copy blocks before the first instruction', async () => {
    const once = await run({ sequences: [whole], resets: [1] })
    await run({ sequences: [part(0, 35)], resets: [1] })
    const tail = await run({ sequences: [part(35, 40, { blocks: [1, 7] })], copies: [[2, 7]] })
    expect(tail).toEqual(once.slice(35 * WIDTH))
  })
})

describe('steps', () => {
  const batch = { sequences: [part(0, 5)], resets: [1] }
  it('count the launches of a step, whatever the batch', async () => {
    const launches = async (sequences: BatchInput['sequences']) => {
      const { view } = createResult(limits.rows, { vocab: 0, hidden: 0 })
      await runner.step(packStep(createStep(limits), { sequences }), view)
      return [view.header[resultHeader.word.launches], view.header[resultHeader.word.slot_launches]]
    }
    expect(await launches([part(0, 5)])).toEqual([pkg.plan.instructions.length, 0])
    expect(await launches([part(0, 5), part(0, 9, { slot: 2, blocks: [5] })])).toEqual([
      pkg.plan.instructions.length,
      0,
    ])
  })
  it('let timers run between instructions', async () => {
    let turns = 0
    const timer = setInterval(() => turns++, 0)
    for (let i = 0; i < 50; i++) await run(batch)
    clearInterval(timer)
    expect(turns).toBeGreaterThan(0)
  })
  it.each<[string, (step: StepView) => void]>([
    ['token_ids', (step) => (step.tokenIds[2] = 67)],
    ['token_ids', (step) => (step.tokenIds[2] = -1)],
    ['positions', (step) => (step.positions[1] = 9)],
    ['token_sequence', (step) => (step.tokenSequence[1] = 1)],
    ['sequence_start', (step) => (step.sequenceStart[1] = 6)],
    ['sequence_length', (step) => (step.sequenceLength[0] = 100_000)],
    ['sequence_slot', (step) => (step.sequenceSlot[0] = 5)],
    ['block_table', (step) => (step.blockTable[0] = 9)],
    ['row_token', (step) => (step.rowToken[0] = 5)],
    ['reset_slots', (step) => (step.resetSlots[0] = -1)],
    ['sampling', (step) => (step.samplingF32[6] = 0)],
    ['sampling', (step) => (step.sampling[12] = 3)],
  ])('refuse an index of %s that reaches outside', async (name, change) => {
    await expect(run(batch, change)).rejects.toMatchObject({
      code: 'STEP_FAILED',
      details: { where: expect.stringContaining(name) },
    })
  })
})

describe('packages', () => {
  const options = { limits, blocks: 2, slots: 2, threads: 0, isa: '' }
  it('with instructions of a newer version are refused, all at once', async () => {
    const instructions = pkg.plan.instructions.map((each) => ({ ...each, version: 9 }))
    const newer = { ...pkg, plan: { ...pkg.plan, instructions } }
    const opened = referenceBackend.open(newer, options)
    await expect(opened).rejects.toMatchObject({ code: 'LINK_GAPS' })
    await expect(opened).rejects.toThrow(/conv_state.*attention/)
  })
  it('without their weights are refused', async () => {
    const open = (tensors: LinkedPackage['tensors']) => referenceBackend.open({ ...pkg, tensors }, options)
    await expect(open(new Map())).rejects.toMatchObject({ code: 'TENSOR_MISSING' })
    const moved = new Map([...pkg.tensors].map(([name, at]) => [name, { ...at, file: join(folder, 'absent') }]))
    await expect(open(moved)).rejects.toMatchObject({ code: 'FILE_UNREADABLE' })
    const cut = await packageCase({ ...stateful, name: 'cut' }, folder)
    await truncate([...cut.tensors.values()][0]!.file, 100)
    await expect(referenceBackend.open(cut, options)).rejects.toMatchObject({ code: 'FILE_TRUNCATED' })
  })
  it('give their memory back', async () => {
    const opened = await referenceBackend.open(pkg, options)
    expect(opened.memory().weightsBytes).toBe(8 * (67 * WIDTH + WIDTH * 4))
    opened.dispose()
    opened.dispose()
    expect(opened.memory().weightsBytes).toBe(0)
    const { view } = createResult(1, { vocab: 0, hidden: 0 })
    await expect(opened.step(createStep(limits), view)).rejects.toMatchObject({ code: 'MODEL_DISPOSED' })
  })
})
