/**
 * Receipts: a record, in the user's cache folder, that the bytes of one file had one hash. While the file's identity
 * stays the same, an open need not hash it again. What this promises and what not: adr/0007-integrity-receipts.md.
 */
import { randomUUID } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { lstat, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { isAbsolute, join } from 'node:path'

/** All that a change of a file's bytes changes: the system sets the time of the last status change, nobody else can. */
export interface FileIdentity {
  readonly dev: bigint
  readonly ino: bigint
  readonly size: bigint
  readonly mtimeNs: bigint
  readonly ctimeNs: bigint
}

/**
 * A change within one tick of the clock that stamps files leaves the stamp as it was; the coarsest clocks tick every two
 * seconds. A file that changed more recently than this gets no receipt yet.
 */
const SETTLED_MS = 3000

export async function identityOf(file: FileHandle): Promise<FileIdentity> {
  const { dev, ino, size, mtimeNs, ctimeNs } = await file.stat({ bigint: true })
  return { dev, ino, size, mtimeNs, ctimeNs }
}

/** XDG Base Directory Specification: a relative XDG_CACHE_HOME is ignored. */
function folder(): string {
  const cache = process.env.XDG_CACHE_HOME
  return join(cache && isAbsolute(cache) ? cache : join(homedir(), '.cache'), 'ingot', 'receipts')
}

/** One a file, so that a newer receipt replaces the older one. */
const nameOf = ({ dev, ino }: FileIdentity) => `${dev}-${ino}.json`

const textOf = ({ dev, ino, size, mtimeNs, ctimeNs }: FileIdentity, sha256: string) =>
  `${JSON.stringify([dev, ino, size, mtimeNs, ctimeNs].map(String).concat(sha256))}\n`

/** Whether a file of this identity was hashed before and had this hash. */
export async function hasReceipt(identity: FileIdentity, sha256: string): Promise<boolean> {
  try {
    const path = join(folder(), nameOf(identity))
    const info = await lstat(path)
    // Written by this user, and by nobody else since.
    if (!info.isFile() || info.uid !== process.getuid?.() || (info.mode & 0o022) !== 0) return false
    return (await readFile(path, 'utf8')) === textOf(identity, sha256)
  } catch {
    return false
  }
}

/**
 * Records that a file had this hash, `before` and `after` being its identity before and after it was read. Where that
 * cannot be kept, nothing happens: the next open hashes again.
 */
export async function keepReceipt(before: FileIdentity, after: FileIdentity, sha256: string): Promise<void> {
  const text = textOf(after, sha256)
  if (textOf(before, sha256) !== text || Date.now() - Number(after.ctimeNs / 1_000_000n) < SETTLED_MS) return
  try {
    const target = folder()
    await mkdir(target, { recursive: true, mode: 0o700 })
    const temporary = join(target, `.${randomUUID()}`)
    try {
      await writeFile(temporary, text, { mode: 0o600, flag: 'wx' })
      await rename(temporary, join(target, nameOf(after)))
    } finally {
      await rm(temporary, { force: true })
    }
  } catch {}
}
