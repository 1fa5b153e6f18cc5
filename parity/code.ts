/** Digest of the code that decides an outcome; that of a backend's kernels is compute/kernels.ts. */
import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import { packageRoot } from '../abi/native.ts'
import type { Backend } from '../compute/device.ts'
import { kernelDigest } from '../compute/kernels.ts'

/** All that a verdict can depend on. Tests, documents and the command are not among it. */
const parts = ['abi', 'plans', 'models', 'compute', 'inference', 'native', 'parity', 'errors.ts', 'index.ts']
const isCode = (path: string) => /\.(ts|cc|cu|h|inc|fbs|py)$/.test(path)
const isTest = (path: string) =>
  /\.(test|d)\.ts$|\.test-\w+\.ts$|^native\/test\/|\/(fixtures|golden|goldens)\//.test(path)

async function filesBelow(root: string, part: string): Promise<string[]> {
  if (part.endsWith('.ts')) return [part]
  const entries = await readdir(join(root, part), { withFileTypes: true, recursive: true })
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)).split(sep).join('/'))
}

/**
 * SHA-256 over paths and bytes of the sources that decide a verdict, in the order of their paths. Throws what reading
 * throws: an installed package has no sources, and nothing to sign off.
 */
export async function codeDigest(root = packageRoot()): Promise<string> {
  const files = (await Promise.all(parts.map((part) => filesBelow(root, part)))).flat()
  const hash = createHash('sha256')
  for (const path of files.filter((path) => isCode(path) && !isTest(path)).sort()) {
    const bytes = await readFile(join(root, path))
    hash.update(`${path}\0${bytes.length}\0`).update(bytes)
  }
  return hash.digest('hex')
}

/** Digest of a backend's kernels (compute/kernels.ts); of the code, for one that does not say what they are. */
export const kernelsOf = (backend: Backend): Promise<string> =>
  backend.kernelFiles ? kernelDigest(backend) : codeDigest()
