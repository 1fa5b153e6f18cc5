/** Packages of one checkpoint at every precision, from tensors whose sizes are no multiples of what files align to. */
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { packageAt, precisionNames } from './precisions.ts'

const matrices = { bf16: 'bf16', f16: 'f16', f32: 'f32', q8: 'i8', q4: 'i4', fp8: 'e4m3', 'q8-state': 'bf16' }

test.each(precisionNames)('%s', async (precision) => {
  const folder = mkdtempSync(join(tmpdir(), 'ingot-precisions-'))
  const { plan } = await packageAt('parity/goldens/llama_f16_linear_one_kv_head', precision, folder)
  expect(plan.tensors.map(({ dtype }) => dtype)).toContain(matrices[precision])
})
