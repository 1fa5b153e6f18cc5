/** The negative control of the invariance check: a product whose split depends on the batch must be caught. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, it, vi } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { compile } from '../index.ts'
import { checkInvariance, mixedRequests, type Variation } from './invariance.ts'

const split = vi.hoisted(() => ({ byBatch: false }))

// In float32, so that the order of a sum shows; split after as many products as the step has rows.
vi.mock(import('../compute/reference/kernel.ts'), async (original) => {
  const module = await original()
  const sum = (a: Float64Array, i: number, b: Float64Array, j: number, from: number, to: number) => {
    let total = 0
    for (let k = from; k < to; k++) total = Math.fround(total + Math.fround(a[i + k]! * b[j + k]!))
    return total
  }
  const dot: typeof module.dot = (a, i, b, j, count) => {
    const at = split.byBatch ? Math.min(count, Math.round(a.length / count)) : 0
    return Math.fround(sum(a, i, b, j, 0, at) + sum(a, i, b, j, at, count))
  }
  return { ...module, dot }
})

const folder = mkdtempSync(join(tmpdir(), 'ingot-control-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

it('passes a fixed split and fails one that follows the batch', async () => {
  const path = join(folder, 'llama.ingot')
  await compile(join(packageRoot(), 'parity/goldens/llama'), { out: path })
  const requests = mixedRequests(8, 515, 20)
  const reference = { backend: 'reference', contextTokens: 64, prefixCache: false }
  const variations: Variation[] = [
    { name: 'alone', open: { ...reference, maxSlots: 1 }, alone: true },
    { name: 'batched', open: { ...reference, maxSlots: 8 } },
  ]
  const differing = async () => (await checkInvariance(path, requests, variations))[1]!.differing.length
  expect(await differing()).toBe(0)
  split.byBatch = true
  expect(await differing()).toBeGreaterThan(0)
})
