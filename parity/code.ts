/** Digests of what decides an outcome: the code, and the kernels of a backend. */
import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join, relative, sep } from 'node:path'
import { packageRoot } from '../abi/native.ts'
import { cpuTable } from '../compute/cpu.ts'
import type { KernelTable } from '../compute/table.ts'

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

/** Kernel tables of the backends whose kernels are in the addon. */
const tables: Readonly<Record<string, KernelTable>> = { cpu: cpuTable }

/**
 * SHA-256 of what a backend computes with: its kernel table and the addon that holds its kernels; the code where they are
 * no native ones.
 */
export async function kernelDigest(backend: string, root = packageRoot()): Promise<string> {
  const table = tables[backend]
  const hash = createHash('sha256').update(`${backend}\0`)
  if (!table) return hash.update(await codeDigest(root)).digest('hex')
  hash.update(`${JSON.stringify(table)}\0`).update(await readFile(join(root, 'build', 'Release', 'ingot.node')))
  return hash.digest('hex')
}
