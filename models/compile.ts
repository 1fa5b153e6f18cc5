/** compile(): a checkpoint folder to a package. */
import { stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { fail, shownValue } from '../errors.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { verifyPlan } from '../plans/verify.ts'
import { type FusionChoice, fusionNames } from './compile/fuse.ts'
import { compileCheckpoint } from './compile/index.ts'
import { quantization, stateFormat } from './compile/quantize.ts'
import { isObject, type MapFile } from './files.ts'
import { type Manifest, PLAN_FILE } from './package.ts'
import { type Progress, writePackage } from './package-writer.ts'

export interface CompileOptions {
  /** Folder to write; default: `<name of the checkpoint>.ingot` in the working directory. */
  readonly out?: string | undefined
  /**
   * Weights as they are (default), int8 (q8) or int4 (q4) with scales (adr/0006), or e4m3 with one a row (fp8, adr/0012);
   * embedding and head are int8 in all three.
   */
  readonly quantize?: 'none' | 'q8' | 'q4' | 'fp8' | undefined
  /** Keys and values in the checkpoint's dtype (default), or int8 with a scale for each head of each position. */
  readonly state?: 'checkpoint' | 'q8' | undefined
  readonly onProgress?: ((progress: Progress) => void) | undefined
  /** Threads that convert and quantise weights; default: as many as the machine has physical cores. */
  readonly threads?: number | undefined
  /** Stops the work and removes what was written. */
  readonly signal?: AbortSignal | undefined
  /** Fusions to switch off, by name. */
  readonly fusions?: FusionChoice | undefined
  /** Maps a file; the native addon does it by default. */
  readonly mapFile?: MapFile | undefined
}

export interface CompileResult {
  readonly path: string
  readonly plan: ExecutionPlan
  readonly planHash: string
  readonly manifest: Manifest
  /** Bytes of all stored tensors. */
  readonly weightsBytes: number
}

const optionNames = ['out', 'quantize', 'state', 'threads', 'onProgress', 'signal', 'fusions', 'mapFile']
const MAX_THREADS = 1024

function checkOptions(options: CompileOptions): void {
  const expect = (option: string, expected: string, value: unknown, good: boolean) => {
    if (value !== undefined && !good) throw fail('OPTION_INVALID', { option, expected, got: shownValue(value) })
  }
  expect('options of compile', 'an object', options, isObject(options))
  expect('fusions', 'an object', options.fusions, isObject(options.fusions))
  const check = (where: string, given: object, known: readonly string[]) => {
    const option = Object.keys(given).find((name) => !known.includes(name))
    if (option) throw fail('OPTION_UNKNOWN', { option, where, known })
  }
  check('compile', options, optionNames)
  check('compile fusions', options.fusions ?? {}, fusionNames)
  const { out, threads, onProgress, signal, fusions, mapFile } = options
  expect('out', 'a path', out, typeof out === 'string' && out !== '')
  const counts = Number.isInteger(threads) && threads! >= 1 && threads! <= MAX_THREADS
  expect('threads', `an integer from 1 to ${MAX_THREADS}`, threads, counts)
  expect('onProgress', 'a function', onProgress, typeof onProgress === 'function')
  expect('mapFile', 'a function', mapFile, typeof mapFile === 'function')
  expect('signal', 'an AbortSignal', signal, signal instanceof AbortSignal)
  for (const [name, on] of Object.entries(fusions ?? {}))
    expect(`fusions.${name}`, 'true or false', on, typeof on === 'boolean')
}

/** The checkpoint must be a folder. Throws OPTION_INVALID or FILE_MISSING. */
async function checkSource(source: string): Promise<void> {
  const expected = 'a folder with config.json and safetensors'
  if (typeof source !== 'string' || source === '')
    throw fail('OPTION_INVALID', { option: 'checkpoint', expected, got: shownValue(source) })
  const info = await stat(source).catch(() => undefined)
  if (!info) throw fail('FILE_MISSING', { path: source, expected })
  if (info.isDirectory()) return
  const got = source.endsWith('.gguf') ? `${source}; GGUF files are not read yet` : source
  throw fail('OPTION_INVALID', { option: 'checkpoint', expected, got })
}

/**
 * Compiles the checkpoint in folder `source` into a package: reads every weight once to hash it and once to convert it,
 * holds about two chunks at a time, and never keeps the event loop for long. The same checkpoint and options give the same
 * bytes. Throws ConfigError or PlanError; on failure nothing is left at `out`.
 */
export async function compile(source: string, options: CompileOptions = {}): Promise<CompileResult> {
  checkOptions(options)
  const quantize = quantization(options.quantize)
  const state = stateFormat(options.state)
  await checkSource(source)
  const { fusions = {}, threads, signal, mapFile, onProgress } = options
  const out = options.out ?? `${basename(resolve(source))}.ingot`
  const compiled = await compileCheckpoint(source, {
    quantize,
    state,
    fusions,
    signal,
    ...(mapFile ? { mapFile } : {}),
  })
  const { plan, planBytes, planHash } = compiled
  verifyPlan(planBytes, join(out, PLAN_FILE))
  const manifest = await writePackage(compiled, out, { threads, signal, onProgress })
  const weightsBytes = plan.tensors.reduce((sum, { bytes }) => sum + bytes, 0)
  return Object.freeze({ path: out, plan, planHash, manifest, weightsBytes })
}
