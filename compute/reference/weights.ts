/** Reads stored weights and unpacks them, whatever their dtype and layout (abi/layouts.ts), to float64 row-major. */
import { type FileHandle, open } from 'node:fs/promises'
import { bf16ToNumber, type DType, f16ToNumber, unpackInt4 } from '../../abi/dtypes.ts'
import { layouts, paddedShape } from '../../abi/layouts.ts'
import { fail } from '../../errors.ts'
import type { Tensor } from '../../plans/plan.ts'
import type { LinkedPackage, StoredTensor } from '../device.ts'
import type { Weight } from './kernel.ts'

/** Little-endian elements of `bytes` as numbers; scales of integers are not applied. */
export function decodeElements(dtype: DType, bytes: Uint8Array): Float64Array {
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
  switch (dtype) {
    case 'f32':
      return Float64Array.from(new Float32Array(buffer))
    case 'f16':
      return Float64Array.from(new Uint16Array(buffer), f16ToNumber)
    case 'bf16':
      return Float64Array.from(new Uint16Array(buffer), bf16ToNumber)
    case 'i8':
      return Float64Array.from(new Int8Array(buffer))
    case 'i4':
      return Float64Array.from(unpackInt4(bytes))
    case 'i32':
      return Float64Array.from(new Int32Array(buffer))
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
  const { bytesRead } = await file.read(buffer, 0, bytes, offset)
  if (bytesRead !== bytes)
    throw fail('FILE_TRUNCATED', { path, thing: `tensor ${tensor.name}`, expected: bytes, got: bytesRead })
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
