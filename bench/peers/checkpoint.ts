/** Random checkpoints in Hugging Face layout: the same bytes on every machine, written in chunks. */
import { existsSync } from 'node:fs'
import { type FileHandle, mkdir, open, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { numberToBf16 } from '../../abi/dtypes.ts'
import { layoutFile, type TensorLayout } from '../../models/safetensors.ts'
import { random } from '../../parity/random.ts'
import { type ModelConfig, tensorShapes } from './shapes.ts'

const SHARD_BYTES = 2 ** 31
const CHUNK_ELEMENTS = 2 ** 21
/** What transformers initialises with: logits then have a deviation of about 1. */
const DEVIATION = 0.02

/** bf16 bits of 2^16 normal numbers around `mean`; half a random word picks one. */
function normalTable(mean: number): Uint16Array {
  const next = random(1)
  return Uint16Array.from({ length: 2 ** 16 }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - next()))
    return numberToBf16(mean + DEVIATION * radius * Math.cos(2 * Math.PI * next()))
  })
}

/** FNV-1a; a tensor's numbers depend on its name alone, so that fewer layers are a prefix of more. */
function seedOf(name: string): number {
  let hash = 0x811c9dc5
  for (const byte of Buffer.from(name)) hash = Math.imul(hash ^ byte, 0x01000193)
  return hash >>> 0 || 1
}

/** A generator (xorshift32) that fills bf16 chunks of one tensor, one after another. */
function tensorFiller(name: string, tables: { weight: Uint16Array; norm: Uint16Array }) {
  const table = name.includes('norm') ? tables.norm : tables.weight
  let state = seedOf(name)
  return (out: Uint16Array) => {
    for (let i = 0; i < out.length; i += 2) {
      state ^= state << 13
      state ^= state >>> 17
      state ^= state << 5
      out[i] = table[state & 0xffff]!
      out[i + 1] = table[state >>> 16]!
    }
  }
}

const normalTables = () => ({ weight: normalTable(0), norm: normalTable(1) })

async function writeShard(path: string, tensors: readonly TensorLayout[], tables: ReturnType<typeof normalTables>) {
  const layout = layoutFile(tensors, { format: 'pt' })
  const file: FileHandle = await open(path, 'w')
  const chunk = new Uint16Array(CHUNK_ELEMENTS)
  try {
    await file.write(layout.header)
    for (const { name, bytes, pad } of layout.tensors) {
      const fill = tensorFiller(name, tables)
      for (let left = bytes / 2; left > 0; left -= CHUNK_ELEMENTS) {
        const part = chunk.subarray(0, Math.min(left, CHUNK_ELEMENTS))
        fill(part)
        await file.write(new Uint8Array(part.buffer, 0, part.byteLength))
      }
      if (pad) await file.write(new Uint8Array(pad))
    }
  } finally {
    await file.close()
  }
}

const bytesOf = ({ shape }: TensorLayout) => shape.reduce((product, size) => product * size, 2)

/** Tensors in shards of at most 2 GiB, in order. */
function shardsOf(tensors: readonly TensorLayout[]): TensorLayout[][] {
  const shards: TensorLayout[][] = [[]]
  let filled = 0
  for (const tensor of tensors) {
    if (filled > 0 && filled + bytesOf(tensor) > SHARD_BYTES) {
      shards.push([])
      filled = 0
    }
    shards.at(-1)!.push(tensor)
    filled += bytesOf(tensor)
  }
  return shards
}

/** Writes the checkpoint to `folder` unless it is there. It has no tokenizer: both sides are driven by token ids. */
export async function writeCheckpoint(config: ModelConfig, folder: string): Promise<void> {
  if (existsSync(folder)) return
  const partial = `${folder}.partial`
  await rm(partial, { recursive: true, force: true })
  await mkdir(partial, { recursive: true })
  const shards = shardsOf(tensorShapes(config).map((tensor) => ({ ...tensor, dtype: 'BF16' as const })))
  const tables = normalTables()
  const weightMap: Record<string, string> = {}
  for (const [index, tensors] of shards.entries()) {
    const number = (value: number) => String(value).padStart(5, '0')
    const name =
      shards.length === 1 ? 'model.safetensors' : `model-${number(index + 1)}-of-${number(shards.length)}.safetensors`
    for (const tensor of tensors) weightMap[tensor.name] = name
    await writeShard(join(partial, name), tensors, tables)
  }
  const total = shards.flat().reduce((sum, tensor) => sum + bytesOf(tensor), 0)
  const index = { metadata: { total_size: total }, weight_map: weightMap } // transformers reads both
  if (shards.length > 1) await writeFile(join(partial, 'model.safetensors.index.json'), JSON.stringify(index))
  await writeFile(join(partial, 'config.json'), JSON.stringify(config, undefined, 2))
  await rename(partial, folder)
}
