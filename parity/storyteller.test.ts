import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { compile, open } from '../index.ts'
import { runTasks } from './tasks.ts'

const checkpoint = join(packageRoot(), 'checkpoints', 'storyteller-7m')

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-storyteller-'))
})
afterAll(() => rm(folder, { recursive: true }))

/** transformers answers 358 in bf16 on a GPU; near-ties fall either way, and q8 may cost a few more. */
it.each([
  ['none', 350],
  ['q8', 345],
  ['q4', 346],
] as const)('storyteller-7m, quantize %s, answers at least %i of 400 tasks exactly', async (quantize, least) => {
  const { path } = await compile(checkpoint, { out: join(folder, `${quantize}.ingot`), quantize })
  await using model = await open(path, { maxSlots: 32, contextTokens: 256 })
  const { correct, total } = await runTasks(model, join(checkpoint, 'tasks.json'))
  expect(total).toBe(400)
  expect(correct).toBeGreaterThanOrEqual(least)
})
