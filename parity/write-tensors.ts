import { writeFile } from 'node:fs/promises'
import { layoutFile, type TensorLayout } from '../models/safetensors.ts'

export interface TensorBytes extends TensorLayout {
  readonly data: ArrayBufferView
}

/** Writes a small safetensors file at once: golden files and weights of a check. */
export async function writeTensors(
  path: string,
  tensors: readonly TensorBytes[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const layout = layoutFile(tensors, metadata)
  const byName = new Map(tensors.map(({ name, data }) => [name, data]))
  const parts = layout.tensors.flatMap(({ name, pad }) => {
    const { buffer, byteOffset, byteLength } = byName.get(name)!
    return [Buffer.from(buffer, byteOffset, byteLength), Buffer.alloc(pad)]
  })
  await writeFile(path, Buffer.concat([layout.header, ...parts]))
}
