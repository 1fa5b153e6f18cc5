/**
 * The identity of a backend's kernels, which a certificate names: its table and the very bytes that run. Sources would
 * not do: compiler and flags decide bits, too, and an installed package has none.
 */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { basename } from 'node:path'
import { fail } from '../errors.ts'
import type { Backend, DeviceInfo } from './device.ts'

const digests = new WeakMap<Backend, Promise<string>>()

async function digestOf(backend: Backend): Promise<string> {
  if (!backend.kernelFiles) throw fail('KERNELS_UNKNOWN', { backend: backend.name })
  const files = await backend.kernelFiles()
  const hash = createHash('sha256').update(`${backend.name}\0${JSON.stringify(backend.table ?? {})}\0`)
  for (const file of [...files].sort()) {
    const content = createHash('sha256')
    try {
      for await (const chunk of createReadStream(file)) content.update(chunk as Buffer)
    } catch (cause) {
      throw fail('FILE_UNREADABLE', { path: file, reason: (cause as Error).message }, cause)
    }
    hash.update(`${basename(file)}\0`).update(content.digest())
  }
  return hash.digest('hex')
}

/**
 * SHA-256 of a backend's name, table and files, lower-case hexadecimal. Files are read once a process: the code that runs
 * is the one that was loaded. Throws KERNELS_UNKNOWN and FILE_UNREADABLE.
 */
export function kernelDigest(backend: Backend): Promise<string> {
  const known = digests.get(backend)
  if (known) return known
  const digest = digestOf(backend)
  digests.set(backend, digest)
  digest.catch(() => digests.delete(backend))
  return digest
}

/** What decides which of a backend's kernels run: the processor's architecture and the instruction set. */
export const deviceClass = ({ isa }: Pick<DeviceInfo, 'isa'>): string => `${process.arch}/${isa}`
