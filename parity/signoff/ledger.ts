/**
 * The ledger: JSON lines, each with the hash of the line before, so that none can be changed, dropped or moved without
 * breaking the chain. It is verified whenever it is read. What was cut off its end shows only against a copy, such as the
 * one in version control; what the owners signed names the entry before it, so that nobody else can chain it anew.
 */
import { open, rm } from 'node:fs/promises'
import { z } from 'zod'
import { fail, IngotError, wrongField } from '../../errors.ts'
import { text } from '../../models/config.ts'
import { codeOf, readBytes } from '../../models/files.ts'
import { digestOf, sha256 } from '../../plans/hash.ts'
import { roles } from './phase.ts'

const release = z.strictObject({
  /** Path of the package, from the folder of the ledger. */
  path: text,
  /** Where it is kept, from the folder of the package. */
  release: text,
  /** `hash` of its manifest. */
  manifest: sha256,
})

/** What happened. */
const events = [
  z.strictObject({ kind: z.literal('start'), phase: text, record: sha256 }),
  /** An owner signed: a DSSE envelope of a Statement (signoff.ts). */
  z.strictObject({ kind: z.literal('sign'), phase: text, role: z.enum(roles), envelope: text }),
  z.strictObject({
    kind: z.literal('signoff'),
    phase: text,
    record: sha256,
    evidence: sha256,
    packages: z.array(release),
    /** Of the certificates that were issued. */
    certificates: z.array(sha256),
  }),
  z.strictObject({
    kind: z.literal('rollback'),
    path: text,
    /** The release that the name points to now. */
    to: text,
    /** Where what it pointed to before lies now; null: there was nothing. */
    from: text.nullable(),
  }),
] as const

const chained = { index: z.int().min(0), time: z.iso.datetime(), previous: sha256, hash: sha256 }
const entrySchema = z.discriminatedUnion('kind', [
  events[0].extend(chained),
  events[1].extend(chained),
  events[2].extend(chained),
  events[3].extend(chained),
])

export type LedgerEvent = z.output<(typeof events)[number]>
export type LedgerEntry = z.output<typeof entrySchema>
export type Release = z.output<typeof release>

/** `previous` of the first entry. */
export const GENESIS = '0'.repeat(64)

const hashOf = (entry: object) => digestOf(JSON.stringify(entry))

function parseEntry(line: string, index: number, previous: string, path: string): LedgerEntry {
  const broken = (reason: string) => fail('SIGNOFF_LEDGER_BROKEN', { path, line: index + 1, reason })
  let json: unknown
  try {
    json = JSON.parse(line)
  } catch (cause) {
    throw broken((cause as Error).message)
  }
  const result = entrySchema.safeParse(json)
  if (!result.success) {
    const { thing, expected, got } = wrongField(result.error, json, 'the entry')
    throw broken(`${thing}: expected ${expected}, got ${got}`)
  }
  // The text itself is chained: other spacing or order is another text.
  const { hash, ...rest } = json as LedgerEntry
  if (JSON.stringify({ ...rest, hash }) !== line) throw broken('it is not written as the ledger writes it')
  if (hashOf(rest) !== hash) throw broken('its hash is not that of its content')
  if (rest.index !== index) throw broken(`it is entry ${rest.index}`)
  if (rest.previous !== previous) throw broken('it does not follow the entry before it')
  return result.data
}

/** All entries; none where there is no file. Throws SIGNOFF_LEDGER_BROKEN, FILE_UNREADABLE. */
export async function readLedger(path: string): Promise<readonly LedgerEntry[]> {
  const content = await readBytes(path, 'a ledger').catch((error: unknown) => {
    if (error instanceof IngotError && error.code === 'FILE_MISSING') return undefined
    throw error
  })
  if (!content?.length) return []
  const lines = content.toString('utf8').split('\n')
  if (lines.pop() !== '')
    throw fail('SIGNOFF_LEDGER_BROKEN', { path, line: lines.length + 1, reason: 'the last entry is cut off' })
  const entries: LedgerEntry[] = []
  for (const [index, line] of lines.entries()) entries.push(parseEntry(line, index, headOf(entries), path))
  return entries
}

/** Hash of the last entry. */
export const headOf = (entries: readonly LedgerEntry[]): string => entries.at(-1)?.hash ?? GENESIS

/**
 * Verifies the ledger, asks `event` what to add, given the entries, and adds it; nobody else adds meanwhile. Throws
 * SIGNOFF_LEDGER_BROKEN, SIGNOFF_LEDGER_BUSY, OUTPUT_UNWRITABLE, and what `event` throws.
 */
export async function append(
  path: string,
  event: (entries: readonly LedgerEntry[]) => LedgerEvent | Promise<LedgerEvent>,
  now = Date.now(),
): Promise<LedgerEntry> {
  return locked(path, async () => {
    const entries = await readLedger(path)
    const content = { index: entries.length, time: new Date(now).toISOString(), ...(await event(entries)) }
    const chained = { ...content, previous: headOf(entries) }
    const entry = { ...chained, hash: hashOf(chained) } as LedgerEntry
    const file = await open(path, 'a')
    try {
      await file.appendFile(`${JSON.stringify(entry)}\n`)
      await file.sync()
    } finally {
      await file.close()
    }
    return entry
  })
}

async function locked<T>(path: string, work: () => Promise<T>): Promise<T> {
  const lock = `${path}.lock`
  const file = await open(lock, 'wx').catch((cause: unknown) => {
    if (codeOf(cause) === 'EEXIST') throw fail('SIGNOFF_LEDGER_BUSY', { path, lock }, cause)
    throw fail('OUTPUT_UNWRITABLE', { path: lock, reason: (cause as Error).message }, cause)
  })
  try {
    return await work()
  } finally {
    await file.close()
    await rm(lock, { force: true })
  }
}
