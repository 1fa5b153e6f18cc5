/** The shipped checkpoint, compiled once into build/ for benchmarks and the first run. */
import { existsSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { packageRoot } from '../abi/native.ts'
import { compile } from '../index.ts'
import type { Quantization } from '../models/compile/quantize.ts'

/** Path of the package of storyteller-7m, compiled when it is not there yet. */
export async function storyteller(quantize: Quantization = 'none'): Promise<string> {
  const out = join(packageRoot(), 'build', 'bench', `storyteller-7m-${quantize}.ingot`)
  if (existsSync(out)) return out
  await mkdir(join(out, '..'), { recursive: true })
  await compile(join(packageRoot(), 'checkpoints', 'storyteller-7m'), { out, quantize })
  return out
}
