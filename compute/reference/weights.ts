/** Reads stored weights and unpacks them, whatever their dtype and layout (abi/layouts.ts), to float64 row-major. */
import { type FileHandle, open } from 'node:fs/promises'
import { bf16ToNumber, type DType, e4m3ToNumber, f16ToNumber, unpackInt4 } from '../../abi/dtypes.ts'
import { layouts, paddedShape } from '../../abi/layouts.ts'
import { fail } from '../../errors.ts'
import type { Tensor } from '../../plans/plan.ts'
import type { LinkedPackage, StoredTensor } from '../device.ts'
import type { Weight } from './kernel.ts'

/** Node refuses to read 2 GiB or more at once. */
const MOST_PER_READ = 2 ** 30

/** Not `Float64Array.from`, which lists its source first: V8 ends the process where such a list exceeds 2^27 elements. */
function widen(bits: Uint16Array | Uint8Array, toNumber: (bits: number) => number): Float64Array {
  const values = new Float64Array(bits.length)
  for (let i = 0; i < bits.length; i++) values[i] = toNumber(bits[i]!)
  return values
}

/** Little-endian elements of `bytes` as numbers; scales of integers are not applied. */
export function decodeElements(dtype: DType, bytes: Uint8Array): Float64Array {
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
  switch (dtype) {
    case 'f32':
      return new Float64Array(new Float32Array(buffer))
    case 'f16':
      return widen(new Uint16Array(buffer), f16ToNumber)
    case 'bf16':
      return widen(new Uint16Array(buffer), bf16ToNumber)
    case 'i8':
      return new Float64Array(new Int8Array(buffer))
    case 'i4':
      return new Float64Array(unpackInt4(bytes))
    case 'e4m3':
      return widen(new Uint8Array(buffer), e4m3ToNumber)
    case 'i32':
      return new Float64Array(new Int32Array(buffer))
  }
}

/** Undoes the layout: stored, padded elements to (rows, cols). The inverse of elementIndex, walked tile by tile. */
export function unpack(tensor: Pick<Tensor, 'layout' | 'rows' | 'cols'>, stored: Float64Array): Weight {
  const { rows, cols, layout } = tensor
  if (layout === 'row') return { data: stored, rows, cols }
  const { rows: tile, pack } = layouts[layout]
  const [, paddedCols] = paddedShape(layout, rows, cols)
  const data = new Float64Array(rows * cols)
  for (let r = 0; r < rows; r++) {
    const start = (r - (r % tile)) * paddedCols + (r % tile) * pack
    for (let c = 0; c < cols; c++) data[r * cols + c] = stored[start + (c - (c % pack)) * tile + (c % pack)]!
  }
  return { data, rows, cols }
}

async function read(file: FileHandle, tensor: Tensor, { file: path, offset, bytes }: StoredTensor): Promise<Weight> {
  if (bytes !== tensor.bytes)
    throw fail('PACKAGE_INVALID', { path, thing: `bytes of tensor ${tensor.name}`, expected: tensor.bytes, got: bytes })
  const buffer = new Uint8Array(bytes)
  for (let done = 0; done < bytes; ) {
    const { bytesRead } = await file.read(buffer, done, Math.min(bytes - done, MOST_PER_READ), offset + done)
    if (bytesRead === 0)
      throw fail('FILE_TRUNCATED', { path, thing: `tensor ${tensor.name}`, expected: bytes, got: done })
    done += bytesRead
  }
  return unpack(tensor, decodeElements(tensor.dtype, buffer))
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    return await open(path)
  } catch (cause) {
    throw fail('FILE_UNREADABLE', { path, reason: (cause as Error).message }, cause)
  }
}

/** The weights of a package, by index of the plan's tensors. Throws PlanError when the files do not hold them. */
export async function loadWeights(pkg: LinkedPackage): Promise<Weight[]> {
  const files = new Map<string, FileHandle>()
  const weights: Weight[] = []
  try {
    for (const tensor of pkg.plan.tensors) {
      const stored = pkg.tensors.get(tensor.name)
      if (!stored)
        throw fail('TENSOR_MISSING', { path: pkg.path, tensor: tensor.name, expected: [tensor.rows, tensor.cols] })
      const file = files.get(stored.file) ?? (await openFile(stored.file))
      files.set(stored.file, file)
      weights.push(await read(file, tensor, stored))
    }
  } finally {
    await Promise.all([...files.values()].map((file) => file.close()))
  }
  return weights
}
