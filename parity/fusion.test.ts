import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { cpuBackend } from '../compute/cpu-backend.ts'
import type { LinkedPackage } from '../compute/device.ts'
import { referenceBackend } from '../compute/reference.ts'
import { type FusionChoice, fusionNames } from '../models/compile/fuse.ts'
import { compile } from '../models/compile.ts'
import { readPackage } from '../models/package.ts'
import { prompt } from './ops/case.ts'
import { distance, runSteps } from './ops/compare.ts'
import { goldenTolerances } from './tolerances.ts'

const models = ['llama_untied_bias', 'mistral', 'qwen3'] as const

let folder: string
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ingot-fusion-'))
})
afterAll(() => rm(folder, { recursive: true }))

let count = 0
async function compiled(model: string, fusions: FusionChoice): Promise<LinkedPackage> {
  const out = join(folder, `${count++}.ingot`)
  await compile(join(packageRoot(), 'parity', 'goldens', model), { out, fusions })
  return readPackage(out, { integrity: 'structure' })
}

const steps = [
  { sequences: [prompt(33), prompt(5, { slot: 2, blocks: [9] })] },
  { sequences: [prompt(1, { position: 33 }), prompt(1, { slot: 2, blocks: [9], position: 5 })] },
]
const size = ({ plan }: LinkedPackage) => plan.instructions.length

/** Fusions whose kernels promise the bits of the operations they replace. */
const exactOnCpu = new Set<string>(['qkv', 'gate_up', 'glu', 'residual', 'norm'])

describe.each(fusionNames)('fusion %s', (name) => {
  it('saves instructions somewhere', async () => {
    // a fusion may need another to have gone before it, so it is taken away from all rather than added to none
    const saved = await Promise.all(
      models.map(async (model) => size(await compiled(model, { [name]: false })) - size(await compiled(model, {}))),
    )
    expect(Math.max(...saved)).toBeGreaterThan(0)
  })
  it.each(models)('computes the same: %s', async (model) => {
    const [unfused, fused] = [await compiled(model, { [name]: false }), await compiled(model, {})]
    const exact = await runSteps(referenceBackend, unfused, steps)
    // the reference adds in the same order either way
    expect(distance(exact, await runSteps(referenceBackend, fused, steps))).toBe(0)
    const [a, b] = [await runSteps(cpuBackend, unfused, steps), await runSteps(cpuBackend, fused, steps)]
    expect(distance(a, b)).toBeLessThanOrEqual(exactOnCpu.has(name) ? 0 : goldenTolerances.float.bf16.logits)
  })
})
