import { expect, test } from 'vitest'
import { createResult, createStep, ROW_RESULT_BYTES, sampleFlags, sampleParams, stepHeader } from '../abi/step.ts'
import { decoderPlan } from '../plans/example.test-plan.ts'
import { backends } from './backends.ts'

const limits = { tokens: 4, rows: 4, sequences: 4, blocksPerSequence: 1, history: 0, biases: 0, copies: 0 }
const plan = decoderPlan()
const open = () =>
  backends.null.open(
    { path: 'x', plan, planBytes: new Uint8Array(), tensors: new Map() },
    { limits, blocks: 5, slots: 5, threads: 0, isa: '' },
  )

/** Tokens chosen for rows of one token each. */
async function tokens(rows: readonly { seed: number; position: number; last: number }[]): Promise<number[]> {
  const runner = await open()
  const step = createStep(limits)
  const { view } = createResult(limits.rows, { vocab: 0, hidden: 0 })
  step.header[stepHeader.word.rows] = rows.length
  for (const [row, { seed, position, last }] of rows.entries()) {
    step.rowToken[row] = row
    step.positions[row] = position
    step.tokenIds[row] = last
    step.sampling[(row * sampleParams.bytes) / 4 + sampleParams.word.seed_low] = seed
    step.sampling[(row * sampleParams.bytes) / 4 + sampleParams.word.flags] = sampleFlags.sample
  }
  await runner.step(step, view)
  runner.dispose()
  return rows.map((_, row) => view.rows[(row * ROW_RESULT_BYTES) / 4]!)
}

test('a token depends on seed, position and last token, not on the batch', async () => {
  const row = { seed: 1, position: 5, last: 7 }
  const [alone] = await tokens([row])
  expect(await tokens([{ seed: 2, position: 1, last: 1 }, row, row])).toEqual([expect.any(Number), alone, alone])
  const many = await Promise.all(Array.from({ length: 50 }, (_, position) => tokens([{ ...row, position }])))
  expect(new Set(many.flat()).size).toBeGreaterThan(15)
  for (const [token] of many) expect(token! >= 0 && token! < plan.vocab).toBe(true)
})

test('timers run between steps, and a disposed runner refuses', async () => {
  const runner = await open()
  const step = createStep(limits)
  const { view } = createResult(limits.rows, { vocab: 0, hidden: 0 })
  let fired = false
  setTimeout(() => (fired = true), 1)
  const deadline = performance.now() + 2000
  while (!fired && performance.now() < deadline) await runner.step(step, view)
  expect(fired).toBe(true)
  runner.dispose()
  await expect(runner.step(step, view)).rejects.toMatchObject({ code: 'MODEL_DISPOSED' })
})
