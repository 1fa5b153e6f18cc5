/** Reads a golden file and checks that it is one, and that it is of the model at hand. */
import { fail } from '../errors.ts'
import { readRange, withFile } from '../models/files.ts'
import { readHeader, type TensorEntry } from '../models/safetensors.ts'

export interface GoldenPrompt {
  readonly name: string
  readonly ids: readonly number[]
  /** (tokens, vocab), or (1, vocab) of the last token. */
  readonly logits: Float32Array
  readonly greedy: { readonly tokens: readonly number[]; readonly margins: readonly number[] } | undefined
  /** Loss of tokens 1, 2, ... */
  readonly nll: Float32Array | undefined
}

export interface Golden {
  /** Who computed it, from the file's metadata. */
  readonly reference: string
  readonly prompts: readonly GoldenPrompt[]
}

type Shape = readonly (number | undefined)[]
const sizes = (shape: Shape) => `[${shape.map((size) => size ?? 'n').join(', ')}]`

/** The tensors of a golden file; a size of undefined is any. */
class GoldenTensors {
  readonly path: string
  readonly #tensors: ReadonlyMap<string, { readonly entry: TensorEntry; readonly bytes: Buffer }>

  constructor(path: string, tensors: ReadonlyMap<string, { readonly entry: TensorEntry; readonly bytes: Buffer }>) {
    this.path = path
    this.#tensors = tensors
  }

  names(): string[] {
    return [...this.#tensors.keys()]
  }

  has(name: string): boolean {
    return this.#tensors.has(name)
  }

  floats(name: string, shape: Shape): Float32Array {
    return new Float32Array(this.#elements(name, 'F32', shape))
  }

  integers(name: string, shape: Shape): number[] {
    return [...new Int32Array(this.#elements(name, 'I32', shape))]
  }

  missing(tensor: string, expected: string): Error {
    return fail('TENSOR_MISSING', { path: this.path, tensor, expected })
  }

  /** A copy, which is aligned wherever the file put the tensor. */
  #elements(name: string, dtype: 'F32' | 'I32', shape: Shape): ArrayBuffer {
    const found = this.#tensors.get(name)
    if (!found) throw this.missing(name, sizes(shape))
    const { entry, bytes } = found
    if (entry.dtype !== dtype)
      throw fail('DTYPE_UNSUPPORTED', { path: this.path, thing: `tensor ${name}`, got: entry.dtype, expected: dtype })
    const fits = shape.length === entry.shape.length && shape.every((n, i) => n === undefined || n === entry.shape[i])
    if (!fits)
      throw fail('TENSOR_SHAPE', { path: this.path, tensor: name, expected: sizes(shape), got: sizes(entry.shape) })
    return Uint8Array.from(bytes).buffer
  }
}

function idsOf(tensors: GoldenTensors, name: string, vocab: number): number[] {
  const ids = tensors.integers(`${name}.ids`, [undefined])
  if (ids.length === 0)
    throw fail('TENSOR_SHAPE', { path: tensors.path, tensor: `${name}.ids`, expected: 'at least [1]', got: '[0]' })
  const index = ids.findIndex((id) => id < 0 || id >= vocab)
  if (index >= 0) throw fail('TOKEN_OUT_OF_RANGE', { token: ids[index], index, vocabulary: vocab })
  return ids
}

function logitsOf(tensors: GoldenTensors, name: string, tokens: number, vocab: number): Float32Array {
  if (tensors.has(`${name}.logits`)) return tensors.floats(`${name}.logits`, [tokens, vocab])
  if (tensors.has(`${name}.logits_last`)) return tensors.floats(`${name}.logits_last`, [vocab])
  throw tensors.missing(`${name}.logits`, `[${tokens}, ${vocab}], or logits_last [${vocab}]`)
}

function greedyOf(tensors: GoldenTensors, name: string): GoldenPrompt['greedy'] {
  const tokens = tensors.integers(`${name}.greedy`, [undefined])
  return { tokens, margins: [...tensors.floats(`${name}.greedy_margin`, [tokens.length])] }
}

function promptOf(tensors: GoldenTensors, name: string, vocab: number): GoldenPrompt {
  const ids = idsOf(tensors, name, vocab)
  return {
    name,
    ids,
    logits: logitsOf(tensors, name, ids.length, vocab),
    greedy: tensors.has(`${name}.greedy`) ? greedyOf(tensors, name) : undefined,
    nll: tensors.has(`${name}.nll`) ? tensors.floats(`${name}.nll`, [ids.length - 1]) : undefined,
  }
}

/** Reads every tensor of the file. Throws FILE_MISSING, FILE_UNREADABLE, FILE_TRUNCATED or SAFETENSORS_HEADER. */
export async function openGolden(path: string): Promise<{ tensors: GoldenTensors; reference: string }> {
  const header = await readHeader(path)
  const read = new Map<string, { entry: TensorEntry; bytes: Buffer }>()
  await withFile(path, 'a golden file', async (file) => {
    for (const entry of header.tensors.values()) {
      const bytes = await readRange(file, path, `tensor ${entry.name}`, entry.offset, entry.bytes)
      read.set(entry.name, { entry, bytes })
    }
  })
  const reference = header.metadata.reference ?? 'a golden file that names no author'
  return { tensors: new GoldenTensors(path, read), reference }
}

/** The prompts of the file; besides, TENSOR_MISSING, TENSOR_SHAPE, DTYPE_UNSUPPORTED or TOKEN_OUT_OF_RANGE. */
export async function readGolden(path: string, vocab: number): Promise<Golden> {
  const { tensors, reference } = await openGolden(path)
  const order = (name: string) => Number(name.slice('prompt'.length))
  const names = new Set(tensors.names().flatMap((name) => /^(prompt\d+)\./.exec(name)?.[1] ?? []))
  if (names.size === 0) throw tensors.missing('prompt0.ids', '[n]')
  const prompts = [...names].sort((a, b) => order(a) - order(b)).map((name) => promptOf(tensors, name, vocab))
  return { reference, prompts }
}
