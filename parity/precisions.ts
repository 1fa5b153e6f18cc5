/** One checkpoint at every precision that a package can have. */
import { copyFile, mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { dtypes, numberToBf16, numberToF16 } from '../abi/dtypes.ts'
import { decodeElements } from '../compute/reference/weights.ts'
import { compile } from '../index.ts'
import { openCheckpoint } from '../models/checkpoint.ts'
import type { Quantization } from '../models/compile/quantize.ts'
import { COPIED_FILES, type Package, readPackage } from '../models/package.ts'
import { writeTensors } from './write-tensors.ts'

type Float = 'f32' | 'f16' | 'bf16'

interface Build {
  readonly dtype: Float
  readonly quantize: Quantization
  readonly state: 'checkpoint' | 'q8'
}

export const precisions = {
  bf16: { dtype: 'bf16', quantize: 'none', state: 'checkpoint' },
  f16: { dtype: 'f16', quantize: 'none', state: 'checkpoint' },
  f32: { dtype: 'f32', quantize: 'none', state: 'checkpoint' },
  q8: { dtype: 'bf16', quantize: 'q8', state: 'checkpoint' },
  q4: { dtype: 'bf16', quantize: 'q4', state: 'checkpoint' },
  fp8: { dtype: 'bf16', quantize: 'fp8', state: 'checkpoint' },
  /** bf16 weights over int8 keys and values. */
  'q8-state': { dtype: 'bf16', quantize: 'none', state: 'q8' },
} as const satisfies Readonly<Record<string, Build>>
export type Precision = keyof typeof precisions
export const precisionNames = Object.keys(precisions) as Precision[]

const decoders: Readonly<Record<string, (bytes: Uint8Array) => Float32Array>> = {
  F32: (bytes) => new Float32Array(bytes.slice().buffer),
  F16: (bytes) => new Float32Array(decodeElements('f16', bytes)),
  BF16: (bytes) => new Float32Array(decodeElements('bf16', bytes)),
}
const encoders: Readonly<Record<Float, (values: Float32Array) => ArrayBufferView>> = {
  f32: (values) => values,
  f16: (values) => Uint16Array.from(values, numberToF16),
  bf16: (values) => Uint16Array.from(values, numberToBf16),
}

/** A copy of the checkpoint whose tensors are all of `dtype`; `path` itself where they are already. */
async function converted(path: string, dtype: Float, target: string): Promise<string> {
  const { tensors, data } = await openCheckpoint(path)
  const all = [...tensors.values()]
  if (all.every((tensor) => tensor.dtype === dtypes[dtype].safetensors)) return path
  await mkdir(target, { recursive: true })
  const written = all.map((tensor) => {
    const { name, shape } = tensor
    const values = decoders[tensor.dtype]!(data(name))
    return { name, shape, dtype: dtypes[dtype].safetensors, data: encoders[dtype](values) }
  })
  await writeTensors(join(target, 'model.safetensors'), written)
  const present = new Set(await readdir(path))
  for (const file of ['config.json', ...COPIED_FILES])
    if (present.has(file)) await copyFile(join(path, file), join(target, file))
  return target
}

/** Compiles `checkpoint` at `precision` into `folder` and reads the package. Throws as compile() does. */
export async function packageAt(checkpoint: string, precision: Precision, folder: string): Promise<Package> {
  const { dtype, quantize, state } = precisions[precision]
  const file = precision.replace(/\W+/g, '-')
  const source = await converted(checkpoint, dtype, join(folder, `checkpoint-${dtype}`))
  const { path } = await compile(source, { out: join(folder, `${file}.ingot`), quantize, state })
  return readPackage(path, { integrity: 'structure' })
}
