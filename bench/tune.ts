/** Measures which kernels are fastest for a package on this device, and writes that into the package. */
import { packageVersion } from '../abi/native.ts'
import { backendOf } from '../compute/backends.ts'
import type { Backend } from '../compute/device.ts'
import { type MeasuredChoice, tune } from '../compute/tune.ts'
import { fail } from '../errors.ts'
import { capacity } from '../inference/capacity.ts'
import { type Package, readPackage } from '../models/package.ts'
import { type TuningFile, writeTuning } from '../models/tuning.ts'

export interface TunePackageOptions {
  readonly backend: string
  /** Modes to measure, as `deterministic` of open(). */
  readonly deterministic: readonly boolean[]
  /** Sequences that decode at once, at most, and the positions that they have; default: 512, or what the model allows. */
  readonly maxSlots: number
  readonly contextTokens?: number | undefined
  /** Tokens of prompts in one step, at most. */
  readonly stepTokens: number
  /** Times that each kernel runs each step. */
  readonly rounds: number
  readonly onProgress?: (done: number, total: number, what: string) => void
}

/** Measures one mode, with all memory given back afterwards. */
async function measure(pkg: Package, device: Backend, deterministic: boolean, options: TunePackageOptions) {
  const { maxSlots, stepTokens, rounds, onProgress } = options
  const contextTokens = contextOf(pkg, options)
  const sizes = { maxSlots, contextTokens, maxTokensPerStep: Math.max(stepTokens, maxSlots), prefixCache: false }
  const { limits, blocks, slots } = capacity(pkg.plan, sizes, pkg.path)
  const shared = { limits, blocks, slots, threads: 0, isa: '', compare: true }
  const runner = await device.open(pkg, { ...shared, deterministic })
  try {
    return await tune(runner, pkg.plan, { limits, blocks, contextTokens, rounds, onProgress })
  } finally {
    runner.dispose()
  }
}

const contextOf = ({ plan }: Package, { contextTokens = Math.min(512, plan.maxContext) }: TunePackageOptions) =>
  contextTokens

const entryOf = (choice: MeasuredChoice, deterministic: boolean) => {
  const { opcode, dtype, shape, rows, instructions, rule, chosen, step } = choice
  return { opcode, dtype, shape, rows, deterministic, instructions, rule, chosen, step }
}

/**
 * Throws as open() does, TUNING_MISSING for a backend without kernels to choose from, and OUTPUT_UNWRITABLE. Answers
 * where the measurements lie in the package, and all that stands there.
 */
export async function tunePackage(
  path: string,
  options: TunePackageOptions,
): Promise<{ path: string; tuning: TuningFile }> {
  const device = backendOf(options.backend)
  if (!device.identity) throw fail('TUNING_MISSING', { backend: options.backend })
  const pkg = await readPackage(path, { integrity: 'auto' })
  const entries: TuningFile['entries'] = []
  const modes = [...new Set(options.deterministic)]
  for (const [index, mode] of modes.entries()) {
    const onProgress: TunePackageOptions['onProgress'] = (done, total, what) =>
      options.onProgress?.(index * total + done, modes.length * total, `${mode ? 'deterministic, ' : ''}${what}`)
    const choices = await measure(pkg, device, mode, { ...options, onProgress })
    entries.push(...choices.map((choice) => entryOf(choice, mode)))
  }
  const contextTokens = contextOf(pkg, options)
  const head = { ingot: packageVersion(), measured: new Date().toISOString(), ...device.identity(), contextTokens }
  return writeTuning(pkg.path, { ...head, entries })
}
