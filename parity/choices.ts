/**
 * In the deterministic mode a choice of kernels may not change a bit. The measured choices of a package are replaced by
 * random ones, of every kernel that can serve a launch, and the requests must not notice.
 */
import { backendOf } from '../compute/backends.ts'
import { rowsOf, tunables } from '../compute/tuning.ts'
import { fail } from '../errors.ts'
import { type ModelOptions, type OpenOptions, open } from '../index.ts'
import { capacity } from '../inference/capacity.ts'
import { readPackage } from '../models/package.ts'
import { type TuningEntry, writeTuning } from '../models/tuning.ts'
import { checkInvariance, type MixedRequest, type Variation, type VariationReport } from './invariance.ts'
import { random } from './random.ts'

const noTime = { low: 0, median: 0, high: 0 }

/** Writes a random choice for every launch that a model of such sizes can make, and answers how many are not the rules'. */
export async function chooseAtRandom(
  path: string,
  backend: string,
  sizes: ModelOptions,
  { deterministic, seed }: { readonly deterministic: boolean; readonly seed: number },
): Promise<number> {
  const device = backendOf(backend)
  if (!device.identity) throw fail('TUNING_MISSING', { backend })
  const pkg = await readPackage(path, { integrity: 'auto' })
  const { limits, blocks, slots, contextTokens } = capacity(pkg.plan, sizes, path)
  const runner = await device.open(pkg, { limits, blocks, slots, threads: 0, isa: '', deterministic })
  const next = random(seed)
  const entries: TuningEntry[] = []
  for (const { opcode, dtype, shape, instructions, space } of tunables(pkg.plan))
    for (let rows = 1; rowsOf(rows, space, limits) > 0; rows *= 2) {
      const kernels = runner.choices!(instructions[0]!, rowsOf(rows, space, limits), true)
      if (kernels.length < 2) continue
      const chosen = kernels[Math.floor(next() * kernels.length)]!
      const step = Object.fromEntries(kernels.map((kernel) => [kernel, noTime]))
      const shared = { opcode, dtype, shape, rows, deterministic, instructions: instructions.length }
      entries.push({ ...shared, rule: kernels[0]!, chosen, step })
    }
  runner.dispose()
  const head = { ingot: 'random choices', measured: new Date().toISOString(), ...device.identity(), contextTokens }
  await writeTuning(pkg.path, { ...head, entries })
  return entries.filter(({ chosen, rule }) => chosen !== rule).length
}

/** The requests by the rules, then under random choices; `happened`: some were not the rules', and decided launches. */
export async function checkChoices(
  path: string,
  backend: string,
  requests: readonly MixedRequest[],
  seeds: readonly number[],
): Promise<VariationReport[]> {
  const sizes = { maxSlots: 16, contextTokens: 128, prefixCache: false }
  const base = { ...sizes, backend, deterministic: true }
  const ways: Variation[] = [{ name: 'kernels by rules', open: { ...base, tuning: false } }]
  let different = 0
  for (const seed of seeds)
    ways.push({
      name: `kernels at random, ${seed}`,
      open: base,
      happened: (_, model) => different > 0 && model.tuning()!.hits > 0 && model.tuning()!.refused === 0,
    })
  let next = -1
  const opening = async (options: OpenOptions) => {
    const seed = seeds[next++]
    if (seed !== undefined) different = await chooseAtRandom(path, backend, sizes, { deterministic: true, seed })
    return open(path, options)
  }
  return checkInvariance(opening, requests, ways)
}
