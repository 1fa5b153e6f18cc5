/**
 * Sign-off of a phase: fixed by `start`, judged by `check`, signed by its three owners, and ended by `close`, which issues
 * the certificates. Everything is decided by files and digests; no service and no CI is asked. adr/phases/README.md.
 */
import type { KeyObject } from 'node:crypto'
import { z } from 'zod'
import { fail, IngotError } from '../../errors.ts'
import {
  issueCertificate,
  kernelSubject,
  type Predicate,
  packageSubjects,
  precisionOf,
  writeCertificate,
} from '../../models/certificate.ts'
import { type Envelope, keyId, parseEnvelope, seal, signers } from '../../models/dsse.ts'
import { hashBytes, parseJson } from '../../models/files.ts'
import type { Package } from '../../models/package.ts'
import { digestOf, sha256 } from '../../plans/hash.ts'
import type { MatrixReport } from '../matrix-report.ts'
import { boundedMetrics, type Evidence, readEvidence, readPackages, weigh } from './evidence.ts'
import { append, headOf, type LedgerEntry, readLedger } from './ledger.ts'
import {
  assertDualPath,
  certificateFile,
  ownerKey,
  type Phase,
  packagePaths,
  phaseFiles,
  type Role,
  roles,
} from './phase.ts'
import { keep } from './releases.ts'

const PAYLOAD_TYPE = 'application/vnd.ingot.signoff.v1+json'
const DAY_MS = 24 * 60 * 60 * 1000

/** What an owner signs: that this evidence meets this record. */
const statementSchema = z.strictObject({
  phase: z.string(),
  role: z.enum(roles),
  record: sha256,
  parity: sha256,
  conformance: sha256,
  performance: sha256,
  /** Hash of the ledger's last entry: the history that the owner saw. */
  previous: sha256,
})
type Statement = z.output<typeof statementSchema>

/** Fixes the record: its digest is the phase's first entry. Throws SIGNOFF_RECORD_CHANGED, SIGNOFF_OVERDUE. */
export async function start(phase: Phase, now = Date.now()): Promise<LedgerEntry> {
  assertDualPath(phase, now)
  const ledger = phaseFiles(phase).ledger
  const started = startOf(phase, await readLedger(ledger))
  if (started) return assertUnchanged(phase, started)
  return append(ledger, () => ({ kind: 'start', phase: phase.name, record: phase.sha256 }), now)
}

type Start = Extract<LedgerEntry, { kind: 'start' }>
const startOf = ({ name }: Phase, entries: readonly LedgerEntry[]) =>
  entries.find((entry): entry is Start => entry.kind === 'start' && entry.phase === name)

function assertUnchanged({ path, name, sha256 }: Phase, started: Start): Start {
  if (started.record === sha256) return started
  throw fail('SIGNOFF_RECORD_CHANGED', { path, phase: name, expected: started.record, got: sha256 })
}

function assertStarted(phase: Phase, entries: readonly LedgerEntry[]): Start {
  const started = startOf(phase, entries)
  if (!started) throw fail('SIGNOFF_NOT_STARTED', { phase: phase.name, path: phase.path })
  return assertUnchanged(phase, started)
}

/** Throws SIGNOFF_NOT_STARTED, SIGNOFF_RECORD_CHANGED. */
export async function assertFixed(phase: Phase): Promise<void> {
  assertStarted(phase, await readLedger(phaseFiles(phase).ledger))
}

export interface Check {
  /** Why the phase cannot end, most basic first; empty: it can. */
  readonly refusals: readonly IngotError[]
  readonly signed: Readonly<Record<Role, boolean>>
  readonly entries: readonly LedgerEntry[]
  readonly evidence?: Evidence
  readonly packages?: ReadonlyMap<string, Package>
}

/** All that keeps a phase from ending. A broken ledger is thrown: nothing else can be believed then. */
export async function check(phase: Phase, now = Date.now()): Promise<Check> {
  const entries = await readLedger(phaseFiles(phase).ledger)
  const refusals: IngotError[] = []
  const collect = async <T>(work: () => T | Promise<T>): Promise<T | undefined> => {
    try {
      return await work()
    } catch (error) {
      if (!(error instanceof IngotError)) throw error
      refusals.push(error)
    }
  }
  await collect(() => assertStarted(phase, entries))
  await collect(() => assertDualPath(phase, now))
  const packages = await collect(() => readPackages(phase))
  const evidence = await collect(() => readEvidence(phase))
  if (packages && evidence) refusals.push(...((await collect(() => weigh(phase, evidence, packages))) ?? []))
  const signed = { models: false, inference: false, compute: false }
  for (const role of roles)
    signed[role] = (await collect(() => assertSigned(phase, role, entries, evidence))) !== undefined
  return { refusals, signed, entries, ...(evidence && { evidence }), ...(packages && { packages }) }
}

/** The entry by which an owner signed this very evidence. Throws SIGNOFF_UNSIGNED, saying what there is instead. */
function assertSigned(phase: Phase, role: Role, entries: readonly LedgerEntry[], evidence?: Evidence): LedgerEntry {
  const own = entries.filter((entry) => entry.kind === 'sign' && entry.phase === phase.name && entry.role === role)
  const reasons = own.map((entry) => flaw(phase, role, entry as SignEntry, evidence))
  const index = reasons.lastIndexOf(undefined)
  if (index >= 0) return own[index]!
  const reason = reasons.at(-1) ?? 'there is no signature in the ledger'
  throw fail('SIGNOFF_UNSIGNED', { role, name: phase.record.owners[role].name, reason })
}

type SignEntry = Extract<LedgerEntry, { kind: 'sign' }>

/** Undefined: it is none. Anyone can add such an entry, which must not keep owners from signing. */
function statementOf(text: string): { envelope: Envelope; statement: Statement } | undefined {
  try {
    const envelope = parseEnvelope(text, 'a signature')
    const { data } = statementSchema.safeParse(parseJson(envelope.payload.toString('utf8'), 'a signature'))
    return data && { envelope, statement: data }
  } catch (error) {
    if (error instanceof IngotError) return undefined
    throw error
  }
}

/** Why an entry does not count; undefined: it does. */
function flaw(
  phase: Phase,
  role: Role,
  { envelope: text, previous }: SignEntry,
  evidence?: Evidence,
): string | undefined {
  const read = statementOf(text)
  if (!read) return 'what was signed is no statement'
  const { envelope, statement } = read
  if (envelope.payloadType !== PAYLOAD_TYPE || signers(envelope, [ownerKey(phase, role)]).length === 0)
    return 'the signature in the ledger is not of the key in the record'
  const expected: Partial<Statement> = { phase: phase.name, role, record: phase.sha256, previous, ...evidence?.digests }
  const changed = Object.entries(expected).find(([field, value]) => statement[field as keyof Statement] !== value)
  if (changed) return `what was signed has another ${changed[0] === 'previous' ? 'history' : changed[0]}`
  return evidence ? undefined : 'there is nothing to sign yet'
}

function assertOwner(phase: Phase, role: Role, key: KeyObject): void {
  const [expected, got] = [keyId(ownerKey(phase, role)), keyId(key)]
  if (expected !== got) throw fail('SIGNOFF_KEY', { path: phase.path, role, expected, got })
}

function assertSomeOwner(phase: Phase, key: KeyObject): void {
  const [expected, got] = [roles.map((role) => keyId(ownerKey(phase, role))), keyId(key)]
  if (!expected.includes(got)) throw fail('SIGNOFF_KEY', { path: phase.path, role: 'an owner', expected, got })
}

/**
 * An owner signs record and evidence. Nobody signs what cannot pass: throws the first refusal that is not about a missing
 * signature, and SIGNOFF_KEY.
 */
export async function sign(phase: Phase, role: Role, key: KeyObject, now = Date.now()): Promise<LedgerEntry> {
  assertOwner(phase, role, key)
  const { refusals, evidence } = await check(phase, now)
  const refusal = refusals.find(({ code }) => code !== 'SIGNOFF_UNSIGNED')
  if (refusal || !evidence) throw refusal
  const event = (entries: readonly LedgerEntry[]) => {
    const { name, sha256 } = phase
    const statement: Statement = { phase: name, role, record: sha256, ...evidence.digests, previous: headOf(entries) }
    const envelope = seal(PAYLOAD_TYPE, Buffer.from(JSON.stringify(statement)), [key])
    return { kind: 'sign', phase: name, role, envelope } as const
  }
  return append(phaseFiles(phase).ledger, event, now)
}

export interface Closed {
  readonly entry: LedgerEntry
  /** Paths of the certificates. */
  readonly certificates: readonly string[]
}

/**
 * Ends a phase: issues a certificate for every package and row, signed by `keys`, each of an owner; keeps the packages as
 * releases; and writes it down. Throws the first refusal of `check`, SIGNOFF_KEY, OUTPUT_UNWRITABLE.
 */
export async function close(phase: Phase, keys: readonly KeyObject[], now = Date.now()): Promise<Closed> {
  for (const key of keys) assertSomeOwner(phase, key)
  const { refusals, evidence, packages } = await check(phase, now)
  if (refusals[0] || !evidence || !packages) throw refusals[0]
  const issued: { path: string; sha256: string }[] = []
  for (const [name, pkg] of packages)
    for (const row of phase.record.parity.rows) {
      const predicate = predicateOf(phase, evidence.parity, row, name, pkg, now)
      const { kernels } = rowNamed(evidence.parity, row)
      const subjects = [...packageSubjects(pkg), { name: kernelSubject(predicate.backend), sha256: kernels }]
      const content = issueCertificate(subjects, predicate, keys)
      const path = await writeCertificate(pkg.path, certificateFile(row), content)
      issued.push({ path, sha256: hashBytes(Buffer.from(content)).sha256 })
    }
  const ledger = phaseFiles(phase).ledger
  const entry = await append(
    ledger,
    async (entries) => ({
      kind: 'signoff',
      phase: phase.name,
      record: phase.sha256,
      evidence: digestOf(JSON.stringify(evidence.digests)),
      packages: await keepAll(phase, packages, entries.length),
      certificates: issued.map(({ sha256 }) => sha256),
    }),
    now,
  )
  return { entry, certificates: issued.map(({ path }) => path) }
}

const keepAll = (phase: Phase, packages: ReadonlyMap<string, Package>, index: number) =>
  Promise.all(
    [...packagePaths(phase)].map(([name, path]) =>
      keep(path, packages.get(name)!.manifest.hash, phaseFiles(phase).ledger, index),
    ),
  )

const rowNamed = ({ rows }: MatrixReport, name: string) => rows.find((row) => row.name === name)!

/** What a certificate says of one row and package: the worst of its cells against the reference. */
function predicateOf(
  { record }: Phase,
  matrix: MatrixReport,
  name: string,
  model: string,
  pkg: Package,
  now: number,
): Predicate {
  const row = rowNamed(matrix, name)
  const reference = rowNamed(matrix, record.parity.reference)
  const cells = matrix.cells.filter(
    (cell) => cell.model === model && cell.actual === name && cell.expected === reference.name,
  )
  const all = cells.map(({ metrics }) => boundedMetrics(metrics!))
  const share = ({ value, allowed }: { value: number; allowed: number }) => (value <= 0 ? 0 : value / allowed)
  const names = Object.keys(all[0]!) as (keyof (typeof all)[number])[]
  const metrics = names.map((name) => {
    const { value, allowed } = all.map((each) => each[name]).reduce((a, b) => (share(b) > share(a) ? b : a))
    return { name, value, threshold: allowed }
  })
  return {
    verdict: 'pass',
    issued: new Date(now).toISOString(),
    expires: new Date(now + record.certificateDays * DAY_MS).toISOString(),
    reference: `${reference.name}: ${reference.description}`,
    backend: row.backend,
    device: {
      class: `${process.arch}/${row.isa}`,
      description: row.description,
      driver: row.driver ?? null,
      deterministic: row.deterministic,
    },
    precision: precisionOf(pkg.plan),
    corpus: { sha256: matrix.corpus },
    code: { sha256: matrix.code },
    metrics,
  }
}
