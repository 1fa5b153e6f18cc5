/** Digest of the code that decides an outcome; that of a backend's kernels is compute/kernels.ts. */
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import { packageRoot } from '../abi/native.ts'
import type { Backend } from '../compute/device.ts'
import { kernelDigest } from '../compute/kernels.ts'
import { fail } from '../errors.ts'
import { readJson } from '../models/files.ts'

/** All that a verdict can depend on. Tests, documents and the command are not among it. */
const parts = ['abi', 'plans', 'models', 'compute', 'inference', 'native', 'parity', 'errors.ts', 'index.ts']
const isCode = (path: string) => /\.(ts|cc|cu|h|inc|fbs|py)$/.test(path)
const isTest = (path: string) =>
  /\.(test|d)\.ts$|\.test-\w+\.ts$|^native\/test\/|\/(fixtures|golden|goldens)\//.test(path)

/** What the build says of the code that it compiled: an installed package has no sources. */
const RECORD = 'dist/code.json'

async function filesBelow(root: string, part: string): Promise<string[]> {
  if (part.includes('.')) return [part]
  const entries = await readdir(join(root, part), { withFileTypes: true, recursive: true })
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)).split(sep).join('/'))
}

/** SHA-256 over paths and bytes, in the order of the paths. */
async function digestOf(root: string, paths: readonly string[]): Promise<string> {
  const hash = createHash('sha256')
  for (const path of [...paths].sort()) {
    const bytes = await readFile(join(root, path))
    hash.update(`${path}\0${bytes.length}\0`).update(bytes)
  }
  return hash.digest('hex')
}

async function sourcesDigest(root: string): Promise<string> {
  const files = (await Promise.all(parts.map((part) => filesBelow(root, part)))).flat()
  return digestOf(
    root,
    files.filter((path) => isCode(path) && !isTest(path)),
  )
}

/** Of what tsc made of the same sources. */
async function compiledDigest(root: string): Promise<string> {
  const dist = join(root, 'dist')
  const compiled = parts.filter((part) => part !== 'native').map((part) => part.replace(/\.ts$/, '.js'))
  const files = (await Promise.all(compiled.map((part) => filesBelow(dist, part)))).flat()
  return digestOf(
    dist,
    files.filter((path) => path.endsWith('.js') && !isTest(path.replace(/\.js$/, '.ts'))),
  )
}

/** Writes down what dist/ was compiled from, right after it was. */
export async function recordCode(root = packageRoot()): Promise<void> {
  const code = { sources: await sourcesDigest(root), compiled: await compiledDigest(root) }
  await writeFile(join(root, RECORD), `${JSON.stringify(code)}\n`)
}

/** The digest of the sources of dist/. Throws as readJson() does, and HASH_MISMATCH where dist/ is not as it was built. */
export async function recordedCode(root = packageRoot()): Promise<string> {
  const record = await readJson(join(root, RECORD), 'what "npm run build" writes down of the code')
  const { sources, compiled: expected } = record as Record<string, unknown>
  const got = await compiledDigest(root)
  if (got !== expected || typeof sources !== 'string')
    throw fail('HASH_MISMATCH', { path: join(root, 'dist'), expected, got })
  return sources
}

/**
 * SHA-256 over paths and bytes of the sources that decide a verdict, in the order of their paths. An installed package has
 * none: there it is the digest of the sources that it was built from, and throws as recordedCode().
 */
export const codeDigest = (root = packageRoot()): Promise<string> =>
  existsSync(join(root, 'errors.ts')) ? sourcesDigest(root) : recordedCode(root)

/**
 * Digest of a backend's kernels (compute/kernels.ts); of the code, for one that does not say what they are, or that cannot
 * run here and so has none.
 */
export const kernelsOf = (backend: Backend): Promise<string> =>
  backend.kernelFiles && !backend.unavailable() ? kernelDigest(backend) : codeDigest()
