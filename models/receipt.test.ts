import {
  appendFileSync,
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { compile } from './compile.ts'
import { newFolder, tinyCheckpoint } from './example.test-checkpoint.ts'
import { readPackage } from './package.ts'
import { type FileIdentity, hasReceipt, identityOf, keepReceipt } from './receipt.ts'

const sha = 'a'.repeat(64)
const before = process.env.XDG_CACHE_HOME
let cache: string
beforeEach(() => {
  cache = newFolder()
  process.env.XDG_CACHE_HOME = cache
})
afterEach(() => {
  process.env.XDG_CACHE_HOME = before
})
const receipts = () => join(cache, 'ingot', 'receipts')

async function using<T>(path: string, use: (file: FileHandle) => Promise<T>): Promise<T> {
  const file = await open(path)
  try {
    return await use(file)
  } finally {
    await file.close()
  }
}
/** As if the file had been left alone for an hour. */
const settled = (identity: FileIdentity) => ({ ...identity, ctimeNs: identity.ctimeNs - 3600n * 10n ** 9n })

function aFile(): string {
  const path = join(newFolder(), 'file')
  writeFileSync(path, 'some bytes')
  return path
}

test('counts for the same identity and hash, and for no other', async () => {
  const identity = settled(await using(aFile(), identityOf))
  expect(await hasReceipt(identity, sha)).toBe(false)
  await keepReceipt(identity, identity, sha)
  expect(await hasReceipt(identity, sha)).toBe(true)
  expect(await hasReceipt(identity, 'b'.repeat(64))).toBe(false)
  for (const field of ['dev', 'ino', 'size', 'mtimeNs', 'ctimeNs'] as const)
    expect(await hasReceipt({ ...identity, [field]: identity[field] + 1n }, sha), field).toBe(false)
})

test('is not given for a file that changed while it was read, or just before', async () => {
  const fresh = await using(aFile(), identityOf)
  const old = settled(fresh)
  await keepReceipt(fresh, fresh, sha)
  await keepReceipt(old, { ...old, mtimeNs: old.mtimeNs + 1n }, sha)
  expect(await hasReceipt(fresh, sha)).toBe(false)
  expect(await hasReceipt(old, sha)).toBe(false)
})

test('every change of a file that leaves size and mtime alone is a new identity', async () => {
  const path = aFile()
  const { atime, mtime } = statSync(path)
  const known = await using(path, identityOf)
  const rewritten = () => {
    writeFileSync(path, 'other byte')
    utimesSync(path, atime, mtime)
  }
  const replaced = () => {
    copyFileSync(path, `${path}2`)
    renameSync(`${path}2`, path)
    utimesSync(path, atime, mtime)
  }
  const changes = [rewritten, replaced, () => appendFileSync(path, 'x')]
  for (const change of changes) {
    await new Promise((resolve) => setTimeout(resolve, 20))
    change()
    expect(await using(path, identityOf)).not.toEqual(known)
  }
})

test('counts only where nobody else could have written it', async () => {
  const identity = settled(await using(aFile(), identityOf))
  await keepReceipt(identity, identity, sha)
  const [name] = readdirSync(receipts())
  const path = join(receipts(), name!)
  expect(statSync(path).mode & 0o777).toBe(0o600)
  expect(statSync(receipts()).mode & 0o777).toBe(0o700)
  chmodSync(path, 0o666)
  expect(await hasReceipt(identity, sha)).toBe(false)
  chmodSync(path, 0o600)
  expect(await hasReceipt(identity, sha)).toBe(true)
  writeFileSync(path, `${readFileSync(path, 'utf8')} `)
  expect(await hasReceipt(identity, sha)).toBe(false)
})

test('that cannot be kept is no error', async () => {
  process.env.XDG_CACHE_HOME = aFile()
  const identity = settled(await using(aFile(), identityOf))
  await keepReceipt(identity, identity, sha)
  expect(await hasReceipt(identity, sha)).toBe(false)
})

test('a package is hashed once, and again when told to or when it changed', async () => {
  const { path } = await compile(tinyCheckpoint(), { out: join(newFolder(), 'x.ingot') })
  const weights = join(path, 'weights.safetensors')
  const auto = async () => (await readPackage(path, { integrity: 'auto' })).integrity
  expect(await auto()).toBe('hashed') // too fresh for a receipt
  expect(await auto()).toBe('hashed')
  const entry = JSON.parse(readFileSync(join(path, 'manifest.json'), 'utf8')).files.find(
    (file: { path: string }) => file.path === 'weights.safetensors',
  )
  // What an open writes some seconds later.
  const { dev, ino, size, mtimeNs, ctimeNs } = await using(weights, identityOf)
  mkdirSync(receipts(), { recursive: true })
  const text = JSON.stringify([dev, ino, size, mtimeNs, ctimeNs].map(String).concat(entry.sha256))
  writeFileSync(join(receipts(), `${dev}-${ino}.json`), `${text}\n`, { mode: 0o600 })
  expect(await auto()).toBe('receipt')
  expect((await readPackage(path, { integrity: 'full' })).integrity).toBe('hashed')
  expect((await readPackage(path, { integrity: 'structure' })).integrity).toBe('structure')
  const bytes = readFileSync(weights)
  bytes[bytes.length - 1]! ^= 1
  await new Promise((resolve) => setTimeout(resolve, 20))
  writeFileSync(weights, bytes)
  await expect(auto()).rejects.toMatchObject({ code: 'HASH_MISMATCH' })
})
