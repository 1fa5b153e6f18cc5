/**
 * Certificates of parity: who judged that a backend computes a package as the reference does, on what, and until when. An
 * in-toto statement v1 in a DSSE envelope, `name.ingot/certificates/*.json`. adr/0008-certificates.md says what is signed
 * and what a certificate is worth.
 */
import type { KeyObject } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { fail, type IngotError, wrongField } from '../errors.ts'
import { sha256 } from '../plans/hash.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { text } from './config.ts'
import { type Envelope, keyId, parseEnvelope, seal, signers } from './dsse.ts'
import { codeOf, parseJson, readBytes, replaceFile } from './files.ts'
import { CERTIFICATES_FOLDER, type Package, PLAN_FILE, WEIGHTS_FILE } from './package.ts'

const PAYLOAD_TYPE = 'application/vnd.in-toto+json'
const STATEMENT_TYPE = 'https://in-toto.io/Statement/v1'
/** Names the meaning of the predicate; nothing is fetched from it, and `.invalid` (RFC 2606) is no host. */
const PREDICATE_TYPE = 'https://ingot.invalid/parity/v1'
const MAX_CERTIFICATE_BYTES = 2 ** 20

const time = z.iso.datetime('a time in UTC (2026-01-31T12:00:00Z)')
const number = z.number('a finite number')
const texts = z.array(text, 'a list of strings')

/** Fields of the predicate; one that is unknown could change what is claimed, so it is refused. */
const predicateSchema = z.strictObject(
  {
    verdict: z.enum(['pass', 'fail'], 'pass or fail'),
    /** Valid from, and until; UTC. */
    issued: time,
    expires: time,
    /** What the outputs were compared with. */
    reference: text,
    /** Name of the backend that was judged. */
    backend: text,
    device: z.strictObject(
      {
        /** What decides which code runs: "x64/avx512_vnni". */
        class: text,
        /** For people. */
        description: text,
        /** Version of the device's driver; null: it has none. */
        driver: text.nullable(),
        /** Whether it was judged in a mode in which outputs do not depend on the batch: such a mode has kernels of its own. */
        deterministic: z.boolean('true or false'),
      },
      'an object of class, description, driver and deterministic',
    ),
    /** dtypes of the matrices and of the states. */
    precision: z.strictObject({ weights: texts, states: texts }, 'an object of weights and states'),
    /** Of everything that was run through both sides. */
    corpus: z.strictObject({ sha256 }, 'an object with a sha256'),
    /** Of the code that judged. */
    code: z.strictObject({ sha256 }, 'an object with a sha256'),
    /** Worst value of each measure, and the largest that passes. */
    metrics: z
      .array(z.strictObject({ name: text, value: number, threshold: number }, 'an object'), 'a list')
      .min(1, 'at least one metric'),
  },
  'an object with the fields of a parity predicate and no other',
)
export type Predicate = z.output<typeof predicateSchema>

const subject = z.object({ name: text, digest: z.object({ sha256 }, 'an object with a sha256') }, 'an object')

/** in-toto's own fields; others are ignored, as its specification asks. */
const statementSchema = z.object(
  {
    _type: z.literal(STATEMENT_TYPE, STATEMENT_TYPE),
    subject: z.array(subject, 'a list of subjects').min(1, 'at least one subject'),
    predicateType: z.literal(PREDICATE_TYPE, PREDICATE_TYPE),
    predicate: predicateSchema,
  },
  'an in-toto statement',
)

/** A file or table that a certificate is about. */
export interface Subject {
  readonly name: string
  readonly sha256: string
}

/** What is about to run: what a certificate must be about to count. */
export interface Candidate {
  readonly subjects: readonly Subject[]
  readonly backend: string
  /** See Predicate.device.class. */
  readonly deviceClass: string
  readonly deterministic: boolean
  readonly precision: Predicate['precision']
}

/** A certificate that counts for a candidate. */
export interface Certificate {
  readonly path: string
  /** Keys that were trusted and signed it. */
  readonly keyIds: readonly string[]
  readonly subjects: readonly Subject[]
  readonly predicate: Predicate
}

/** dtypes of a plan's matrices and states, each once, sorted. */
export function precisionOf({ tensors, states }: Pick<ExecutionPlan, 'tensors' | 'states'>): Predicate['precision'] {
  const names = (values: readonly { readonly dtype: string }[]) => [...new Set(values.map((v) => v.dtype))].sort()
  return { weights: names(tensors.filter(({ layout }) => layout !== 'row')), states: names(states) }
}

/** Plan and weights of a package as its manifest names them, whose hashes readPackage has compared with the bytes. */
export function packageSubjects({ manifest }: Pick<Package, 'manifest'>): Subject[] {
  return manifest.files
    .filter(({ path }) => path === PLAN_FILE || path === WEIGHTS_FILE)
    .map(({ path, sha256 }) => ({ name: path, sha256 }))
}

/** Name of the subject that is a backend's kernels. */
export const kernelSubject = (backend: string) => `kernels/${backend}`

/** The text of a certificate. Throws CERTIFICATE_INVALID, naming `path`, where the predicate is not one. */
export function issueCertificate(
  subjects: readonly Subject[],
  predicate: Predicate,
  keys: readonly KeyObject[],
  path = 'the certificate',
): string {
  const statement = {
    _type: STATEMENT_TYPE,
    subject: subjects.map(({ name, sha256 }) => ({ name, digest: { sha256 } })),
    predicateType: PREDICATE_TYPE,
    predicate,
  }
  const payload = Buffer.from(JSON.stringify(statement))
  parseStatement(payload, path)
  return seal(PAYLOAD_TYPE, payload, keys)
}

function parseStatement(payload: Buffer, path: string): { subjects: Subject[]; predicate: Predicate } {
  const json = parseJson(payload.toString('utf8'), path)
  const result = statementSchema.safeParse(json)
  if (!result.success) throw fail('CERTIFICATE_INVALID', { path, ...wrongField(result.error, json, 'the statement') })
  const { subject, predicate } = result.data
  return { subjects: subject.map(({ name, digest }) => ({ name, sha256: digest.sha256 })), predicate }
}

/** What a certificate claims, whoever signed it: for those who show it. Throws as checkCertificate does of its form. */
export function readClaims(content: string, path: string) {
  const envelope = parseEnvelope(content, path)
  return { ...claimsOf(envelope, path), keyIds: envelope.signatures.map(({ keyId }) => keyId) }
}

function claimsOf({ payloadType, payload }: Envelope, path: string) {
  if (payloadType !== PAYLOAD_TYPE)
    throw fail('CERTIFICATE_INVALID', { path, thing: 'payloadType', expected: PAYLOAD_TYPE, got: payloadType })
  return parseStatement(payload, path)
}

/**
 * Checks one certificate against the keys that are trusted (public), what is about to run, and the time (milliseconds
 * since 1970). Throws JSON_INVALID, ENVELOPE_INVALID, and in this order: CERTIFICATE_KEY, CERTIFICATE_SIGNATURE,
 * CERTIFICATE_INVALID, CERTIFICATE_SCOPE, CERTIFICATE_SUBJECT, CERTIFICATE_VERDICT, CERTIFICATE_EARLY,
 * CERTIFICATE_EXPIRED.
 */
export function checkCertificate(
  content: string,
  path: string,
  trusted: readonly KeyObject[],
  candidate: Candidate,
  now: number,
): Certificate {
  const envelope = parseEnvelope(content, path)
  const by = signers(envelope, trusted).map(keyId)
  if (by.length === 0) throw unsigned(envelope.signatures, trusted, path)
  const { subjects, predicate } = claimsOf(envelope, path)
  checkScope(predicate, candidate, path)
  checkSubjects(subjects, candidate, path)
  checkVerdict(predicate, path)
  checkTime(predicate, now, path)
  return { path, keyIds: by, subjects, predicate }
}

/** Nobody who is trusted signed: either others did, or the content is not what was signed. */
function unsigned(signatures: readonly { keyId: string }[], trusted: readonly KeyObject[], path: string): IngotError {
  const known = trusted.map(keyId)
  const claimed = signatures.find((signature) => known.includes(signature.keyId))
  if (claimed) return fail('CERTIFICATE_SIGNATURE', { path, key: claimed.keyId })
  return fail('CERTIFICATE_KEY', { path, expected: known, got: signatures.map(({ keyId }) => keyId || 'not named') })
}

function checkScope({ backend, device, precision }: Predicate, candidate: Candidate, path: string): void {
  const words = ({ weights, states }: Predicate['precision']) =>
    `weights ${weights.join(', ')}; states ${states.join(', ') || 'none'}`
  const check = (thing: string, expected: string, got: string) => {
    if (expected !== got) throw fail('CERTIFICATE_SCOPE', { path, thing, expected, got })
  }
  check('backend', backend, candidate.backend)
  check('device class', device.class, candidate.deviceClass)
  const mode = (deterministic: boolean) => (deterministic ? 'deterministic' : 'not deterministic')
  check('mode', mode(device.deterministic), mode(candidate.deterministic))
  check('precision', words(precision), words(candidate.precision))
}

/** Every subject of the candidate must be one of the certificate's; a name that stands there twice must agree with itself. */
function checkSubjects(certified: readonly Subject[], { subjects }: Candidate, path: string): void {
  for (const { name, sha256: got } of subjects) {
    const digests = certified.filter((subject) => subject.name === name).map(({ sha256 }) => sha256)
    if (digests.length === 0 || digests.some((digest) => digest !== got))
      throw fail('CERTIFICATE_SUBJECT', { path, subject: name, expected: digests.join(' and ') || 'nothing', got })
  }
}

function checkVerdict({ verdict, metrics }: Predicate, path: string): void {
  if (verdict !== 'pass') throw fail('CERTIFICATE_VERDICT', { path, reason: `its verdict is ${verdict}` })
  const over = metrics.find(({ value, threshold }) => value > threshold)
  if (over)
    throw fail('CERTIFICATE_VERDICT', { path, reason: `${over.name} is ${over.value}, more than ${over.threshold}` })
}

function checkTime({ issued, expires }: Predicate, now: number, path: string): void {
  const at = new Date(now).toISOString()
  if (!(now >= Date.parse(issued))) throw fail('CERTIFICATE_EARLY', { path, issued, now: at })
  if (!(now < Date.parse(expires))) throw fail('CERTIFICATE_EXPIRED', { path, expires, now: at })
}

/** Refusals by how far the check came: of several certificates, the reason of the one that came nearest is told. */
const order = [
  'JSON_INVALID',
  'ENVELOPE_INVALID',
  'CERTIFICATE_KEY',
  'CERTIFICATE_SIGNATURE',
  'CERTIFICATE_INVALID',
  'CERTIFICATE_SCOPE',
  'CERTIFICATE_SUBJECT',
  'CERTIFICATE_VERDICT',
  'CERTIFICATE_EARLY',
  'CERTIFICATE_EXPIRED',
]

/** Paths and texts of a package's certificates, by name. Throws FILE_MISSING and FILE_UNREADABLE. */
export async function readCertificates(packagePath: string): Promise<{ path: string; content: string }[]> {
  const folder = join(packagePath, CERTIFICATES_FOLDER)
  const names = await readdir(folder).catch((cause: unknown) => {
    if (codeOf(cause) === 'ENOENT') return []
    throw fail('FILE_UNREADABLE', { path: folder, reason: (cause as Error).message }, cause)
  })
  const read = async (name: string) => {
    const path = join(folder, name)
    return { path, content: (await readBytes(path, 'a certificate', MAX_CERTIFICATE_BYTES)).toString('utf8') }
  }
  return Promise.all(names.sort().map(read))
}

/**
 * The first certificate of a package that counts for the candidate. Throws CERTIFICATE_MISSING, or what
 * checkCertificate says of the one that came nearest.
 */
export async function findCertificate(
  packagePath: string,
  trusted: readonly KeyObject[],
  candidate: Candidate,
  now = Date.now(),
): Promise<Certificate> {
  const refusals: IngotError[] = []
  for (const { path, content } of await readCertificates(packagePath)) {
    try {
      return checkCertificate(content, path, trusted, candidate, now)
    } catch (error) {
      if (!order.includes((error as IngotError).code)) throw error
      refusals.push(error as IngotError)
    }
  }
  const [nearest] = refusals.sort((a, b) => order.indexOf(b.code) - order.indexOf(a.code))
  throw nearest ?? fail('CERTIFICATE_MISSING', { path: packagePath, backend: candidate.backend })
}

/** Puts a certificate into a package as `name`, replacing one of that name: all or nothing. Throws OUTPUT_UNWRITABLE. */
export async function writeCertificate(packagePath: string, name: string, content: string): Promise<string> {
  const path = join(packagePath, CERTIFICATES_FOLDER, name)
  // Beside the package: whoever opens it meanwhile finds finished certificates only.
  await replaceFile(path, content, packagePath)
  return path
}
