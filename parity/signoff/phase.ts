/**
 * The record of a phase, `adr/phases/NNNN-name.json`: what must hold before it may end, who says so, and how to go back.
 * It is fixed before the phase starts: its digest is the phase's first entry in the ledger.
 */
import type { KeyObject } from 'node:crypto'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { z } from 'zod'
import { fail, wrongField } from '../../errors.ts'
import { integer } from '../../models/config.ts'
import { publicKey } from '../../models/dsse.ts'
import { hashBytes, parseJson, readBytes } from '../../models/files.ts'

const PHASE_FORMAT = 'ingot-phase'
const PHASE_VERSION = 1
export const roles = ['models', 'inference', 'compute'] as const
export type Role = (typeof roles)[number]

const filled = z.string('a text').regex(/\S/, 'a text that is not empty')
const date = z.iso.date('a date (2026-01-31)')
const ratio = z.number('a number').positive('a number above 0')
const list = <T extends z.ZodType>(item: T, of: string) => z.array(item, `a list of ${of}`)
const some = <T extends z.ZodType>(item: T, of: string) => list(item, of).min(1, `at least one of ${of}`)

const owner = z.strictObject(
  {
    name: filled,
    /** Ed25519, SubjectPublicKeyInfo as PEM. */
    key: z.string('a public key as PEM').refine((pem) => publicKey(pem) !== undefined, 'an Ed25519 public key as PEM'),
  },
  'an object of name and key',
)

const schema = z.strictObject(
  {
    format: z.literal(PHASE_FORMAT, PHASE_FORMAT),
    version: z.literal(PHASE_VERSION, String(PHASE_VERSION)),
    title: filled,
    /** Commands, and the numbers that they must print. The owners sign that they did. */
    exitCriteria: some(
      z.strictObject({ command: filled, prints: filled }, 'an object of command and prints'),
      'criteria',
    ),
    /** How to return to the state before the phase. */
    rollback: filled,
    /** What runs meanwhile, and the reason code that callers see. */
    fallback: z.strictObject(
      { runs: filled, reason: z.string('a code').regex(/^[a-z][a-z0-9_]*$/, 'a code such as not_signed_off') },
      'an object of runs and reason',
    ),
    /** The second path, if any: what it is, and the milestone and the date by which it is deleted. */
    dualPath: z
      .strictObject({ path: filled, milestone: filled, date }, 'null, or an object of path, milestone and date')
      .nullable(),
    owners: z.strictObject({ models: owner, inference: owner, compute: owner }, 'models, inference and compute'),
    /** Packages that are judged; paths from the folder of the record. */
    packages: some(z.strictObject({ name: filled, path: filled }, 'an object of name and path'), 'packages'),
    /** Rows: "cpu", or "cpu:avx2". Each is judged by the reference and by each other, at each shape. */
    parity: z.strictObject(
      { reference: filled, rows: some(filled, 'rows'), shapes: some(filled, 'names of shapes') },
      'an object of reference, rows and shapes',
    ),
    /** Cases of the op conformance suite that every row runs. */
    conformance: z.enum(['full', 'thin'], 'full or thin'),
    performance: z.strictObject(
      {
        /** Tokens of a prompt, tokens decoded after it, sequences at once, runs a cell. */
        prompt: integer(1, 2 ** 20),
        generate: integer(1, 2 ** 20),
        sequences: some(integer(1, 4096), 'numbers of sequences'),
        repeats: integer(1, 1000),
        /** Least ratio of a cell to a ceiling or peer measured in the same run, and why that much; see performance.ts. */
        cells: list(z.strictObject({ name: filled, least: ratio, reason: filled }, 'an object'), 'cells'),
      },
      'an object of prompt, generate, sequences, repeats and cells',
    ),
    /** How long the certificates hold that the phase's end issues. */
    certificateDays: integer(1, 3660),
  },
  'a phase record',
)

export type PhaseRecord = z.output<typeof schema>

export interface Phase {
  /** File name without extension: "0002-cuda". */
  readonly name: string
  readonly path: string
  /** SHA-256 of the file. */
  readonly sha256: string
  readonly record: PhaseRecord
}

/** Reads a record. Throws FILE_MISSING, FILE_UNREADABLE, JSON_INVALID, SIGNOFF_FILE_INVALID. */
export async function readPhase(path: string): Promise<Phase> {
  const bytes = await readBytes(path, 'the record of a phase')
  const json = parseJson(bytes.toString('utf8'), path)
  const result = schema.safeParse(json)
  if (!result.success) throw fail('SIGNOFF_FILE_INVALID', { path, ...wrongField(result.error, json, 'the record') })
  const record = result.data
  const once = (thing: string, names: readonly string[]) => {
    const twice = names.find((name, i) => names.indexOf(name) !== i)
    if (twice !== undefined) throw fail('SIGNOFF_FILE_INVALID', { path, thing, expected: 'each name once', got: twice })
  }
  once(
    'packages',
    record.packages.map(({ name }) => name),
  )
  once('parity.rows', [record.parity.reference, ...record.parity.rows])
  once('parity.shapes', record.parity.shapes)
  once(
    'performance.cells',
    record.performance.cells.map(({ name }) => name),
  )
  // One person may hold several roles, but says so three times.
  return { name: basename(path).replace(/\.json$/, ''), path, sha256: hashBytes(bytes).sha256, record }
}

/**
 * A record to be edited, to lie at `file`: of one package (its path from here), the CPU against the reference, and
 * thresholds that any speed passes.
 */
export function draftRecord(
  file: string,
  { name, path }: PhaseRecord['packages'][number],
  owners: PhaseRecord['owners'],
  shapes: readonly string[],
  conformance: PhaseRecord['conformance'],
): PhaseRecord {
  return {
    format: PHASE_FORMAT,
    version: PHASE_VERSION,
    title: `Run ${name} on the CPU`,
    exitCriteria: [{ command: `npx ingot signoff check ${file}`, prints: 'every cell passes' }],
    rollback: `npx ingot rollback ${path} --ledger ${join(dirname(file), 'ledger.jsonl')}`,
    fallback: { runs: 'the reference backend', reason: 'not_signed_off' },
    dualPath: null,
    owners,
    packages: [{ name, path: relative(dirname(file), path) }],
    parity: { reference: 'reference', rows: ['cpu'], shapes: [...shapes] },
    conformance,
    performance: {
      prompt: 64,
      generate: 16,
      sequences: [1],
      repeats: 3,
      cells: [{ name: `${name} cpu decode 1 of read`, least: 0.001, reason: 'any speed: set the bar of this phase' }],
    },
    certificateDays: 365,
  }
}

export const ownerKey = ({ record }: Phase, role: Role): KeyObject => publicKey(record.owners[role].key)!

/** Files of a phase, all beside its record. */
export function phaseFiles({ path, name }: Pick<Phase, 'path' | 'name'>) {
  const beside = (file: string) => join(dirname(path), file)
  return {
    parity: beside(`${name}.parity.json`),
    conformance: beside(`${name}.conformance.json`),
    performance: beside(`${name}.performance.json`),
    ledger: beside('ledger.jsonl'),
  }
}

/** Name of the certificate of a row, in the packages. */
export const certificateFile = (row: string): string => `${row.replaceAll(/[^\w.-]/g, '-')}.json`

/** The packages of a phase by name, as paths from here. */
export const packagePaths = ({ path, record }: Phase): ReadonlyMap<string, string> =>
  new Map(record.packages.map((each) => [each.name, resolve(dirname(path), each.path)]))

/** Throws SIGNOFF_OVERDUE when the second path should be gone; `now` in milliseconds since 1970. Its last day is its date. */
export function assertDualPath({ name, record: { dualPath } }: Phase, now: number): void {
  if (!dualPath || now < Date.parse(dualPath.date) + 24 * 60 * 60 * 1000) return
  throw fail('SIGNOFF_OVERDUE', {
    phase: name,
    path: dualPath.path,
    milestone: dualPath.milestone,
    date: dualPath.date,
  })
}
