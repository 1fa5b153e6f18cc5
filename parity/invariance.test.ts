/** Bits of 64 mixed requests under every variation, on every dtype and instruction set. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { addon, packageRoot } from '../abi/native.ts'
import { BLOCK_TOKENS } from '../abi/state.ts'
import { compile, open } from '../index.ts'
import { checkInvariance, fingerprint, mixedRequests, standardVariations, type VariationReport } from './invariance.ts'

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

  it('gives the same bits where steps run ahead of ends, preemptions and cancellations', async () => {
    const blocks = CONTEXT / BLOCK_TOKENS + 6
    const run = async (pipelined: boolean) => {
      await using model = await open(path, { ...base, maxSlots: 6, blocks, pipelined })
      const prints = await Promise.all(
        requests.map(
          async ({ ids, options: { repetitionPenalty, presencePenalty, frequencyPenalty, ...plain } }, i) => {
            const stopTokens = i % 3 ? [] : Array.from({ length: vocab / 8 }, (_, k) => k * 8 + (i % 8))
            const generation = model.generate(ids, { ...plain, stopTokens })
            if (i % 5 > 0) return fingerprint(await generation.result())
            let events = 0
            for await (const _ of generation) if (++events > i % 7) break
            return 'cancelled'
          },
        ),
      )
      return { prints, stats: model.stats() }
    }
    const [plain, ahead] = [await run(false), await run(true)]
    expect(ahead.prints).toEqual(plain.prints)
    expect(plain.stats).toMatchObject({ stepsAhead: 0, running: 0, failedSteps: 0 })
    expect(ahead.stats).toMatchObject({ running: 0, failedSteps: 0, blocks: { used: 0 } })
    expect(ahead.stats.stepsAhead).toBeGreaterThan(50)
    expect(ahead.stats.discardedTokens).toBeGreaterThan(5)
    expect(ahead.stats.preemptions).toBeGreaterThan(0)
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
