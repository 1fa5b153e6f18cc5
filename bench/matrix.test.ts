import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, expect, test } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { IngotError } from '../errors.ts'
import { editOf } from '../parity/edit.test-json.ts'
import { benchCells, peerCells } from './matrix.ts'
import { readPerformance } from './performance-part.ts'
import type { BenchReport } from './step.ts'

const folder = mkdtempSync(join(tmpdir(), 'ingot-matrix-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const digest = 'a'.repeat(64)
const spread = { median: 100, low: 90, high: 110, samples: 3 }
const report = {
  ceilings: {},
  prefill: [
    { tokens: 64, batch: 2, tokensPerSecond: 500, peakShare: 0.25, spread: { ...spread, low: 450, high: 550 } },
  ],
  decode: [{ batch: 2, context: 64, tokensPerSecond: 100, readShare: 0.8, spread }],
} as unknown as BenchReport

test('cells are ratios to what was measured in the same run', () => {
  const subject = { package: 'story', planSha256: digest, row: 'cpu', kernels: digest }
  expect(benchCells(subject, report)).toEqual([
    {
      ...subject,
      name: 'story cpu prefill 2 of peak',
      ratio: 0.25,
      measured: 500,
      compared: 2000,
      unit: 'tokens/s',
      low: 450,
      high: 550,
    },
    {
      ...subject,
      name: 'story cpu decode 2 of read',
      ratio: 0.8,
      measured: 100,
      compared: 125,
      unit: 'tokens/s',
      low: 90,
      high: 110,
    },
  ])
  // A backend that does not run on this processor has no ceilings to be compared with.
  const { ceilings, ...without } = report
  expect(benchCells(subject, without as BenchReport)).toEqual([])
})

test('a run beside the peer counts for the code that it measured', async () => {
  const path = join(folder, 'peers.json')
  const range = (median: number) => ({ median, least: median - 1, most: median + 1 })
  const row = {
    model: 'Llama',
    format: 'q4',
    scenario: 'decode',
    ingot: { value: range(40) },
    peer: { value: range(20) },
    ratio: range(2),
  }
  writeFileSync(path, JSON.stringify({ code: digest, kernels: digest, peer: '3', rows: [row] }))
  expect(await peerCells(path, digest)).toMatchObject([
    {
      name: 'Llama q4 decode of node-llama-cpp',
      package: null,
      ratio: 2,
      measured: 40,
      compared: 20,
      low: 39,
      high: 41,
    },
  ])
  await expect(peerCells(path, 'b'.repeat(64))).rejects.toMatchObject({ code: 'SIGNOFF_STALE' })
  writeFileSync(path, JSON.stringify({ rows: [row] }))
  await expect(peerCells(path, digest)).rejects.toMatchObject({ code: 'SIGNOFF_FILE_INVALID' })
  await expect(peerCells(join(folder, 'none.json'), digest)).rejects.toMatchObject({ code: 'FILE_MISSING' })
})

test('a run beside the peer is read or refused with a typed error whatever it says', async () => {
  const path = join(folder, 'odd.json')
  const file = 'bench/results/peers-2026-11-21-intel-xeon-2-llama-3-2-1b-q4.json'
  const { rows, ...run } = JSON.parse(readFileSync(join(packageRoot(), file), 'utf8'))
  const sound = { ...run, code: digest, kernels: digest, rows: rows.slice(0, 2) }
  writeFileSync(path, JSON.stringify(sound))
  expect(await peerCells(path, digest)).toHaveLength(2)
  expect((await readPerformance(path)).groups).toHaveLength(2)
  await fc.assert(
    fc.asyncProperty(editOf(sound), async (edit) => {
      writeFileSync(path, JSON.stringify(edit(sound)))
      // One after the other: a promise that waits for its turn would reject unheard.
      for (const read of [() => peerCells(path, digest), () => readPerformance(path)])
        await read().catch((error: unknown) => expect(error).toBeInstanceOf(IngotError))
    }),
    { numRuns: 150 },
  )
})
