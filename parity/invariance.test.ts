/** Bits of 64 mixed requests under every variation, on every dtype and instruction set. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addon, packageRoot } from '../abi/native.ts'
import { BLOCK_TOKENS } from '../abi/state.ts'
import { compile } from '../index.ts'
import { checkInvariance, mixedRequests, standardVariations, type VariationReport } from './invariance.ts'

const CONTEXT = 128
const base = { contextTokens: CONTEXT }
const folder = mkdtempSync(join(tmpdir(), 'ingot-invariance-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const cases = [
  { checkpoint: 'checkpoints/storyteller-1m', quantize: 'none', state: 'checkpoint', vocab: 4096 },
  { checkpoint: 'checkpoints/storyteller-1m', quantize: 'q8', state: 'checkpoint', vocab: 4096 },
  { checkpoint: 'checkpoints/storyteller-1m', quantize: 'q4', state: 'checkpoint', vocab: 4096 },
  { checkpoint: 'parity/goldens/mistral', quantize: 'none', state: 'checkpoint', vocab: 515 },
  { checkpoint: 'parity/goldens/mistral', quantize: 'none', state: 'q8', vocab: 515 },
  { checkpoint: 'parity/goldens/qwen3_f32_bias_multi_head', quantize: 'none', state: 'checkpoint', vocab: 131 },
  { checkpoint: 'parity/goldens/llama_f16_linear_one_kv_head', quantize: 'none', state: 'checkpoint', vocab: 131 },
] as const

describe.each(cases)('$checkpoint, $quantize, state $state', ({ checkpoint, quantize, state, vocab }) => {
  const path = join(folder, `${checkpoint.replaceAll('/', '-')}-${quantize}-${state}.ingot`)
  const requests = mixedRequests(64, vocab, 100)
  const differing = (reports: readonly VariationReport[]) =>
    reports.flatMap(({ name, differing: list }) => (list.length > 0 ? [{ name, list }] : []))

  beforeAll(() => compile(join(packageRoot(), checkpoint), { out: path, quantize, state }))

  it('gives the same bits alone, batched, chunked, from the prefix cache and preempted', async () => {
    const reports = await checkInvariance(path, requests, standardVariations(base, CONTEXT / BLOCK_TOKENS))
    expect(differing(reports)).toEqual([])
    expect(reports.filter(({ happened }) => !happened)).toEqual([])
    expect(new Set(reports.map(({ launchesPerStep }) => launchesPerStep)).size).toBe(1)
  })

  it('gives the same bits on every instruction set and with any number of threads', async () => {
    const variations = addon()
      .machine()
      .available.flatMap((isa) =>
        [1, 2, 3].map((threads) => ({ name: `${isa}, ${threads} threads`, open: { ...base, isa, threads } })),
      )
    const reports = await checkInvariance(path, requests.slice(0, 16), variations)
    expect(reports.length).toBeGreaterThanOrEqual(3)
    expect(differing(reports)).toEqual([])
  })
})
