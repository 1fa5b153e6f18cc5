/** The files that both sides run, made once from the same weights and kept in `.cache`. */
import { existsSync, readdirSync, statSync } from 'node:fs'
import { mkdir, open, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { packageRoot } from '../../abi/native.ts'
import { compile } from '../../index.ts'
import { readPackage } from '../../models/package.ts'
import { writeCheckpoint } from './checkpoint.ts'
import { convert, type Format } from './convert.ts'
import { readGguf } from './gguf.ts'
import { type ModelConfig, type ShapeName, shape } from './shapes.ts'

export const peersFolder = () => join(packageRoot(), 'bench', 'peers')

export interface Artifact {
  readonly package: string
  readonly gguf: string
  readonly config: ModelConfig
  /** Bytes of weights: stored, and read by a decode step. An untied embedding gives a step one row only. */
  readonly bytes: Readonly<Record<'ingot' | 'peer', { readonly weights: number; readonly step: number }>>
}

const quantize = { bf16: 'none', q8: 'q8', q4: 'q4' } as const

/** Latest change of what decides a package's bytes. */
const compilerTime = () =>
  Math.max(
    ...['abi', 'models', 'plans'].flatMap((folder) => {
      const path = join(packageRoot(), 'dist', folder)
      return readdirSync(path, { recursive: true, encoding: 'utf8' })
        .filter((name) => name.endsWith('.js') && !name.endsWith('.test.js'))
        .map((name) => statSync(join(path, name)).mtimeMs)
    }),
  )

/** Compiles unless a package is there that this compiler wrote and this loader reads. */
async function ensurePackage(checkpoint: string, out: string, format: Format): Promise<void> {
  const current = existsSync(out) && statSync(join(out, 'manifest.json')).mtimeMs > compilerTime()
  if (current && (await readPackage(out, { integrity: 'structure' }).catch(() => undefined))) return
  await rm(out, { recursive: true, force: true })
  await compile(checkpoint, { out, quantize: quantize[format] })
}

const isEmbedding = (name: string) => /^(model\.embed_tokens|token_embd)\./.test(name)

const counted = (config: ModelConfig, tensors: readonly { readonly name: string; readonly bytes: number }[]) => {
  const sum = (some: typeof tensors) => some.reduce((total, { bytes }) => total + bytes, 0)
  const step = config.tie_word_embeddings ? tensors : tensors.filter(({ name }) => !isEmbedding(name))
  return { weights: sum(tensors), step: sum(step) }
}

/** More than the header of any vocabulary. */
const HEADER_BYTES = 2 ** 25

/** Sizes of a GGUF's tensors: offsets are consecutive. */
async function ggufTensors(path: string) {
  await using file = await open(path)
  const { buffer } = await file.read(Buffer.alloc(HEADER_BYTES), 0, HEADER_BYTES, 0)
  const { tensors, dataStart } = readGguf(buffer)
  const end = statSync(path).size - dataStart
  return tensors.map(({ name, offset }, i) => ({ name, bytes: (tensors[i + 1]?.offset ?? end) - offset }))
}

/** Package and GGUF of the checkpoint in `folder`, kept under `cache`. */
export async function artifactOf(folder: string, cache: string, name: string, format: Format): Promise<Artifact> {
  const [pkg, gguf] = [join(cache, `${name}-${format}.ingot`), join(cache, `${name}-${format}.gguf`)]
  await ensurePackage(folder, pkg, format)
  await convert(folder, gguf, format)
  const config = JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')) as ModelConfig
  const { plan } = await readPackage(pkg, { integrity: 'structure' })
  const bytes = { ingot: counted(config, plan.tensors), peer: counted(config, await ggufTensors(gguf)) }
  return { package: pkg, gguf, config, bytes }
}

/** The checkpoint of a shape, cut as `shape` does, written when it is not there; returns its name and folder. */
export async function checkpointOf(cache: string, model: ShapeName, layers: number, vocab = 0) {
  const name = [model, layers && `${layers}-layers`, vocab && `${vocab}-tokens`].filter(Boolean).join('-')
  const folder = join(cache, name)
  await mkdir(cache, { recursive: true })
  await writeCheckpoint(shape(model, layers, vocab), folder)
  return { name, folder }
}
