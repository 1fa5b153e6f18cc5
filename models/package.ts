/**
 * A package, `name.ingot/`: manifest.json, plan.bin, weights.safetensors and what of the tokenizer the checkpoint has.
 * The manifest holds size and hash of every other file and a hash of itself, so that no byte can change unnoticed. Signed
 * certificates, and measured choices of kernels, may be added later, in folders of their own.
 */
import { type FileHandle, lstat, readdir, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { byteSize, dtypes } from '../abi/dtypes.ts'
import { paddedShape } from '../abi/layouts.ts'
import { fail, shownValue, wrongField } from '../errors.ts'
import { digestOf, sha256 } from '../plans/hash.ts'
import type { ExecutionPlan, Tensor } from '../plans/plan.ts'
import { readPlan } from '../plans/read.ts'
import { quantizations } from './compile/quantize.ts'
import { flag, integer, samplingFields, text, tokenId } from './config.ts'
import { hashBytes, hashOpenFile, isObject, parseJson, readBytes, readWhole, withFile } from './files.ts'
import { hasReceipt, identityOf, keepReceipt } from './receipt.ts'
import { isPad, readHeader, type TensorEntry } from './safetensors.ts'

export const PACKAGE_FORMAT = 1
export const MANIFEST_FILE = 'manifest.json'
export const PLAN_FILE = 'plan.bin'
export const WEIGHTS_FILE = 'weights.safetensors'
export const TOKENIZER_FILE = 'tokenizer.json'
/** Beside a large tokenizer.json; see abi/vocabulary.ts. */
export const VOCABULARY_FILE = 'vocabulary.bin'
/** Holds what others say about the package, each file signed by itself; see certificate.ts. */
export const CERTIFICATES_FOLDER = 'certificates'
/** Holds measured choices of kernels, a file for each device; see tuning.ts. */
export const TUNING_FOLDER = 'tuning'
/** Folders whose files the manifest does not list, and what those are. */
const ADDED = { [CERTIFICATES_FOLDER]: 'certificate', [TUNING_FOLDER]: 'tuning file' } as const
/** More of each than any package needs, and few enough to be read at once. */
const MAX_ADDED = 64
/** Files that a package copies from its checkpoint where they exist. */
export const COPIED_FILES = [
  TOKENIZER_FILE,
  'tokenizer_config.json',
  'chat_template.jinja',
  'generation_config.json',
] as const

const bytes = integer(0, Number.MAX_SAFE_INTEGER)
const sha256Text = z.preprocess((value) => (typeof value === 'string' ? value : ''), sha256)
const fileName = z.custom<string>(
  (name) => typeof name === 'string' && /^[^/\\\0]+$/.test(name) && name !== '.' && name !== '..',
  'the name of a file in one folder',
)
const fileEntry = z.strictObject({ path: fileName, bytes, sha256: sha256Text }, 'an object of path, bytes and sha256')
const files = z.array(fileEntry, 'a list of files')

/** The manifest without its own hash. */
const contents = z.strictObject(
  {
    format: z.literal(PACKAGE_FORMAT, String(PACKAGE_FORMAT)),
    /** Version of Ingot that wrote it. */
    ingot: text,
    /** Model family and architecture, for people. */
    model: text,
    architecture: text,
    quantize: z.enum(quantizations, quantizations.join(', ')),
    planHash: sha256Text,
    /** Longest sequence, in tokens. */
    contextTokens: integer(1, 2 ** 31 - 1),
    /** Stop tokens and the sampling that the checkpoint's authors advise; null: not said. */
    generation: z.strictObject(
      {
        eos: z.array(tokenId, 'a list of token ids'),
        bos: tokenId.nullable(),
        doSample: flag.nullable(),
        temperature: samplingFields.temperature.nullable(),
        topK: samplingFields.topK.nullable(),
        topP: samplingFields.topP.nullable(),
        minP: samplingFields.minP.nullable(),
        repetitionPenalty: samplingFields.repetitionPenalty.nullable(),
      },
      'an object',
    ),
    /** Every file of the package but the manifest. */
    files,
    /** Every file of the checkpoint that went into it. */
    sources: files,
  },
  'an object with the fields of a manifest and no other',
)
const manifestSchema = contents.extend({ hash: sha256Text })
type FileEntry = z.output<typeof fileEntry>
export type ManifestContents = z.output<typeof contents>
export type Manifest = z.output<typeof manifestSchema>

/** The one text of a manifest: what a reader finds must be this, byte for byte. */
const canonical = (value: object) => `${JSON.stringify(value, null, 2)}\n`

/** The manifest's text, with the hash of its contents as the last field. */
export function manifestText(value: ManifestContents): string {
  const hash = digestOf(canonical(value))
  return canonical({ ...value, hash })
}

/** Parses and checks a manifest. Throws JSON_INVALID, PACKAGE_NEWER, PACKAGE_INVALID, HASH_MISMATCH. */
export function parseManifest(source: string, path: string): Manifest {
  const json = parseJson(source, path)
  const broken = (thing: string, expected: string, got: unknown) =>
    fail('PACKAGE_INVALID', { path, thing, expected, got: shownValue(got) })
  if (!isObject(json)) throw broken('the manifest', 'an object', json)
  const { format } = json
  if (Number.isInteger(format) && (format as number) > PACKAGE_FORMAT)
    throw fail('PACKAGE_NEWER', { path, expected: PACKAGE_FORMAT, got: format })
  const result = manifestSchema.safeParse(json)
  if (!result.success) {
    const wrong = wrongField(result.error, json, 'the manifest')
    const got = result.error.issues[0]!.path.length ? wrong.got : shownValue(Object.keys(json))
    throw fail('PACKAGE_INVALID', { path, ...wrong, got })
  }
  const { hash, ...rest } = result.data
  const expected = digestOf(canonical(rest))
  if (hash !== expected) throw fail('HASH_MISMATCH', { path, expected: hash, got: expected })
  // The same values in other words: spacing, order, repeated keys.
  const given = digestOf(source)
  const own = digestOf(canonical(result.data))
  if (given !== own) throw fail('HASH_MISMATCH', { path, expected: own, got: given })
  return result.data
}

/** Where a stored tensor lies; bytes of a file. */
export interface StoredTensor {
  readonly file: string
  readonly offset: number
  readonly bytes: number
}

/** A package whose plan passed the verifier. */
export interface Package {
  readonly path: string
  readonly manifest: Manifest
  readonly plan: ExecutionPlan
  readonly planBytes: Uint8Array
  readonly planHash: string
  /** By name of the plan's tensors. */
  readonly tensors: ReadonlyMap<string, StoredTensor>
  /** How the weights, and a tokenizer.json that is not read here, were checked. */
  readonly integrity: 'hashed' | 'receipt' | 'structure'
  /** Texts of the copied files that the package has. A large tokenizer.json is not read: its vocabulary is. */
  readonly tokenizerJson?: string
  readonly tokenizerPath?: string
  readonly vocabulary?: Uint8Array
  readonly tokenizerConfigJson?: string
  readonly chatTemplate?: string
  readonly generationConfigJson?: string
}

/** SHA-256 of the file of weights. */
export const weightsHash = ({ manifest }: Pick<Package, 'manifest'>): string =>
  manifest.files.find(({ path }) => path === WEIGHTS_FILE)!.sha256

/**
 * `full` hashes every byte. `auto` does not hash again a large file that was hashed before and has not changed since, by
 * the receipt of it (receipt.ts). `structure` trusts the bytes of large files. Large: the weights, and a tokenizer.json
 * that has a vocabulary beside it; the others are always hashed.
 */
export type Integrity = 'auto' | 'full' | 'structure'

/** Nothing may lie in the folder that the manifest does not vouch for. */
async function checkListing(path: string, manifest: Manifest): Promise<void> {
  const broken = (thing: string, expected: string, got: string) =>
    fail('PACKAGE_INVALID', { path, thing, expected, got })
  const names = manifest.files.map((file) => file.path)
  const twice = names.find((name, i) => names.indexOf(name) !== i || name === MANIFEST_FILE)
  if (twice) throw broken(twice, 'one entry in the manifest', 'more')
  const vocabulary = names.includes(VOCABULARY_FILE) ? [TOKENIZER_FILE] : []
  for (const required of [PLAN_FILE, WEIGHTS_FILE, ...vocabulary])
    if (!names.includes(required)) throw broken(required, 'an entry in the manifest', 'none')
  for (const entry of await readdir(path, { withFileTypes: true })) {
    const { name } = entry
    if (entry.isDirectory() && Object.hasOwn(ADDED, name))
      await checkAdded(join(path, name), ADDED[name as keyof typeof ADDED])
    else if (!entry.isFile())
      throw broken(entry.name, 'a regular file', entry.isDirectory() ? 'a folder' : 'a link or device')
    else if (entry.name !== MANIFEST_FILE && !names.includes(entry.name))
      throw broken(entry.name, 'only files that the manifest lists', 'a file it does not list')
  }
}

/** Certificates vouch for themselves, and tuning files decide nothing but speed; nothing else may lie beside them. */
async function checkAdded(path: string, thing: string): Promise<void> {
  const entries = await readdir(path, { withFileTypes: true })
  if (entries.length > MAX_ADDED)
    throw fail('PACKAGE_INVALID', {
      path,
      thing: 'the folder',
      expected: `at most ${MAX_ADDED} ${thing}s`,
      got: entries.length,
    })
  const other = entries.find((entry) => !entry.isFile() || !entry.name.endsWith('.json'))
  if (!other) return
  throw fail('PACKAGE_INVALID', { path, thing: other.name, expected: `a ${thing}, *.json`, got: 'something else' })
}

const mismatch = (path: string, expected: string, got: string) => fail('HASH_MISMATCH', { path, expected, got })

/** Opens a file of the package and checks its size. Throws FILE_TRUNCATED or PACKAGE_INVALID. */
const withListed = <T>(
  path: string,
  { path: name, bytes }: FileEntry,
  use: (file: FileHandle, path: string) => Promise<T>,
) => {
  const file = join(path, name)
  return withFile(file, 'a file that the manifest lists', async (handle, got) => {
    if (got < bytes) throw fail('FILE_TRUNCATED', { path: file, thing: 'the file', expected: bytes, got })
    if (got > bytes) throw fail('PACKAGE_INVALID', { path: file, thing: 'size', expected: bytes, got })
    return await use(handle, file)
  })
}

/** Where each tensor of the plan lies in the weights file, whose header must say the same. Throws PACKAGE_INVALID. */
function matchTensors(
  path: string,
  plan: ExecutionPlan,
  stored: ReadonlyMap<string, TensorEntry>,
): ReadonlyMap<string, StoredTensor> {
  const broken = (thing: string, expected: string, got: string) =>
    fail('PACKAGE_INVALID', { path, thing, expected, got })
  const described = ({ dtype, shape }: Pick<TensorEntry, 'dtype' | 'shape'>) => `${dtype} [${shape.join(', ')}]`
  const located = plan.tensors.map((tensor: Tensor) => {
    const entry = stored.get(tensor.name)
    const expected = described(storedShape(tensor))
    if (!entry || described(entry) !== expected || entry.bytes !== tensor.bytes)
      throw broken(`tensor ${tensor.name}`, expected, entry ? described(entry) : 'none')
    return [tensor.name, Object.freeze({ file: path, offset: entry.offset, bytes: entry.bytes })] as const
  })
  const known = new Map(located)
  const extra = [...stored.keys()].find((name) => !known.has(name) && !isPad(name))
  if (extra) throw broken(`tensor ${extra}`, 'only tensors of the plan', 'one that the plan does not name')
  return known
}

/** dtype and shape under which a tensor of the plan is stored; a packed dtype counts its bytes. */
export function storedShape({ dtype, layout, rows, cols }: Tensor): Pick<TensorEntry, 'dtype' | 'shape'> {
  const [paddedRows, paddedCols] = paddedShape(layout, rows, cols)
  const shape = [paddedRows, dtypes[dtype].bits < 8 ? byteSize(dtype, paddedCols) : paddedCols]
  return { dtype: dtypes[dtype].safetensors, shape }
}

/** Names of the files that are not read whole. */
const largeFiles = ({ files }: Manifest): readonly string[] =>
  files.some((file) => file.path === VOCABULARY_FILE) ? [WEIGHTS_FILE, TOKENIZER_FILE] : [WEIGHTS_FILE]

/** Checks size and, as `integrity` says, hash of the large files. */
async function checkLargeFiles(path: string, manifest: Manifest, integrity: Integrity): Promise<Package['integrity']> {
  const names = largeFiles(manifest)
  const entries = manifest.files.filter((entry) => names.includes(entry.path))
  const check = (entry: FileEntry) =>
    withListed(path, entry, (file, at) =>
      integrity === 'structure' ? Promise.resolve(integrity) : checkHash(file, at, entry.sha256, integrity === 'auto'),
    )
  const checked = await Promise.all(entries.map(check))
  return checked.find((each) => each !== 'receipt') ?? 'receipt'
}

/** Hashes a file, unless there is a receipt and `receiptCounts`. Throws HASH_MISMATCH. */
async function checkHash(file: FileHandle, path: string, expected: string, receiptCounts: boolean) {
  const before = await identityOf(file)
  if (receiptCounts && (await hasReceipt(before, expected))) return 'receipt'
  const { sha256: got } = await hashOpenFile(file)
  if (got !== expected) throw mismatch(path, expected, got)
  await keepReceipt(before, await identityOf(file), expected)
  return 'hashed'
}

/** Small files by name, hashed. */
async function readSmallFiles(path: string, manifest: Manifest): Promise<ReadonlyMap<string, Buffer>> {
  const large = largeFiles(manifest)
  const read = (entry: FileEntry) =>
    withListed(path, entry, async (file, at) => {
      const buffer = await readWhole(file, at, entry.bytes)
      const { sha256: got } = hashBytes(buffer)
      if (got !== entry.sha256) throw mismatch(at, entry.sha256, got)
      return [entry.path, buffer] as const
    })
  return new Map(await Promise.all(manifest.files.filter((entry) => !large.includes(entry.path)).map(read)))
}

/** What the manifest says about the plan must be what the plan says. Throws PACKAGE_INVALID. */
function checkAgreement(path: string, manifest: Manifest, plan: ExecutionPlan): void {
  const check = (thing: string, expected: unknown, got: unknown) => {
    if (expected !== got) throw fail('PACKAGE_INVALID', { path: join(path, MANIFEST_FILE), thing, expected, got })
  }
  check('model', plan.model, manifest.model)
  check('contextTokens', plan.maxContext, manifest.contextTokens)
}

/** Where a link points now: one that changes meanwhile must not mix the files of two packages. */
async function linkedFolder(path: string): Promise<string> {
  const info = await lstat(path).catch(() => undefined)
  return info?.isSymbolicLink() ? realpath(path).catch(() => path) : path
}

async function readManifest(path: string): Promise<Manifest> {
  const file = join(path, MANIFEST_FILE)
  return parseManifest((await readBytes(file, 'the manifest of an Ingot package')).toString('utf8'), file)
}

/**
 * Reads and checks a package. Throws FILE_MISSING, FILE_TRUNCATED, JSON_INVALID, PACKAGE_INVALID, PACKAGE_NEWER,
 * HASH_MISMATCH (naming the file), PLAN_INVALID, PLAN_NEWER, SAFETENSORS_HEADER.
 */
export async function readPackage(name: string, { integrity }: { readonly integrity: Integrity }): Promise<Package> {
  const path = await linkedFolder(name)
  const manifest = await readManifest(path)
  await checkListing(path, manifest)
  const [small, checked] = await Promise.all([
    readSmallFiles(path, manifest),
    checkLargeFiles(path, manifest, integrity),
  ])
  const weights = join(path, WEIGHTS_FILE)
  const planBytes = small.get(PLAN_FILE)!
  const hash = digestOf(planBytes)
  if (hash !== manifest.planHash) throw mismatch(join(path, PLAN_FILE), manifest.planHash, hash)
  const plan = readPlan(planBytes, join(path, PLAN_FILE))
  checkAgreement(path, manifest, plan)
  const { tensors } = await readHeader(weights)
  const optional = <K extends string>(key: K, name: string) => {
    const buffer = small.get(name)
    return (buffer ? { [key]: buffer.toString('utf8') } : {}) as { readonly [P in K]?: string }
  }
  const vocabulary = small.get(VOCABULARY_FILE)
  return Object.freeze({
    path,
    manifest,
    plan,
    planBytes,
    planHash: hash,
    tensors: matchTensors(weights, plan, tensors),
    integrity: checked,
    ...(vocabulary && { vocabulary, tokenizerPath: join(path, TOKENIZER_FILE) }),
    ...optional('tokenizerJson', TOKENIZER_FILE),
    ...optional('tokenizerConfigJson', 'tokenizer_config.json'),
    ...optional('chatTemplate', 'chat_template.jinja'),
    ...optional('generationConfigJson', 'generation_config.json'),
  })
}

/** Whether a folder says that it is an Ingot package, sound or not: what an output may replace. */
export async function isPackage(path: string): Promise<boolean> {
  try {
    const json = parseJson((await readBytes(join(path, MANIFEST_FILE), 'a manifest')).toString('utf8'), path)
    return isObject(json) && typeof json.ingot === 'string' && 'format' in json
  } catch {
    return false
  }
}
