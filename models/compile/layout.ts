/** Bytes of stored weights, one chunk at a time: which rows of which tensors of the checkpoint, and what scales them. */
import { byteSize } from '../../abi/dtypes.ts'
import { paddedShape } from '../../abi/layouts.ts'
import { BRANCH_RUN } from '../../abi/ops/define.ts'
import { fail } from '../../errors.ts'
import type { Part, Weight } from '../graph.ts'
import type { StoredWeight } from './lower.ts'
import type { Pacer } from './pacer.ts'
import { scalingsOf } from './quantize.ts'
import { type PackTiles, refusals, scalingBytes, TILE_ROWS, type TileFormat, tilePacker, toFloat32 } from './tiles.ts'

/** Bytes of a checkpoint tensor, row-major, in any alignment. */
export type ReadTensor = (name: string) => Uint8Array

/** Aim of one chunk of tiles: some milliseconds of work for every core. */
const CHUNK_BYTES = 8 * 2 ** 20
/** Two rooms for chunks, in turns: one is packed while the one before it is written. */
function chunkRooms(): (bytes: number) => Uint8Array {
  const rooms = [new Uint8Array(), new Uint8Array()]
  let turn = 0
  return (bytes) => {
    turn ^= 1
    if (rooms[turn]!.length < bytes) rooms[turn] = new Uint8Array(bytes)
    return rooms[turn]!.subarray(0, bytes)
  }
}

/** How matrices are packed, and where to. */
interface Packer {
  readonly pack: PackTiles
  readonly room: (bytes: number) => Uint8Array
}

/** Elements of a chunk of a vector, converted in one turn. */
const VECTOR_ELEMENTS = 2 ** 16
const bytesOf = (part: Part, read: ReadTensor): Uint8Array =>
  'values' in part
    ? new Uint8Array(part.values.buffer, part.values.byteOffset, part.values.byteLength)
    : read(part.tensor)

/** Row of the stacked parts, `rows` in all, that is row `row` of a weight of two branches. */
function branchRow(row: number, rows: number): number {
  const run = Math.floor(row / BRANCH_RUN)
  return (run % 2) * (rows / 2) + (run >> 1) * BRANCH_RUN + (row % BRANCH_RUN)
}

/** `count` rows of a matrix from row `top` on, in as few pieces as they lie in. */
type RowsOf = (top: number, count: number) => Uint8Array[]

/** Rows of a weight: calls `read` once for each part, when the first of its rows is asked for. */
function rowReader({ parts, branches, dtype, rows, cols }: Weight, read: ReadTensor): RowsOf {
  const rowBytes = byteSize(dtype, cols)
  let end = 0
  const stacked = parts.map((part) => {
    const start = end
    end += part.elements / cols
    return { part, start, end, bytes: undefined as Uint8Array | undefined }
  })
  return (top, count) => {
    const pieces: Uint8Array[] = []
    for (let row = top, left = count; left > 0; ) {
      const from = branches ? branchRow(row, rows) : row
      const within = stacked.find((each) => from < each.end)!
      const run = Math.min(left, within.end - from, branches ? BRANCH_RUN - (row % BRANCH_RUN) : left)
      within.bytes ??= bytesOf(within.part, read)
      pieces.push(within.bytes.subarray((from - within.start) * rowBytes, (from - within.start + run) * rowBytes))
      row += run
      left -= run
    }
    return pieces
  }
}

/** Tiles of a matrix. What scales its rows goes to `scales` and `subScales`, row after row. */
async function* packMatrix(
  format: TileFormat,
  { weight, tensor }: StoredWeight,
  rowsOf: RowsOf,
  { pack, room }: Packer,
  scales = new Uint8Array(),
  subScales = new Uint8Array(),
): AsyncGenerator<Uint8Array> {
  const { rows, cols, layout } = tensor
  const tileBytes = byteSize(tensor.dtype, TILE_ROWS * paddedShape(layout, rows, cols)[1])
  const step = TILE_ROWS * Math.max(1, Math.floor(CHUNK_BYTES / tileBytes))
  const dtype = format === 'plain' ? tensor.dtype : weight.dtype
  const scaling = scalingBytes(format, cols)
  for (let top = 0; top < rows; top += step) {
    const count = Math.min(step, rows - top)
    const of = (kept: Uint8Array, bytes: number) => kept.subarray(top * bytes, (top + count) * bytes)
    const tiles = room(Math.ceil(count / TILE_ROWS) * tileBytes)
    const job = { format, dtype, layout, cols, rows: rowsOf(top, count), tiles }
    const refused = await pack({
      ...job,
      scales: of(scales, scaling.scales),
      subScales: of(subScales, scaling.subScales),
    })
    if (refused >= 0)
      throw fail('QUANTIZE_UNSUPPORTED', {
        quantize: format,
        reason: `row ${top + refused} of ${weight.name} holds ${refusals[format]}`,
      })
    yield tiles
  }
}

/** Quantised numbers, then what scales them, which is kept until the numbers are out. */
async function* packQuantized(
  format: 'q8' | 'q4' | 'fp8',
  [stored, ...scalings]: readonly StoredWeight[],
  read: ReadTensor,
  packer: Packer,
): AsyncGenerator<Uint8Array> {
  const { weight } = stored!
  const bytes = scalingBytes(format, weight.cols)
  const kept = [bytes.scales, bytes.subScales].map((each) => new Uint8Array(each * weight.rows))
  yield* packMatrix(format, stored!, rowReader(weight, read), packer, ...kept)
  for (const [i, scaling] of scalings.entries()) {
    const rowBytes = kept[i]!.length / weight.rows
    const rowsOf: RowsOf = (top, count) => [kept[i]!.subarray(top * rowBytes, (top + count) * rowBytes)]
    yield* packMatrix('plain', scaling, rowsOf, packer)
  }
}

/** A vector or row-major matrix as float32. */
async function* packRow({ weight }: StoredWeight, read: ReadTensor, pacer: Pacer): AsyncGenerator<Uint8Array> {
  const size = byteSize(weight.dtype, 1)
  for (const part of weight.parts) {
    const bytes = bytesOf(part, read)
    for (let at = 0; at < part.elements; at += VECTOR_ELEMENTS) {
      const end = Math.min(at + VECTOR_ELEMENTS, part.elements)
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
 * Stored bytes of `weights` one after the other, in chunks; `index` says whose they are. A chunk is valid until the one
 * after the next is asked for: at most two, and what scales one weight, are held. Throws QUANTIZE_UNSUPPORTED.
 */
export async function* packWeights(
  weights: readonly StoredWeight[],
  read: ReadTensor,
  pacer: Pacer,
  pack: PackTiles = tilePacker(pacer),
): AsyncGenerator<{ readonly index: number; readonly bytes: Uint8Array }> {
  const packer = { pack, room: chunkRooms() }
  for (const [index, stored] of weights.entries()) {
    const { weight, tensor } = stored
    const { encoding } = weight
    if (encoding === 'scales' || encoding === 'sub_scales' || encoding === 'row_scales') continue
    if (encoding !== 'plain') {
      const group = weights.slice(index, index + 1 + Object.keys(scalingsOf(weight)).length)
      let [at, left] = [0, tensor.bytes]
      for await (const bytes of packQuantized(encoding, group, read, packer)) {
        if (left === 0) left = group[++at]!.tensor.bytes
        yield { index: index + at, bytes }
        left -= bytes.length
      }
      continue
    }
    const chunks =
      tensor.layout !== 'row'
        ? packMatrix('plain', stored, rowReader(weight, read), packer)
        : weight.branches
          ? packBranches(stored, read)
          : packRow(stored, read, pacer)
    for await (const bytes of chunks) yield { index, bytes }
  }
}
