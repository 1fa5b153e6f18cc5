/**
 * The safetensors format (https://github.com/huggingface/safetensors): u64 header length, a JSON object that names each
 * tensor's dtype, shape and byte range, then the data, which the ranges cover without hole or overlap.
 */
import { fail } from '../errors.ts'
import { isObject, type MapFile, mapFile, readRange, withFile } from './files.ts'

/** Bytes of an element of every dtype of the format that is a whole number of bytes. */
const elementBytes = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
  C64: 8,
} as const
export type SafetensorsDType = keyof typeof elementBytes

/** Longest header that a reader accepts, as the reference implementation does. */
const MAX_HEADER_BYTES = 100_000_000

export interface TensorEntry {
  readonly name: string
  readonly dtype: SafetensorsDType
  readonly shape: readonly number[]
  /** Path of the file that holds it, and byte range in that file. */
  readonly file: string
  readonly offset: number
  readonly bytes: number
}

export interface SafetensorsHeader {
  readonly path: string
  /** Bytes of the whole file. */
  readonly bytes: number
  readonly tensors: ReadonlyMap<string, TensorEntry>
  readonly metadata: Readonly<Record<string, string>>
}

/** First key that an object of valid JSON repeats: JSON.parse would drop the earlier value in silence. */
export function repeatedKey(json: string): string | undefined {
  const scopes: Set<string>[] = []
  for (let i = 0; i < json.length; i++) {
    const char = json[i]
    if (char === '{') scopes.push(new Set())
    else if (char === '}') scopes.pop()
    if (char !== '"') continue
    const start = i++
    while (json[i] !== '"') i += json[i] === '\\' ? 2 : 1
    let next = i + 1
    while (' \t\r\n'.includes(json[next] ?? '-')) next++
    if (json[next] !== ':') continue
    const key = JSON.parse(json.slice(start, i + 1)) as string
    if (scopes.at(-1)?.has(key)) return key
    scopes.at(-1)?.add(key)
  }
  return undefined
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0

/** One entry of the header, checked on its own; `bad` builds the error. */
function entryOf(
  name: string,
  value: unknown,
  data: { path: string; start: number; bytes: number },
  bad: (reason: string) => Error,
): TensorEntry {
  if (!isObject(value)) throw bad(`tensor ${name}: expected an object`)
  const { dtype, shape, data_offsets: range } = value
  if (typeof dtype !== 'string' || !Object.hasOwn(elementBytes, dtype))
    throw bad(`tensor ${name}: unknown dtype ${JSON.stringify(dtype)}`)
  if (!Array.isArray(shape) || !shape.every(isCount))
    throw bad(`tensor ${name}: shape: expected a list of integers from 0, got ${JSON.stringify(shape)}`)
  if (!Array.isArray(range) || range.length !== 2 || !range.every(isCount))
    throw bad(`tensor ${name}: data_offsets: expected two integers from 0, got ${JSON.stringify(range)}`)
  const [begin, end] = range as [number, number]
  const bytes = shape.reduce((product: number, size: number) => product * size, elementBytes[dtype as SafetensorsDType])
  if (bytes !== end - begin)
    throw bad(`tensor ${name}: ${dtype} of shape [${shape}] is ${bytes} bytes, data_offsets hold ${end - begin}`)
  if (end > data.bytes)
    throw fail('FILE_TRUNCATED', {
      path: data.path,
      thing: `tensor ${name}`,
      expected: data.start + end,
      got: data.start + data.bytes,
    })
  return {
    name,
    dtype: dtype as SafetensorsDType,
    shape: Object.freeze([...shape]),
    file: data.path,
    offset: data.start + begin,
    bytes,
  }
}

/** Entries in the order of their bytes; the ranges must cover the data exactly. */
function checkCover(entries: TensorEntry[], start: number, end: number, bad: (reason: string) => Error): void {
  let at = start
  for (const { name, offset, bytes } of entries.sort((a, b) => a.offset - b.offset || a.bytes - b.bytes)) {
    if (offset !== at) throw bad(`tensor ${name}: a ${offset < at ? 'overlap' : 'hole'} before its data at ${offset}`)
    at = offset + bytes
  }
  if (at !== end) throw bad(`${end - at} bytes after the last tensor`)
}

/** Parses the header text of a file of `fileBytes` bytes. Throws SAFETENSORS_HEADER, FILE_TRUNCATED. */
function parseHeader(text: string, path: string, headerBytes: number, fileBytes: number): SafetensorsHeader {
  const bad = (reason: string) => fail('SAFETENSORS_HEADER', { path, reason })
  let header: unknown
  try {
    header = JSON.parse(text)
  } catch (cause) {
    throw bad(`the header is not JSON: ${(cause as Error).message}`)
  }
  if (!isObject(header)) throw bad('the header is not an object')
  const repeated = repeatedKey(text)
  if (repeated !== undefined) throw bad(`${JSON.stringify(repeated)} appears twice`)
  const { __metadata__: metadata = {}, ...rest } = header
  if (!isObject(metadata) || !Object.values(metadata).every((value) => typeof value === 'string'))
    throw bad('__metadata__: expected an object of strings')
  const start = 8 + headerBytes
  const entries = Object.entries(rest).map(([name, value]) =>
    entryOf(name, value, { path, start, bytes: fileBytes - start }, bad),
  )
  checkCover(entries, start, fileBytes, bad)
  return {
    path,
    bytes: fileBytes,
    tensors: new Map(entries.map((entry) => [entry.name, Object.freeze(entry)])),
    metadata: metadata as Record<string, string>,
  }
}

/** Reads and checks the header of one file. Throws FILE_MISSING, FILE_UNREADABLE, FILE_TRUNCATED, SAFETENSORS_HEADER. */
export function readHeader(path: string): Promise<SafetensorsHeader> {
  return withFile(path, 'a safetensors file', async (file, fileBytes) => {
    const truncated = (thing: string, expected: number) =>
      fail('FILE_TRUNCATED', { path, thing, expected, got: fileBytes })
    if (fileBytes < 8) throw truncated('the header length', 8)
    const length = (await readRange(file, path, 'the header length', 0, 8)).readBigUInt64LE(0)
    if (length > MAX_HEADER_BYTES)
      throw fail('SAFETENSORS_HEADER', {
        path,
        reason: `header of ${length} bytes, at most ${MAX_HEADER_BYTES} are allowed`,
      })
    const headerBytes = Number(length)
    if (8 + headerBytes > fileBytes) throw truncated('the header', 8 + headerBytes)
    const text = (await readRange(file, path, 'the header', 8, headerBytes)).toString('utf8')
    return parseHeader(text, path, headerBytes, fileBytes)
  })
}

/** Tensors of one or more files, mapped when first touched. */
export interface TensorFiles {
  readonly tensors: ReadonlyMap<string, TensorEntry>
  /** Paths of the files, in a stable order. */
  readonly files: readonly string[]
  /** Bytes of a tensor: a view of the mapping, valid as long as it is referenced. May be unaligned for its dtype. */
  data(name: string): Uint8Array
}

/** Views over the files of `tensors`. */
export function tensorFiles(
  tensors: ReadonlyMap<string, TensorEntry>,
  files: readonly string[],
  map: MapFile = mapFile,
): TensorFiles {
  const mapped = new Map<string, ArrayBuffer>()
  const data = (name: string) => {
    const entry = tensors.get(name)
    if (!entry) throw fail('TENSOR_MISSING', { path: files.join(', '), tensor: name, expected: 'any' })
    const buffer = mapped.get(entry.file) ?? map(entry.file)
    mapped.set(entry.file, buffer)
    // The file may have shrunk since its header was read.
    if (entry.offset + entry.bytes > buffer.byteLength)
      throw fail('FILE_TRUNCATED', {
        path: entry.file,
        thing: `tensor ${name}`,
        expected: entry.offset + entry.bytes,
        got: buffer.byteLength,
      })
    return new Uint8Array(buffer, entry.offset, entry.bytes)
  }
  return { tensors, files, data }
}

/** A tensor to be written. */
export interface TensorLayout {
  readonly name: string
  readonly dtype: SafetensorsDType
  readonly shape: readonly number[]
}

const ALIGN = 64
const roundUp = (value: number) => Math.ceil(value / ALIGN) * ALIGN
const PAD_PREFIX = '__pad.'
/** Names that `layoutFile` gives to tensors that only fill up to the next boundary. */
export const isPad = (name: string) => name.startsWith(PAD_PREFIX)

export interface FileLayout {
  /** Length, JSON and padding: everything before the data. */
  readonly header: Uint8Array
  /** In file order; `pad` zero bytes follow the tensor. */
  readonly tensors: readonly { readonly name: string; readonly bytes: number; readonly pad: number }[]
  /** Bytes of the whole file. */
  readonly bytes: number
}

/**
 * Lays out a file in which every tensor starts at a multiple of 64. The format allows no holes, so a tensor whose size
 * is not a multiple of 64 is followed by a U8 tensor `__pad.N`. The same tensors give the same bytes.
 */
export function layoutFile(tensors: readonly TensorLayout[], metadata: Readonly<Record<string, string>>): FileLayout {
  const entries: [string, unknown][] = [['__metadata__', metadata]]
  let end = 0
  const placed = tensors.map(({ name, dtype, shape }, index) => {
    const bytes = shape.reduce((product, size) => product * size, elementBytes[dtype])
    entries.push([name, { dtype, shape, data_offsets: [end, end + bytes] }])
    end += bytes
    const pad = roundUp(end) - end
    if (pad) entries.push([`${PAD_PREFIX}${index}`, { dtype: 'U8', shape: [pad], data_offsets: [end, end + pad] }])
    end += pad
    return { name, bytes, pad }
  })
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)))
  const header = Buffer.alloc(roundUp(8 + json.length), ' ')
  header.writeBigUInt64LE(BigInt(header.length - 8), 0)
  json.copy(header, 8)
  return { header, tensors: placed, bytes: header.length + end }
}
