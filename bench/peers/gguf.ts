/** The GGUF container, version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata, tensor table, data. */
import { type GgmlType, ggmlBytes, ggmlTypes } from './blocks.ts'

const MAGIC = 0x46554747
const VERSION = 3
const ALIGN = 32

/** Metadata types in use, by their ids. */
const valueTypes = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const
export type GgufValue =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly bool: boolean }
  | { readonly string: string }
  | { readonly strings: readonly string[] }
  | { readonly i32s: readonly number[] }

export interface GgufTensor {
  readonly name: string
  readonly type: GgmlType
  /** As everywhere else, rows first; GGUF itself stores the fastest dimension first. */
  readonly shape: readonly number[]
}

/** A tensor with its place: `offset` counts from the start of the data, where `pad` zero bytes follow it. */
export interface PlacedTensor extends GgufTensor {
  readonly offset: number
  readonly bytes: number
  readonly pad: number
}

class Writer {
  readonly parts: Buffer[] = []
  bytes(part: Buffer): void {
    this.parts.push(part)
  }
  u32(value: number): void {
    const part = Buffer.alloc(4)
    part.writeUInt32LE(value)
    this.bytes(part)
  }
  u64(value: number): void {
    const part = Buffer.alloc(8)
    part.writeBigUInt64LE(BigInt(value))
    this.bytes(part)
  }
  string(text: string): void {
    const part = Buffer.from(text)
    this.u64(part.length)
    this.bytes(part)
  }
}

function writeValue(writer: Writer, value: GgufValue): void {
  if ('u32' in value) {
    writer.u32(valueTypes.u32)
    writer.u32(value.u32)
  } else if ('f32' in value) {
    const part = Buffer.alloc(4)
    part.writeFloatLE(value.f32)
    writer.u32(valueTypes.f32)
    writer.bytes(part)
  } else if ('bool' in value) {
    writer.u32(valueTypes.bool)
    writer.bytes(Buffer.from([value.bool ? 1 : 0]))
  } else if ('string' in value) {
    writer.u32(valueTypes.string)
    writer.string(value.string)
  } else if ('strings' in value) {
    writer.u32(valueTypes.array)
    writer.u32(valueTypes.string)
    writer.u64(value.strings.length)
    for (const text of value.strings) writer.string(text)
  } else {
    writer.u32(valueTypes.array)
    writer.u32(valueTypes.i32)
    writer.u64(value.i32s.length)
    writer.bytes(Buffer.from(Int32Array.from(value.i32s).buffer))
  }
}

const padding = (bytes: number) => (ALIGN - (bytes % ALIGN)) % ALIGN

/** Everything before the data, and where each tensor goes. */
export function layoutGguf(metadata: Readonly<Record<string, GgufValue>>, tensors: readonly GgufTensor[]) {
  const writer = new Writer()
  writer.u32(MAGIC)
  writer.u32(VERSION)
  writer.u64(tensors.length)
  writer.u64(Object.keys(metadata).length)
  for (const [key, value] of Object.entries(metadata)) {
    writer.string(key)
    writeValue(writer, value)
  }
  let offset = 0
  const placed = tensors.map((tensor): PlacedTensor => {
    const { name, type, shape } = tensor
    const bytes = ggmlBytes(
      type,
      shape.reduce((product, size) => product * size, 1),
    )
    writer.string(name)
    writer.u32(shape.length)
    for (const size of shape.toReversed()) writer.u64(size)
    writer.u32(ggmlTypes[type].id)
    writer.u64(offset)
    const place = { ...tensor, offset, bytes, pad: padding(bytes) }
    offset += bytes + place.pad
    return place
  })
  const header = Buffer.concat(writer.parts)
  return { header: Buffer.concat([header, Buffer.alloc(padding(header.length))]), tensors: placed }
}

/** Reads a header back: what `layoutGguf` was given. For tests and for counting bytes. */
export function readGguf(bytes: Buffer) {
  let at = 0
  const u32 = () => bytes.readUInt32LE((at += 4) - 4)
  const u64 = () => Number(bytes.readBigUInt64LE((at += 8) - 8))
  const string = () => {
    const length = u64()
    return bytes.toString('utf8', at, (at += length))
  }
  const value = (): GgufValue => {
    const type = u32()
    if (type === valueTypes.u32) return { u32: u32() }
    if (type === valueTypes.f32) return { f32: bytes.readFloatLE((at += 4) - 4) }
    if (type === valueTypes.bool) return { bool: bytes[at++] === 1 }
    if (type === valueTypes.string) return { string: string() }
    const [element, count] = [u32(), u64()]
    if (element === valueTypes.string) return { strings: Array.from({ length: count }, string) }
    return { i32s: Array.from({ length: count }, () => bytes.readInt32LE((at += 4) - 4)) }
  }
  const [magic, version, tensorCount, keys] = [u32(), u32(), u64(), u64()]
  if (magic !== MAGIC || version !== VERSION) throw new Error('not a GGUF file of version 3')
  const metadata = Object.fromEntries(Array.from({ length: keys }, () => [string(), value()]))
  const names = Object.fromEntries(Object.entries(ggmlTypes).map(([name, { id }]) => [id, name as GgmlType]))
  const tensors = Array.from({ length: tensorCount }, () => {
    const name = string()
    const shape = Array.from({ length: u32() }, u64).reverse()
    return { name, shape, type: names[u32()]!, offset: u64() }
  })
  return { metadata, tensors, dataStart: at + padding(at) }
}
