import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { BLOCK_TOKENS } from '../abi/state.ts'
import { compile } from '../index.ts'
import { checkInvariance, mixedRequests, standardVariations, type VariationReport } from './invariance.ts'

const CONTEXT = 128
const VOCAB = 4096
const base = { contextTokens: CONTEXT }
const alone = { name: 'alone', open: { ...base, maxSlots: 1, prefixCache: false }, alone: true } as const
const variations = [
  ...standardVariations(base, CONTEXT / BLOCK_TOKENS),
  { name: 'one thread', open: { ...base, threads: 1, prefixCache: false } },
]

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-invariance-'))
})
afterAll(() => rm(folder, { recursive: true }))

describe.each(['none', 'q8'] as const)('64 mixed requests, quantize %s', (quantize) => {
  let path: string
  beforeAll(async () => {
    const checkpoint = join(packageRoot(), 'checkpoints', 'storyteller-1m')
    path = (await compile(checkpoint, { out: join(folder, `${quantize}.ingot`), quantize })).path
  })
  it.each(variations)('$name', async (variation) => {
    const requests = mixedRequests(64, VOCAB, 100)
    const [, report] = (await checkInvariance(path, requests, [alone, variation])) as [unknown, VariationReport]
    expect(report.happened, 'the variation took place').toBe(true)
    expect(report.differing).toEqual([])
    expect(report.requests).toBe(64)
  })
})
