/** What `open` does with certificates: its policies, on a package that runs. */
import { createHash, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { once } from 'node:events'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { backends } from '../compute/backends.ts'
import { deviceClass, kernelDigest } from '../compute/kernels.ts'
import { compile, IngotError, type OpenOptions, open } from '../index.ts'
import {
  issueCertificate,
  kernelSubject,
  type Predicate,
  packageSubjects,
  precisionOf,
  writeCertificate,
} from '../models/certificate.ts'
import { manifestText, readPackage } from '../models/package.ts'

const folder = mkdtempSync(join(tmpdir(), 'ingot-certificates-'))
const bare = join(folder, 'bare.ingot')
const signed = join(folder, 'signed.ingot')
const [ours, theirs] = [generateKeyPairSync('ed25519'), generateKeyPairSync('ed25519')]
const pem = (key: KeyObject) => key.export({ type: 'spki', format: 'pem' }).toString()
const trustedKeys = [pem(ours.publicKey)]
const require = { certificates: 'require', trustedKeys } as const

/** A certificate of what runs here, for the CPU. */
async function issue(path: string, change: Partial<Predicate> = {}, key = ours.privateKey, kernels?: string) {
  const pkg = await readPackage(path, { integrity: 'full' })
  await using model = await open(path)
  const predicate: Predicate = {
    verdict: 'pass',
    issued: '2026-01-01T00:00:00Z',
    expires: '2126-01-01T00:00:00Z',
    reference: 'reference',
    backend: 'cpu',
    device: {
      class: deviceClass(model.device),
      description: model.device.description,
      driver: null,
      deterministic: true,
    },
    precision: precisionOf(pkg.plan),
    corpus: { sha256: '0'.repeat(64) },
    code: { sha256: '0'.repeat(64) },
    metrics: [{ name: 'rms', value: 0, threshold: 1 }],
    ...change,
  }
  const own = { name: kernelSubject('cpu'), sha256: kernels ?? (await kernelDigest(backends.cpu)) }
  await writeCertificate(path, 'cpu.json', issueCertificate([...packageSubjects(pkg), own], predicate, [key]))
}

/** A copy of the signed package, changed. */
function copy(name: string): string {
  const path = join(folder, name)
  cpSync(signed, path, { recursive: true })
  return path
}

/** Flips the last bit of a file. */
function flip(path: string, name: string): void {
  const bytes = readFileSync(join(path, name))
  bytes[bytes.length - 1]! ^= 1
  writeFileSync(join(path, name), bytes)
}

/** As someone with the rights of this user could: a receipt that the file, as it is, has the hash of the manifest. */
function forgeReceipt(path: string, name: string): void {
  const { dev, ino, size, mtimeNs, ctimeNs } = statSync(join(path, name), { bigint: true })
  const { files } = JSON.parse(readFileSync(join(path, 'manifest.json'), 'utf8'))
  const { sha256 } = files.find((file: { path: string }) => file.path === name)
  const receipts = join(process.env.XDG_CACHE_HOME!, 'ingot', 'receipts')
  mkdirSync(receipts, { recursive: true, mode: 0o700 })
  const text = `${JSON.stringify([...[dev, ino, size, mtimeNs, ctimeNs].map(String), sha256])}\n`
  writeFileSync(join(receipts, `${dev}-${ino}.json`), text, { mode: 0o600 })
}

async function refusal(path: string, options: OpenOptions = require): Promise<IngotError> {
  try {
    await using model = await open(path, options)
    throw new Error(`opened ${model.info.path}`)
  } catch (error) {
    if (error instanceof IngotError) return error
    throw error
  }
}

beforeAll(async () => {
  await compile(join(packageRoot(), 'checkpoints/storyteller-1m'), { out: bare })
  cpSync(bare, signed, { recursive: true })
  await issue(signed)
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('require', () => {
  it('opens what is certified, hashes every byte and says by whom', async () => {
    const path = join(signed, 'certificates', 'cpu.json')
    for (let i = 0; i < 2; i++) {
      await using model = await open(signed, require)
      expect(model.info).toMatchObject({ integrity: 'hashed', certificate: { path, predicate: { backend: 'cpu' } } })
      expect(model.info.certificate!.keyIds).toHaveLength(1)
      expect(model.warnings).toEqual([])
    }
  })

  it('believes no receipt, even one that open() believes otherwise', async () => {
    const path = copy('receipt.ingot')
    flip(path, 'weights.safetensors')
    forgeReceipt(path, 'weights.safetensors')
    await using model = await open(path)
    expect(model.info.integrity).toBe('receipt')
    expect(await refusal(path)).toMatchObject({ code: 'HASH_MISMATCH' })
    for (const integrity of ['auto', 'structure'] as const)
      expect(await refusal(signed, { ...require, integrity })).toMatchObject({
        code: 'OPTION_INVALID',
        message: expect.stringContaining('integrity: expected "full", with certificates: "require"'),
      })
  })

  it('refuses weights that only the manifest vouches for', async () => {
    const path = copy('resealed.ingot')
    flip(path, 'weights.safetensors')
    const { hash, ...manifest } = JSON.parse(readFileSync(join(path, 'manifest.json'), 'utf8'))
    const { planHash } = manifest
    await expect(open(path, { integrity: 'full' })).rejects.toMatchObject({ code: 'HASH_MISMATCH' })
    const actual = createHash('sha256').update(readFileSync(join(path, 'weights.safetensors')))
    manifest.files.find((file: { path: string }) => file.path === 'weights.safetensors').sha256 = actual.digest('hex')
    writeFileSync(join(path, 'manifest.json'), manifestText(manifest))
    await using model = await open(path, { integrity: 'full' })
    expect(model.info.hash).toBe(planHash)
    expect(await refusal(path)).toMatchObject({
      code: 'CERTIFICATE_SUBJECT',
      message: expect.stringContaining('weights.safetensors'),
    })
  })

  it('refuses what has none, or one of other kernels or another key', async () => {
    expect(await refusal(bare)).toMatchObject({ code: 'CERTIFICATE_MISSING' })
    const path = copy('other.ingot')
    await issue(path, {}, ours.privateKey, '1'.repeat(64))
    expect(await refusal(path)).toMatchObject({
      code: 'CERTIFICATE_SUBJECT',
      message: expect.stringContaining('kernels/cpu'),
    })
    await issue(path, {}, theirs.privateKey)
    expect(await refusal(path)).toMatchObject({ code: 'CERTIFICATE_KEY' })
    await issue(path, { device: { class: 'x64/abacus', description: '', driver: null, deterministic: true } })
    expect(await refusal(path)).toMatchObject({ code: 'CERTIFICATE_SCOPE' })
    expect(await refusal(signed, { ...require, backend: 'reference' })).toMatchObject({ code: 'CERTIFICATE_SCOPE' })
    expect(await refusal(signed, { ...require, backend: 'null' })).toMatchObject({ code: 'KERNELS_UNKNOWN' })
  })

  it('takes the kernels of every backend that computes for what they are', async () => {
    const digests = await Promise.all([backends.cpu, backends.reference].map(kernelDigest))
    expect(new Set(digests).size).toBe(2)
    expect(await kernelDigest(backends.cpu)).toBe(digests[0])
    await expect(kernelDigest(backends.null)).rejects.toMatchObject({ code: 'KERNELS_UNKNOWN' })
  })
})

describe('warn', () => {
  it('opens all the same, and says why it would not', async () => {
    const warning = once(process, 'warning')
    await using model = await open(bare, { certificates: 'warn', trustedKeys })
    expect(model.warnings).toMatchObject([{ code: 'CERTIFICATE_MISSING' }])
    expect(model.info.certificate).toBeUndefined()
    expect((await warning)[0]).toMatchObject({ name: 'IngotWarning', code: 'CERTIFICATE_MISSING' })
    await using fine = await open(signed, { certificates: 'warn', trustedKeys })
    expect(fine.warnings).toEqual([])
    expect(fine.info.certificate).toBeDefined()
  })
})

describe('allow', () => {
  it('is the default and does not look', async () => {
    await using model = await open(bare)
    expect(model.warnings).toEqual([])
    const path = copy('broken.ingot')
    writeFileSync(join(path, 'certificates', 'cpu.json'), 'no JSON')
    await using other = await open(path, { certificates: 'allow' })
    expect(other.info.certificate).toBeUndefined()
  })
})

it.each<[string, object]>([
  ['no key', { certificates: 'require' }],
  ['an empty list', { certificates: 'warn', trustedKeys: [] }],
  ['a private key', { trustedKeys: [ours.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()] }],
  ['a text', { trustedKeys: ours.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString() }],
  ['another kind of key', { trustedKeys: [pem(generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey)] }],
])('%s is no list of keys to trust, and the message shows none', async (_, options) => {
  const { code, message } = await refusal(bare, options)
  expect(code).toBe('OPTION_INVALID')
  expect(message).toMatch(/^trustedKeys: expected .*, got [a-z0-9 ]+$/)
})
