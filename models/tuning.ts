/**
 * Measured choices of kernels, `name.ingot/tuning/*.json`: for one device, driver and build of the kernels, which of
 * those that can serve an instruction is fastest, by the rows of a launch. What they choose among computes the same, so a
 * file that is wrong costs speed, never parity (ADR 0013); hence nobody signs it, and no hash of the package covers it.
 */
import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { z } from 'zod'
import { fail, IngotError, wrongField } from '../errors.ts'
import { digestOf } from '../plans/hash.ts'
import { flag, integer, text } from './config.ts'
import { codeOf, isObject, parseJson, readBytes, replaceFile } from './files.ts'
import { TUNING_FOLDER } from './package.ts'

export const TUNING_FORMAT = 1
const MAX_TUNING_BYTES = 2 ** 20
const MAX_ENTRIES = 4096

const name = z.string('text').regex(/^[\x20-\x7e]{1,200}$/, 'text of 1 to 200 printable characters')
const kernel = z.string('a name').regex(/^[a-z][a-z0-9_]{0,31}$/, 'the name of a kernel')
const microseconds = z.number('a number').min(0, 'a number from 0')
const rows = integer(1, 2 ** 30).refine((value) => Number.isInteger(Math.log2(value)), 'a power of 2')

/** Quartiles of the time of a whole step in which the instructions take that kernel. */
const quartiles = z.strictObject(
  { low: microseconds, median: microseconds, high: microseconds },
  'an object of low, median and high',
)

const entry = z
  .strictObject(
    {
      opcode: name,
      /** Of the weights, or of the state. */
      dtype: name,
      /** What else kernels are chosen by; text of the backend's own. */
      shape: name,
      /** Of launches of at most so many rows, and more than half of them. */
      rows,
      /** Of the mode in which no bit depends on the batch: another set of kernels. */
      deterministic: flag,
      /** Instructions that share the choice. */
      instructions: integer(1, 2 ** 20),
      /** What would run without a measurement. */
      rule: kernel,
      chosen: kernel,
      step: z.record(kernel, quartiles, 'an object of quartiles by kernel'),
    },
    'an object of opcode, dtype, shape, rows, deterministic, instructions, rule, chosen and step',
  )
  .refine(
    ({ rule, chosen, step }) => Object.hasOwn(step, rule) && Object.hasOwn(step, chosen),
    'rule and chosen among the kernels of step',
  )

const identity = {
  backend: name,
  /** Name and compute capability. */
  device: name,
  capability: name,
  driver: name,
  /** Digest of the kernels' sources and how they were compiled. */
  kernels: name,
}

const tuningSchema = z.strictObject(
  {
    format: z.literal(TUNING_FORMAT, String(TUNING_FORMAT)),
    /** Version of Ingot that measured. */
    ingot: text,
    measured: z.iso.datetime('a time in UTC (2026-01-31T12:00:00Z)'),
    ...identity,
    /** Positions that sequences had in the steps that decoded. */
    contextTokens: integer(1, 2 ** 31 - 1),
    entries: z.array(entry, 'a list of entries').max(MAX_ENTRIES, `at most ${MAX_ENTRIES} entries`),
  },
  'an object with the fields of a tuning file and no other',
)

export type TuningFile = z.output<typeof tuningSchema>
export type TuningEntry = z.output<typeof entry>
/** What measurements are of: they hold for nothing else. */
export type TuningIdentity = { readonly [K in keyof typeof identity]: string }

/** Two entries of one key would contradict each other. */
const keyOf = ({ opcode, dtype, shape, rows, deterministic }: TuningEntry) =>
  JSON.stringify([opcode, dtype, shape, rows, deterministic])

/** Throws JSON_INVALID and TUNING_INVALID, naming `path`. */
export function parseTuning(source: string, path: string): TuningFile {
  const json = parseJson(source, path)
  const refuse = (thing: string, expected: string, got: unknown) =>
    fail('TUNING_INVALID', { path, thing, expected, got: String(got) })
  if (isObject(json) && Number.isInteger(json.format) && (json.format as number) > TUNING_FORMAT)
    throw refuse('format', String(TUNING_FORMAT), json.format)
  const result = tuningSchema.safeParse(json)
  if (!result.success) throw fail('TUNING_INVALID', { path, ...wrongField(result.error, json, 'the file') })
  const keys = result.data.entries.map(keyOf)
  const twice = keys.findIndex((key, i) => keys.indexOf(key) !== i)
  if (twice >= 0) throw refuse(`entries.${twice}`, 'one entry of each key', `another of ${keys[twice]}`)
  return result.data
}

/** A file of a package, or why it cannot be read. */
export type FoundTuning =
  | { readonly path: string; readonly tuning: TuningFile }
  | { readonly path: string; readonly error: IngotError }

/** The tuning files of a package, by name. Throws FILE_UNREADABLE for the folder alone. */
export async function readTuning(packagePath: string): Promise<FoundTuning[]> {
  const folder = join(packagePath, TUNING_FOLDER)
  const names = await readdir(folder).catch((cause: unknown) => {
    if (codeOf(cause) === 'ENOENT') return []
    throw fail('FILE_UNREADABLE', { path: folder, reason: (cause as Error).message }, cause)
  })
  const read = async (name: string): Promise<FoundTuning> => {
    const path = join(folder, name)
    try {
      const content = await readBytes(path, 'a tuning file', MAX_TUNING_BYTES)
      return { path, tuning: parseTuning(content.toString('utf8'), path) }
    } catch (error) {
      if (!(error instanceof IngotError)) throw error
      return { path, error }
    }
  }
  return Promise.all(names.sort().map(read))
}

/** The entries of a package that count here, or why there are none. */
export interface Tuning {
  /** Name of the file. */
  readonly file?: string
  readonly entries: readonly TuningEntry[]
  /** Why no file counts. */
  readonly reason?: string
  /** Of files that cannot be read. */
  readonly warnings: readonly IngotError[]
}

/** Chooses among a package's files the one that was measured here: with that device, driver and build, in that mode. */
export function matchTuning(found: readonly FoundTuning[], here: TuningIdentity, deterministic: boolean): Tuning {
  const warnings = found.flatMap((file) => ('error' in file ? [file.error] : []))
  const sound = found.flatMap((file) => ('error' in file ? [] : [file]))
  const own = sound.find(({ tuning }) => otherThan(tuning, here) === undefined)
  const entries = own?.tuning.entries.filter((entry) => entry.deterministic === deterministic) ?? []
  const file = own && basename(own.path)
  if (file !== undefined && entries.length > 0) return { file, entries, warnings }
  const mode = `${file} has no entry of the ${deterministic ? 'deterministic' : 'default'} mode`
  const others = sound.map(({ path, tuning }) => `${basename(path)} ${otherThan(tuning, here)}`)
  const none = 'the package has no tuning files; make one with "ingot tune"'
  return { entries: [], reason: own ? mode : (others[0] ?? warnings[0]?.message ?? none), warnings }
}

/** How a package is opened, as far as its measurements are concerned. */
export interface TuningUse {
  readonly deterministic: boolean
  readonly wanted: boolean
  /** A certificate is required. */
  readonly certified: boolean
}

/**
 * The entries of a package that count for a backend of this identity (undefined: one without kernels to choose from); none,
 * and why. Throws FILE_UNREADABLE for the folder alone.
 */
export async function findTuning(
  packagePath: string,
  here: TuningIdentity | undefined,
  use: TuningUse,
): Promise<Tuning> {
  const none = (reason: string): Tuning => ({ entries: [], reason, warnings: [] })
  if (!here) return none('the backend has nothing to choose from')
  if (!use.wanted) return none('turned off')
  // Nobody signs a tuning file, so it may not decide which kernels a certificate is about; where bits are fixed, it cannot.
  if (use.certified && !use.deterministic) return none('a certificate is required, and knows the rules alone')
  return matchTuning(await readTuning(packagePath), here, use.deterministic)
}

/** What a file was measured with that is not so here, in words. */
function otherThan(tuning: TuningFile, here: TuningIdentity): string | undefined {
  for (const field of Object.keys(identity) as (keyof TuningIdentity)[])
    if (tuning[field] !== here[field]) return `is of ${field} ${tuning[field]}, this is ${here[field]}`
  return undefined
}

/** The name under which measurements of an identity are kept: the device for people, and a digest of all. */
export function tuningFileName(here: TuningIdentity): string {
  const device = here.device.toLowerCase().replace(/[^a-z0-9]+/g, '-')
  const digest = digestOf(JSON.stringify(Object.keys(identity).map((field) => here[field as keyof TuningIdentity])))
  return `${here.backend}-${device}-${digest.slice(0, 12)}.json`
}

/**
 * Puts measurements into a package, all or nothing. Entries of a mode that was not measured stay, where the file of that
 * identity has some. Throws OUTPUT_UNWRITABLE; answers the path and what stands there.
 */
export async function writeTuning(
  packagePath: string,
  measured: Omit<TuningFile, 'format'>,
): Promise<{ path: string; tuning: TuningFile }> {
  const path = join(packagePath, TUNING_FOLDER, tuningFileName(measured))
  const before = (await readTuning(packagePath)).find((file) => file.path === path)
  const modes = new Set(measured.entries.map(({ deterministic }) => deterministic))
  const kept = before && 'tuning' in before ? before.tuning.entries.filter((e) => !modes.has(e.deterministic)) : []
  const { ingot, measured: time, backend, device, capability, driver, kernels, contextTokens } = measured
  const head = { format: TUNING_FORMAT, ingot, measured: time, backend, device, capability, driver, kernels }
  const content = `${JSON.stringify({ ...head, contextTokens, entries: [...kept, ...measured.entries] }, undefined, 1)}\n`
  const tuning = parseTuning(content, path)
  // Beside the package: whoever opens it meanwhile finds finished files only.
  await replaceFile(path, content, packagePath)
  return { path, tuning }
}
