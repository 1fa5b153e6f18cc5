/**
 * Bytes of stored weights: rows of the checkpoint's tensors converted, quantised and packed into the layouts of
 * abi/layouts.ts, one chunk at a time.
 */
import { type DType, dtypes, f16ToNumber, numberToF16 } from '../../abi/dtypes.ts'
import { layouts, paddedShape } from '../../abi/layouts.ts'
import { QUANT_GROUP } from '../../abi/ops/define.ts'
import { fail } from '../../errors.ts'
import type { Part, Weight } from '../graph.ts'
import type { StoredWeight } from './lower.ts'
import type { Pacer } from './pacer.ts'

/** Bytes of a checkpoint tensor, row-major, in any alignment. */
export type ReadTensor = (name: string) => Uint8Array

/** Aim of one chunk of output. */
const CHUNK_BYTES = 256 * 1024
const TILE_ROWS = 16
const F16_MAX = 65_504
const Q8_MAX = 127

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

/** Row `r` of a weight whose parts are stacked: calls `read` once for each part, in order of rows. */
function rowReader(weight: Weight, read: ReadTensor): (row: number) => Uint8Array {
  const rowBytes = weight.cols * dtypes[weight.dtype].bytes
  let next = 0
  let [start, end] = [0, 0]
  let bytes: Uint8Array = new Uint8Array()
  return (row) => {
    while (row >= end) {
      bytes = bytesOf(weight.parts[next++]!, read)
      start = end
      end += bytes.length / rowBytes
    }
    return bytes.subarray((row - start) * rowBytes, (row - start + 1) * rowBytes)
  }
}

type Words = Uint16Array | Uint32Array

/** One tile: (16, units) to (units, 16), where a unit is the `pack` consecutive elements that a lane reads at once. */
function transposeTile(rows: Words, units: number, target: Words, offset: number): void {
  for (let unit = 0, at = offset; unit < units; unit++)
    for (let row = 0, from = unit; row < TILE_ROWS; row++, from += units) target[at++] = rows[from]!
}

const wordsOf = (bytes: Uint8Array, unitBytes: number): Words =>
  unitBytes === 2
    ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2)
    : new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)

/** Tiles of a stored matrix. `fill` writes logical row `row` at the start of `target`, which is zero. */
async function* packTiles(
  { tensor }: StoredWeight,
  pacer: Pacer,
  fill: (row: number, target: Uint8Array) => void,
): AsyncGenerator<Uint8Array> {
  const { layout, dtype, rows, cols } = tensor
  const unitBytes = layouts[layout].pack * dtypes[dtype].bytes
  const [paddedRows, paddedCols] = paddedShape(layout, rows, cols)
  const rowBytes = paddedCols * dtypes[dtype].bytes
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

/** Adding and subtracting 1.5 * 2^52 rounds a small float64 to the nearest integer, ties to even. */
const ROUND = 6_755_399_441_055_744

/**
 * Quantises one row: for each group of 32, scale = amax / 127 rounded to f16, value = x / scale rounded to nearest even
 * and clamped to [-127, 127]. `scales` receives f16 bits. False where a value or scale is not finite.
 */
export function quantizeRow(row: Float32Array, values: Int8Array, scales: Uint16Array): boolean {
  for (let group = 0, start = 0; start < row.length; group++, start += QUANT_GROUP) {
    const end = Math.min(start + QUANT_GROUP, row.length)
    let amax = 0
    for (let i = start; i < end; i++) {
      const magnitude = Math.abs(row[i]!)
      if (!(magnitude <= F16_MAX * Q8_MAX)) return false
      if (magnitude > amax) amax = magnitude
    }
    scales[group] = numberToF16(amax / Q8_MAX)
    const scale = f16ToNumber(scales[group]!)
    for (let i = start; i < end; i++) {
      const rounded = scale === 0 ? 0 : row[i]! / scale + ROUND - ROUND
      values[i] = rounded > Q8_MAX ? Q8_MAX : Math.max(rounded, -Q8_MAX)
    }
  }
  return true
}

/** int8 values, then the scales: (rows, groups) of f16 bits are kept until the values are out. */
async function* packQ8(
  stored: StoredWeight,
  scales: StoredWeight,
  read: ReadTensor,
  pacer: Pacer,
): AsyncGenerator<Uint8Array> {
  const { weight } = stored
  const groups = scales.tensor.cols
  const bits = new Uint16Array(weight.rows * groups)
  const row = new Float32Array(weight.cols)
  const rowOf = rowReader(weight, read)
  yield* packTiles(stored, pacer, (index, target) => {
    toFloat32(weight.dtype, rowOf(index), row)
    const values = new Int8Array(target.buffer, target.byteOffset, weight.cols)
    if (!quantizeRow(row, values, bits.subarray(index * groups, (index + 1) * groups)))
      throw fail('QUANTIZE_UNSUPPORTED', {
        quantize: 'q8',
        reason: `row ${index} of ${weight.name} holds NaN, infinity or a magnitude above ${F16_MAX * Q8_MAX}`,
      })
  })
  const bytes = new Uint8Array(bits.buffer)
  yield* packTiles(scales, pacer, (index, target) => {
    target.set(bytes.subarray(index * groups * 2, (index + 1) * groups * 2))
  })
}

/** A vector or row-major matrix as float32. */
async function* packRow({ weight }: StoredWeight, read: ReadTensor, pacer: Pacer): AsyncGenerator<Uint8Array> {
  const size = dtypes[weight.dtype].bytes
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

/**
 * Stored bytes of `weights` one after the other, in chunks; `index` says whose they are. At most one chunk and the
 * scales of one weight are held.
 */
export async function* packWeights(
  weights: readonly StoredWeight[],
  read: ReadTensor,
  pacer: Pacer,
): AsyncGenerator<{ readonly index: number; readonly bytes: Uint8Array }> {
  for (const [index, stored] of weights.entries()) {
    const { weight, tensor } = stored
    if (weight.encoding === 'q8_scales') continue
    if (weight.encoding === 'q8') {
      let left = tensor.bytes
      for await (const bytes of packQ8(stored, weights[index + 1]!, read, pacer)) {
        yield { index: left > 0 ? index : index + 1, bytes }
        left -= bytes.length
      }
      continue
    }
    const rowOf = rowReader(weight, read)
    const chunks =
      tensor.layout === 'row'
        ? packRow(stored, read, pacer)
        : packTiles(stored, pacer, (row, target) => target.set(rowOf(row)))
    for await (const bytes of chunks) yield { index, bytes }
  }
}
