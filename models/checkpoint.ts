/** A checkpoint folder in Hugging Face layout: configuration and safetensors, in one file or in shards. */
import { access } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { fail } from '../errors.ts'
import { isObject, type MapFile, mapFile, readBytes } from './files.ts'
import { isPad, readHeader, repeatedKey, type TensorEntry, type TensorFiles, tensorFiles } from './safetensors.ts'

const SINGLE_FILE = 'model.safetensors'
const INDEX_FILE = `${SINGLE_FILE}.index.json`

export interface Checkpoint extends TensorFiles {
  /** The folder. */
  readonly path: string
  /** Names inside the folder of every file that holds or locates a tensor. */
  readonly sources: readonly string[]
}

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  )

/** `weight_map` of an index: tensor name to file name. Throws SAFETENSORS_INDEX. */
function parseIndex(text: string, path: string): ReadonlyMap<string, string> {
  const bad = (reason: string) => fail('SAFETENSORS_INDEX', { path, reason })
  let index: unknown
  try {
    index = JSON.parse(text)
  } catch (cause) {
    throw bad(`not JSON: ${(cause as Error).message}`)
  }
  if (!isObject(index) || !isObject(index.weight_map)) throw bad('weight_map: expected an object')
  const repeated = repeatedKey(text)
  if (repeated !== undefined) throw bad(`${JSON.stringify(repeated)} appears twice`)
  for (const [tensor, file] of Object.entries(index.weight_map)) {
    // A shard lies beside its index: a path could reach any file of the machine.
    if (typeof file !== 'string' || !/^[^/\\\0]+\.safetensors$/.test(file))
      throw bad(`tensor ${tensor}: expected the name of a .safetensors file beside it, got ${JSON.stringify(file)}`)
  }
  return new Map(Object.entries(index.weight_map as Record<string, string>))
}

async function openShards(folder: string): Promise<{ tensors: Map<string, TensorEntry>; shards: string[] }> {
  const path = join(folder, INDEX_FILE)
  const bad = (reason: string) => fail('SAFETENSORS_INDEX', { path, reason })
  const map = parseIndex((await readBytes(path, 'an index of shards')).toString('utf8'), path)
  const shards = [...new Set(map.values())].sort()
  const tensors = new Map<string, TensorEntry>()
  for (const shard of shards) {
    const header = await readHeader(join(folder, shard))
    for (const [name, entry] of header.tensors) {
      const home = map.get(name)
      if (home === undefined) throw bad(`tensor ${name} of ${shard} is not in weight_map`)
      if (home === shard) tensors.set(name, entry)
    }
  }
  for (const [name, shard] of map) if (!tensors.has(name)) throw bad(`tensor ${name} is not in ${shard}`)
  return { tensors, shards }
}

/**
 * Opens the weights of a checkpoint folder: `model.safetensors`, without padding of `layoutFile`, else the shards that its
 * index names.
 * Throws FILE_MISSING, FILE_TRUNCATED, SAFETENSORS_HEADER, SAFETENSORS_INDEX.
 */
export async function openCheckpoint(path: string, map: MapFile = mapFile): Promise<Checkpoint> {
  if (await exists(join(path, SINGLE_FILE))) {
    const { tensors: stored } = await readHeader(join(path, SINGLE_FILE))
    const tensors = new Map([...stored].filter(([name, { dtype }]) => !(isPad(name) && dtype === 'U8')))
    return { path, sources: [SINGLE_FILE], ...tensorFiles(tensors, [join(path, SINGLE_FILE)], map) }
  }
  if (!(await exists(join(path, INDEX_FILE))))
    throw fail('FILE_MISSING', { path: join(path, SINGLE_FILE), expected: `${SINGLE_FILE} or ${INDEX_FILE}` })
  const { tensors, shards } = await openShards(path)
  const files = shards.map((shard) => join(path, shard))
  return { path, sources: [INDEX_FILE, ...files.map((file) => basename(file))], ...tensorFiles(tensors, files, map) }
}
