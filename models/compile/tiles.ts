/**
 * Tiles of a matrix from rows of a checkpoint: converted, quantised and laid out as abi/layouts.ts says. What happens to a
 * row is written here, in integers.ts and in e4m3.ts; the addon does the same off the event loop, bit for bit.
 */
import { byteSize, type DType, dtypes, f16ToNumber, packInt4 } from '../../abi/dtypes.ts'
import { type Layout, layouts, paddedShape } from '../../abi/layouts.ts'
import { type Addon, addon } from '../../abi/native.ts'
import { IngotError } from '../../errors.ts'
import { quantizeRowE4m3 } from './e4m3.ts'
import { limits, quantizedRow, quantizeRow } from './integers.ts'
import type { Pacer } from './pacer.ts'

export const TILE_ROWS = 16

/** How rows are stored: plain, or quantised to the dtype of the tiles. */
export type TileFormat = 'plain' | 'q8' | 'q4' | 'fp8'

/** What one format may not hold. */
export const refusals: Readonly<Record<TileFormat, string>> = {
  plain: 'nothing',
  q8: `NaN, infinity or a magnitude above ${limits.q8}`,
  q4: `NaN, infinity or a magnitude above ${limits.q4}`,
  fp8: 'NaN or infinity',
}

export interface TileJob {
  readonly format: TileFormat
  /** Of the rows; f32, f16 or bf16 where they are quantised. */
  readonly dtype: DType
  /** Of the tiles. */
  readonly layout: Layout
  readonly cols: number
  /** Whole rows, one piece after another, at any alignment. */
  readonly rows: readonly Uint8Array[]
  /** Receives the tiles, of 16 rows each. */
  readonly tiles: Uint8Array
  /** Receive what scales each row, row after row: `scalingBytes` a row. */
  readonly scales: Uint8Array
  readonly subScales: Uint8Array
}

/** Resolves to the index of the first row that the format cannot hold, -1 where it holds all. */
export type PackTiles = (job: TileJob) => Promise<number>

/** Dtype of the tiles. */
export const tileDType = ({ format, dtype }: Pick<TileJob, 'format' | 'dtype'>): DType =>
  (({ plain: dtype, q8: 'i8', q4: 'i4', fp8: 'e4m3' }) as const)[format]

/** Bytes of the scales and the sub-scales of a row. */
export function scalingBytes(
  format: TileFormat,
  cols: number,
): { readonly scales: number; readonly subScales: number } {
  if (format === 'plain') return { scales: 0, subScales: 0 }
  if (format === 'fp8') return { scales: Float32Array.BYTES_PER_ELEMENT, subScales: 0 }
  const { scales, subScales } = quantizedRow(cols)
  return { scales: scales.byteLength, subScales: format === 'q4' ? subScales.byteLength : 0 }
}

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

type Words = Uint8Array | Uint16Array | Uint32Array

/** One tile: (16, units) to (units, 16), where a unit is the `pack` consecutive elements that a lane reads at once. */
function transposeTile(rows: Words, units: number, target: Words): void {
  for (let unit = 0, at = 0; unit < units; unit++)
    for (let row = 0, from = unit; row < TILE_ROWS; row++, from += units) target[at++] = rows[from]!
}

function wordsOf(bytes: Uint8Array, unitBytes: number): Words {
  if (unitBytes === 1) return bytes
  return unitBytes === 2
    ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2)
    : new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
}

/** Writes one row to the start of `target`, which is zero, and row `index` of what scales it; false where it cannot. */
type WriteRow = (source: Uint8Array, target: Uint8Array, index: number) => boolean

function rowWriter({ format, dtype, layout, cols, scales, subScales }: TileJob): WriteRow {
  if (format === 'plain') {
    return (source, target) => {
      target.set(source)
      return true
    }
  }
  const row = new Float32Array(cols)
  const keep = (kept: Uint8Array, { buffer }: { readonly buffer: ArrayBufferLike }, index: number) =>
    kept.set(new Uint8Array(buffer), index * buffer.byteLength)
  if (format === 'fp8') {
    const scale = new Float32Array(1)
    return (source, target, index) => {
      toFloat32(dtype, source, row)
      if (!quantizeRowE4m3(row, target, scale)) return false
      keep(scales, scale, index)
      return true
    }
  }
  const q = quantizedRow(cols)
  const padded = new Int8Array(paddedShape(layout, 1, cols)[1])
  return (source, target, index) => {
    toFloat32(dtype, source, row)
    if (!quantizeRow(format, row, q)) return false
    padded.set(q.values)
    if (format === 'q4') packInt4(padded, target)
    else target.set(new Uint8Array(padded.buffer))
    keep(scales, q.scales, index)
    if (format === 'q4') keep(subScales, q.subScales, index)
    return true
  }
}

function* eachRow(pieces: readonly Uint8Array[], bytes: number): Generator<Uint8Array> {
  for (const piece of pieces) for (let at = 0; at < piece.length; at += bytes) yield piece.subarray(at, at + bytes)
}

/** Packs on this thread, in the turns of `pacer`. */
export async function packHere(job: TileJob, pacer: Pacer): Promise<number> {
  const { dtype, layout, cols, rows, tiles } = job
  const stored = tileDType(job)
  const unitBytes = byteSize(stored, layouts[layout].pack)
  const rowBytes = byteSize(stored, paddedShape(layout, 1, cols)[1])
  const sourceBytes = byteSize(dtype, cols)
  const write = rowWriter(job)
  const tile = new Uint8Array(TILE_ROWS * rowBytes)
  const count = rows.reduce((sum, piece) => sum + piece.length, 0) / sourceBytes
  let index = 0
  for (const source of eachRow(rows, sourceBytes)) {
    const within = index % TILE_ROWS
    if (within === 0) tile.fill(0)
    if (!write(source, tile.subarray(within * rowBytes, (within + 1) * rowBytes), index)) return index
    if (within === TILE_ROWS - 1 || index === count - 1) {
      const start = (index - within) * rowBytes
      const target = tiles.subarray(start, start + tile.length)
      transposeTile(wordsOf(tile, unitBytes), rowBytes / unitBytes, wordsOf(target, unitBytes))
    }
    index++
    if (pacer.due) await pacer.rest()
  }
  return -1
}

/** Packs off the event loop. `isa`: the best that the machine has; `threads` 0: one a physical core. */
export const packNative = (native: Addon, { dtype, layout, ...job }: TileJob, isa = '', threads = 0): Promise<number> =>
  native.pack({ ...job, dtype: dtypes[dtype].id, layout: layouts[layout].id, isa, threads })

/** By the addon; on this thread where it is not built, as it need not be where `mapFile` is given. The bytes are the same. */
export function tilePacker(pacer: Pacer, threads = 0): PackTiles {
  try {
    const native = addon()
    return (job) => packNative(native, job, '', threads)
  } catch (error) {
    if (!(error instanceof IngotError && error.code === 'ADDON_MISSING')) throw error
    return (job) => packHere(job, pacer)
  }
}
