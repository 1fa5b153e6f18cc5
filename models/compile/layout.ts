/**
 * Bytes of stored weights: rows of the checkpoint's tensors converted, quantised and packed into the layouts of
 * abi/layouts.ts, one chunk at a time.
 */
import { byteSize, type DType, f16ToNumber, packInt4 } from '../../abi/dtypes.ts'
import { layouts, paddedShape } from '../../abi/layouts.ts'
import { BRANCH_RUN } from '../../abi/ops/define.ts'
import { fail } from '../../errors.ts'
import type { Part, Weight } from '../graph.ts'
import { quantizeRowE4m3 } from './e4m3.ts'
import { limits, quantizedRow, quantizeRow } from './integers.ts'
import type { StoredWeight } from './lower.ts'
import type { Pacer } from './pacer.ts'
import { scalingsOf } from './quantize.ts'

/** Bytes of a checkpoint tensor, row-major, in any alignment. */
export type ReadTensor = (name: string) => Uint8Array

/** Aim of one chunk of output. */
const CHUNK_BYTES = 256 * 1024
const TILE_ROWS = 16

let f16Table: Float32Array | undefined
/** float32 of every f16. */
const f16Values = () => (f16Table ??= Float32Array.from({ length: 65_536 }, (_, bits) => f16ToNumber(bits)))

/** Converts `source`, elements of `dtype` at any alignment, to float32; exact. */
export function toFloat32(dtype: DType, source: Uint8Array, target: Float32Array): void {
  const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength)
  if (dtype === 'f32') {
    bytes.set(source)
    return
  }
  const halves = new Uint16Array(source.slice().buffer)
  if (dtype === 'bf16') {
    const words = new Uint32Array(target.buffer, target.byteOffset, target.length)
    for (let i = 0; i < halves.length; i++) words[i] = halves[i]! << 16
  } else {
    const values = f16Values()
    for (let i = 0; i < halves.length; i++) target[i] = values[halves[i]!]!
  }
}

const bytesOf = (part: Part, read: ReadTensor): Uint8Array =>
  'values' in part
    ? new Uint8Array(part.values.buffer, part.values.byteOffset, part.values.byteLength)
    : read(part.tensor)

/** Row of the stacked parts, `rows` in all, that is row `row` of a weight of two branches. */
function branchRow(row: number, rows: number): number {
  const run = Math.floor(row / BRANCH_RUN)
  return (run % 2) * (rows / 2) + (run >> 1) * BRANCH_RUN + (row % BRANCH_RUN)
}

/** Row `r` of a weight: calls `read` once for each part, when the first of its rows is asked for. */
function rowReader({ parts, branches, dtype, rows, cols }: Weight, read: ReadTensor): (row: number) => Uint8Array {
  const rowBytes = byteSize(dtype, cols)
  let end = 0
  const stacked = parts.map((part) => {
    const start = end
    end += part.elements / cols
    return { part, start, end, bytes: undefined as Uint8Array | undefined }
  })
  return (index) => {
    const row = branches ? branchRow(index, rows) : index
    const within = stacked.find((each) => row < each.end)!
    within.bytes ??= bytesOf(within.part, read)
    return within.bytes.subarray((row - within.start) * rowBytes, (row - within.start + 1) * rowBytes)
  }
}

type Words = Uint8Array | Uint16Array | Uint32Array

/** One tile: (16, units) to (units, 16), where a unit is the `pack` consecutive elements that a lane reads at once. */
function transposeTile(rows: Words, units: number, target: Words, offset: number): void {
  for (let unit = 0, at = offset; unit < units; unit++)
    for (let row = 0, from = unit; row < TILE_ROWS; row++, from += units) target[at++] = rows[from]!
}

function wordsOf(bytes: Uint8Array, unitBytes: number): Words {
  if (unitBytes === 1) return bytes
  return unitBytes === 2
    ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2)
    : new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
}

/** Tiles of a stored matrix. `fill` writes logical row `row` at the start of `target`, which is zero. */
async function* packTiles(
  { tensor }: StoredWeight,
  pacer: Pacer,
  fill: (row: number, target: Uint8Array) => void,
): AsyncGenerator<Uint8Array> {
  const { layout, dtype, rows, cols } = tensor
  const unitBytes = byteSize(dtype, layouts[layout].pack)
  const [paddedRows, paddedCols] = paddedShape(layout, rows, cols)
  const rowBytes = byteSize(dtype, paddedCols)
  const tileBytes = TILE_ROWS * rowBytes
  const tilesPerChunk = Math.max(1, Math.floor(CHUNK_BYTES / tileBytes))
  const scratch = new Uint8Array(tileBytes)
  for (let top = 0; top < paddedRows; top += TILE_ROWS * tilesPerChunk) {
    const tiles = Math.min(tilesPerChunk, (paddedRows - top) / TILE_ROWS)
    const chunk = new Uint8Array(tiles * tileBytes)
    const target = wordsOf(chunk, unitBytes)
    for (let tile = 0; tile < tiles; tile++) {
      scratch.fill(0)
      for (let row = 0; row < TILE_ROWS; row++) {
        const index = top + tile * TILE_ROWS + row
        if (index < rows) fill(index, scratch.subarray(row * rowBytes, (row + 1) * rowBytes))
        if (pacer.due) await pacer.rest()
      }
      transposeTile(wordsOf(scratch, unitBytes), rowBytes / unitBytes, target, (tile * tileBytes) / unitBytes)
    }
    yield chunk
  }
}

/** Quantises rows of one weight, one at a time. */
interface RowQuantizer {
  /** What scales the row quantised last. */
  readonly scalings: readonly { readonly buffer: ArrayBufferLike }[]
  /** Writes the row to the start of `target`, which is zero; false where it cannot hold a value. */
  readonly write: (row: Float32Array, target: Uint8Array) => boolean
  /** What a row may not hold. */
  readonly refused: string
}

function rowQuantizer(format: 'q8' | 'q4' | 'fp8', { weight, tensor }: StoredWeight): RowQuantizer {
  if (format === 'fp8') {
    const scale = new Float32Array(1)
    const write = (row: Float32Array, target: Uint8Array) => quantizeRowE4m3(row, target, scale)
    return { scalings: [scale], write, refused: 'NaN or infinity' }
  }
  const q = quantizedRow(weight.cols)
  const padded = new Int8Array(paddedShape(tensor.layout, 1, weight.cols)[1])
  const write = (row: Float32Array, target: Uint8Array) => {
    if (!quantizeRow(format, row, q)) return false
    padded.set(q.values)
    if (format === 'q4') packInt4(padded, target)
    else target.set(new Uint8Array(padded.buffer))
    return true
  }
  const refused = `NaN, infinity or a magnitude above ${limits[format]}`
  return { scalings: format === 'q4' ? [q.scales, q.subScales] : [q.scales], write, refused }
}

/** Quantised numbers, then what scales them, which is kept until the numbers are out. */
async function* packQuantized(
  format: 'q8' | 'q4' | 'fp8',
  [stored, ...scalings]: readonly StoredWeight[],
  read: ReadTensor,
  pacer: Pacer,
): AsyncGenerator<Uint8Array> {
  const { weight } = stored!
  const row = new Float32Array(weight.cols)
  const quantizer = rowQuantizer(format, stored!)
  const rowOf = rowReader(weight, read)
  const kept = quantizer.scalings.map(({ buffer }) => ({
    bytes: new Uint8Array(buffer),
    rows: new Uint8Array(buffer.byteLength * weight.rows),
  }))
  yield* packTiles(stored!, pacer, (index, target) => {
    toFloat32(weight.dtype, rowOf(index), row)
    if (!quantizer.write(row, target))
      throw fail('QUANTIZE_UNSUPPORTED', {
        quantize: format,
        reason: `row ${index} of ${weight.name} holds ${quantizer.refused}`,
      })
    for (const { bytes, rows } of kept) rows.set(bytes, index * bytes.length)
  })
  for (const [i, scaling] of scalings.entries()) {
    const { bytes, rows } = kept[i]!
    yield* packTiles(scaling, pacer, (index, target) =>
      target.set(rows.subarray(index * bytes.length, (index + 1) * bytes.length)),
    )
  }
}

/** A vector or row-major matrix as float32. */
async function* packRow({ weight }: StoredWeight, read: ReadTensor, pacer: Pacer): AsyncGenerator<Uint8Array> {
  const size = byteSize(weight.dtype, 1)
  const step = CHUNK_BYTES / 4
  for (const part of weight.parts) {
    const bytes = bytesOf(part, read)
    for (let at = 0; at < part.elements; at += step) {
      const end = Math.min(at + step, part.elements)
      const target = new Float32Array(end - at)
      toFloat32(part.dtype, bytes.subarray(at * size, end * size), target)
      yield new Uint8Array(target.buffer)
      if (pacer.due) await pacer.rest()
    }
  }
}

/** A vector of two branches as float32, whole: it is as short as a bias. */
async function* packBranches({ weight }: StoredWeight, read: ReadTensor): AsyncGenerator<Uint8Array> {
  const stacked = new Float32Array(weight.cols)
  let at = 0
  for (const part of weight.parts) {
    toFloat32(part.dtype, bytesOf(part, read), stacked.subarray(at, at + part.elements))
    at += part.elements
  }
  yield new Uint8Array(stacked.map((_, i) => stacked[branchRow(i, weight.cols)]!).buffer)
}

/**
 * Stored bytes of `weights` one after the other, in chunks; `index` says whose they are. At most one chunk and
 * what scales one weight are held.
 */
export async function* packWeights(
  weights: readonly StoredWeight[],
  read: ReadTensor,
  pacer: Pacer,
): AsyncGenerator<{ readonly index: number; readonly bytes: Uint8Array }> {
  for (const [index, stored] of weights.entries()) {
    const { weight, tensor } = stored
    const { encoding } = weight
    if (encoding === 'scales' || encoding === 'sub_scales' || encoding === 'row_scales') continue
    if (encoding !== 'plain') {
      const group = weights.slice(index, index + 1 + Object.keys(scalingsOf(weight)).length)
      let [at, left] = [0, tensor.bytes]
      for await (const bytes of packQuantized(encoding, group, read, pacer)) {
        if (left === 0) left = group[++at]!.tensor.bytes
        yield { index: index + at, bytes }
        left -= bytes.length
      }
      continue
    }
    const rowOf = rowReader(weight, read)
    const chunks =
      tensor.layout === 'row'
        ? weight.branches
          ? packBranches(stored, read)
          : packRow(stored, read, pacer)
        : packTiles(stored, pacer, (row, target) => target.set(rowOf(row)))
    for await (const bytes of chunks) yield { index, bytes }
  }
}
