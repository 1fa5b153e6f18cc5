/** Reading and writing files with typed errors: names, sizes, text, JSON, hashes; in bounded chunks where asynchronous. */
import { createHash, randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, mkdir, mkdtemp, open, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { addon } from '../abi/native.ts'
import { fail, IngotError } from '../errors.ts'
import { digestOf } from '../plans/hash.ts'

/** Maps a whole file; the pages are read when they are touched. */
export type MapFile = (path: string) => ArrayBuffer
export const mapFile: MapFile = (path) => addon().mapFile(path)

/** JSON documents larger than this are not configurations. */
const MAX_TEXT_BYTES = 256 * 2 ** 20
/** Bytes hashed or copied between two turns of the event loop: under 1 ms of SHA-256. */
export const CHUNK_BYTES = 256 * 1024

/** A pipe must not hold up a thread until somebody writes to it. */
const READ = constants.O_RDONLY | (constants.O_NONBLOCK ?? 0)

const reasonOf = (error: unknown) => (error instanceof Error ? error.message : String(error))
export const codeOf = (error: unknown) => (error as NodeJS.ErrnoException | undefined)?.code

/** Runs `use` on the open file. Throws FILE_MISSING (naming what was expected) or FILE_UNREADABLE. */
export async function withFile<T>(
  path: string,
  expected: string,
  use: (file: FileHandle, bytes: number) => Promise<T>,
): Promise<T> {
  let file: FileHandle
  try {
    file = await open(path, READ)
  } catch (cause) {
    if (codeOf(cause) === 'ENOENT' || codeOf(cause) === 'ENOTDIR') throw fail('FILE_MISSING', { path, expected }, cause)
    throw fail('FILE_UNREADABLE', { path, reason: reasonOf(cause) }, cause)
  }
  try {
    const info = await file.stat()
    if (!info.isFile()) throw fail('FILE_UNREADABLE', { path, reason: 'not a regular file' })
    return await use(file, info.size)
  } catch (cause) {
    const { syscall } = cause as NodeJS.ErrnoException
    if (syscall === 'read' || syscall === 'fstat')
      throw fail('FILE_UNREADABLE', { path, reason: reasonOf(cause) }, cause)
    throw cause
  } finally {
    await file.close()
  }
}

/** Exactly [offset, offset + length) of an open file. Throws FILE_TRUNCATED, naming `thing`, when it ends before that. */
export async function readRange(
  file: FileHandle,
  path: string,
  thing: string,
  offset: number,
  length: number,
): Promise<Buffer> {
  const bytes = Buffer.allocUnsafeSlow(length)
  for (let done = 0; done < length; ) {
    const { bytesRead } = await file.read(bytes, done, length - done, offset + done)
    if (bytesRead === 0) throw fail('FILE_TRUNCATED', { path, thing, expected: offset + length, got: offset + done })
    done += bytesRead
  }
  return bytes
}

/** The bytes of a small file: a configuration, a plan, a tokenizer. */
export function readBytes(path: string, expected: string, most = MAX_TEXT_BYTES): Promise<Buffer> {
  return withFile(path, expected, (file, size) => readWhole(file, path, size, most))
}

/** The same of a file that is open and has `size` bytes. */
export async function readWhole(file: FileHandle, path: string, size: number, most = MAX_TEXT_BYTES): Promise<Buffer> {
  if (size > most) throw fail('FILE_UNREADABLE', { path, reason: `${size} bytes, at most ${most} are read at once` })
  return readRange(file, path, 'the file', 0, size)
}

/** Parses JSON text. Throws JSON_INVALID. */
export function parseJson(text: string, path: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw fail('JSON_INVALID', { path, reason: reasonOf(cause) }, cause)
  }
}

export const readJson = async (path: string, expected: string): Promise<unknown> =>
  parseJson((await readBytes(path, expected)).toString('utf8'), path)

export const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** Size and content hash of one file. */
export interface FileHash {
  readonly bytes: number
  /** SHA-256 (FIPS 180-4), lower-case hexadecimal. */
  readonly sha256: string
}

export const hashBytes = (bytes: Uint8Array): FileHash => ({
  bytes: bytes.length,
  sha256: digestOf(bytes),
})

/** Reads a file once in chunks, hashes it and hands each chunk to `each`; the chunk is valid until `each` settles. */
export function hashFile(
  path: string,
  expected: string,
  each?: (chunk: Uint8Array) => void | Promise<void>,
): Promise<FileHash> {
  return withFile(path, expected, (file) => hashOpenFile(file, each))
}

/** The same of a file that is open. */
export async function hashOpenFile(
  file: FileHandle,
  each?: (chunk: Uint8Array) => void | Promise<void>,
): Promise<FileHash> {
  const hash = createHash('sha256')
  let [buffer, spare] = [Buffer.allocUnsafe(CHUNK_BYTES), Buffer.allocUnsafe(CHUNK_BYTES)]
  let reading = file.read(buffer, 0, CHUNK_BYTES, 0)
  for (let bytes = 0; ; ) {
    const { bytesRead } = await reading
    if (bytesRead === 0) return { bytes, sha256: hash.digest('hex') }
    bytes += bytesRead
    // The next chunk is read while this one is hashed; what goes wrong is told when it is waited for.
    reading = file.read(spare, 0, CHUNK_BYTES, bytes)
    reading.catch(() => {})
    const chunk = buffer.subarray(0, bytesRead)
    hash.update(chunk)
    await each?.(chunk)
    ;[buffer, spare] = [spare, buffer]
  }
}

/** Parsed JSON of a file that may be absent. */
export async function readOptional(path: string): Promise<unknown> {
  try {
    return await readJson(path, 'a JSON file')
  } catch (error) {
    if (error instanceof IngotError && error.code === 'FILE_MISSING') return undefined
    throw error
  }
}

/**
 * Writes a file, replacing one that is there: all of it or nothing. Meanwhile it lies beside `beside`. Throws
 * OUTPUT_UNWRITABLE.
 */
export async function replaceFile(path: string, content: string, beside = path): Promise<void> {
  const temporary = join(dirname(resolve(beside)), `.${basename(beside)}.${randomUUID()}.tmp`)
  try {
    await mkdir(dirname(path), { recursive: true })
    await writeFile(temporary, content, { flag: 'wx' })
    await rename(temporary, path)
  } catch (cause) {
    throw fail('OUTPUT_UNWRITABLE', { path, reason: reasonOf(cause) }, cause)
  } finally {
    await rm(temporary, { force: true })
  }
}

/** A new folder among the system's temporary ones. Throws OUTPUT_UNWRITABLE. */
export const temporaryFolder = (name: string): Promise<string> =>
  mkdtemp(join(tmpdir(), `ingot-${name}-`)).catch((cause: unknown) => {
    throw fail('OUTPUT_UNWRITABLE', { path: tmpdir(), reason: reasonOf(cause) }, cause)
  })
