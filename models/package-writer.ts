/** Writes a package into a temporary folder beside its place and renames it at the end: all of it or nothing. */
import { createHash, randomUUID } from 'node:crypto'
import { type FileHandle, lstat, mkdir, open, rename, rm } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { packageVersion } from '../abi/native.ts'
import { fail, IngotError } from '../errors.ts'
import { CONFIG_FILE, type CompiledCheckpoint } from './compile/index.ts'
import { packWeights } from './compile/layout.ts'
import { ahead, Pacer } from './compile/pacer.ts'
import { tilePacker } from './compile/tiles.ts'
import { CHUNK_BYTES, codeOf, type FileHash, hashBytes, hashFile } from './files.ts'
import {
  COPIED_FILES,
  isPackage,
  MANIFEST_FILE,
  type Manifest,
  manifestText,
  PACKAGE_FORMAT,
  PLAN_FILE,
  parseManifest,
  storedShape,
  TOKENIZER_FILE,
  VOCABULARY_FILE,
  WEIGHTS_FILE,
} from './package.ts'
import { layoutFile } from './safetensors.ts'
import { LARGE_TOKENIZER_BYTES, vocabularyOf } from './vocabulary.ts'

/**
 * Bytes of one write of weights. Page caches keep in one piece what one aligned write brings, and map a large piece in
 * one fault: a warm start of a 1B package then spends 1 ms on page faults, else 60.
 */
const WRITE_BYTES = 4 * 2 ** 20

/** Bytes done of all that will be hashed or written; `what` is the file or tensor in work. */
export interface Progress {
  readonly done: number
  readonly total: number
  readonly what: string
}

export interface WriteOptions {
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: Progress) => void) | undefined
  /** That pack weights; 0, the default: one a physical core. */
  readonly threads?: number | undefined
}

type Entry = FileHash & { readonly path: string }

const stat = (path: string) =>
  lstat(path).catch((error: unknown) => {
    if (codeOf(error) === 'ENOENT') return undefined
    throw error
  })

/** Turns what the file system says about the output into OUTPUT_UNWRITABLE. */
async function writing<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (cause) {
    if (cause instanceof IngotError || codeOf(cause) === undefined) throw cause
    throw fail('OUTPUT_UNWRITABLE', { path, reason: (cause as Error).message }, cause)
  }
}

/** Throws OUTPUT_EXISTS where `path` is anything but a package or nothing. Another compile may replace it meanwhile. */
async function checkOutput(path: string): Promise<void> {
  for (;;) {
    const info = await stat(path)
    if (!info || (await isPackage(path))) return
    if ((await stat(path))?.ino === info.ino) throw fail('OUTPUT_EXISTS', { path })
  }
}

/** Renames; false when an error of `codes` says that another compile was there first. */
const moved = (from: string, to: string, ...codes: string[]) =>
  rename(from, to).then(
    () => true,
    (error: unknown) => {
      if (codes.includes(codeOf(error) ?? '')) return false
      throw error
    },
  )

/**
 * Moves the finished folder into place; an older package moves aside first and comes back if that fails. Of compiles to
 * one output that end at once, the last one stays.
 */
async function publish(folder: string, out: string): Promise<void> {
  const old = `${folder}.old`
  const occupied = ['ENOTEMPTY', 'EEXIST']
  for (let done = false; !done; ) {
    await checkOutput(out)
    const replaces = await moved(out, old, 'ENOENT')
    try {
      done = await moved(folder, out, ...occupied)
    } catch (error) {
      if (replaces && !(await moved(old, out, ...occupied))) await rm(old, { recursive: true, force: true })
      throw error
    }
    if (replaces) await rm(old, { recursive: true, force: true })
  }
}

/** Appends to a file in writes of WRITE_BYTES, each at a multiple of it; one is under way while the next is filled. */
class AlignedFile {
  readonly #file: FileHandle
  #buffer = Buffer.allocUnsafeSlow(WRITE_BYTES)
  #spare = Buffer.allocUnsafeSlow(WRITE_BYTES)
  #used = 0
  #written: Promise<void> = Promise.resolve()
  constructor(file: FileHandle) {
    this.#file = file
  }

  async append(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const piece = bytes.subarray(at, at + WRITE_BYTES - this.#used)
      this.#buffer.set(piece, this.#used)
      this.#used += piece.length
      at += piece.length
      if (this.#used === WRITE_BYTES) await this.#flush()
    }
  }

  /** Settles when everything is written. */
  async end(): Promise<void> {
    await this.#flush()
    await this.#written
  }

  async #flush(): Promise<void> {
    await this.#written
    const [buffer, used] = [this.#buffer, this.#used]
    this.#written = this.#write(buffer.subarray(0, used))
    this.#written.catch(() => {}) // thrown when it is waited for
    this.#buffer = this.#spare
    this.#spare = buffer
    this.#used = 0
  }

  async #write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) at += (await this.#file.write(bytes, at, bytes.length - at)).bytesWritten
  }
}

/** One package being written. */
class PackageWriter {
  readonly #compiled: CompiledCheckpoint
  readonly #folder: string
  readonly #options: WriteOptions
  readonly #pacer: Pacer
  #done = 0
  #total = 0
  #failure: unknown

  constructor(compiled: CompiledCheckpoint, folder: string, options: WriteOptions) {
    this.#compiled = compiled
    this.#folder = folder
    this.#options = options
    this.#pacer = new Pacer(options.signal)
  }

  async write(): Promise<Manifest> {
    const { checkpoint, plan } = this.#compiled
    const copied: string[] = []
    for (const name of COPIED_FILES) if (await stat(join(checkpoint.path, name))) copied.push(name)
    const sources = [CONFIG_FILE, ...copied, ...checkpoint.sources]
    const sizes = await Promise.all(sources.map((name) => stat(join(checkpoint.path, name))))
    this.#total = sizes.reduce((sum, info) => sum + (info?.size ?? 0), 0)
    this.#total += plan.tensors.reduce((sum, tensor) => sum + tensor.bytes, 0)

    const planEntry = await this.#file(PLAN_FILE, this.#compiled.planBytes)
    const [sourceEntries, weightsEntry] = await this.#together(this.#sources(sources, copied), this.#weights())
    const files = [
      planEntry,
      weightsEntry,
      ...(await this.#vocabulary()),
      ...sourceEntries.filter(({ path }) => copied.includes(path)),
    ]
    const text = manifestText({
      format: PACKAGE_FORMAT,
      ingot: packageVersion(),
      model: plan.model,
      architecture: this.#compiled.architecture,
      quantize: this.#compiled.quantize,
      planHash: this.#compiled.planHash,
      contextTokens: plan.maxContext,
      generation: { ...this.#compiled.generation, eos: [...this.#compiled.generation.eos] },
      files,
      sources: sourceEntries,
    })
    await this.#file(MANIFEST_FILE, Buffer.from(text))
    return parseManifest(text, MANIFEST_FILE)
  }

  /** Waits for both, so that nothing is written once it settles; when one fails, the other ends at its next step. */
  async #together<A, B>(a: Promise<A>, b: Promise<B>): Promise<[A, B]> {
    const watch = (error: unknown) => {
      this.#failure ??= error
    }
    await Promise.all([a.then(undefined, watch), b.then(undefined, watch)])
    if (this.#failure) throw this.#failure
    return Promise.all([a, b])
  }

  async #step(bytes: number, what: string): Promise<void> {
    if (this.#failure) throw this.#failure
    this.#done += bytes
    this.#options.onProgress?.({ done: this.#done, total: this.#total, what })
    if (this.#pacer.due || this.#options.signal?.aborted) await this.#pacer.rest()
  }

  /** Opens a new file of the package, synchronised with the disk before it is closed. */
  async #create(name: string, work: (file: FileHandle) => Promise<void>): Promise<void> {
    const file = await open(join(this.#folder, name), 'wx')
    try {
      await work(file)
      await file.sync()
    } finally {
      await file.close()
    }
  }

  async #file(name: string, content: Uint8Array): Promise<Entry> {
    await this.#create(name, (file) => file.writeFile(content))
    return { path: name, ...hashBytes(content) }
  }

  async #sources(names: readonly string[], copied: readonly string[]): Promise<Entry[]> {
    const entries: Entry[] = []
    for (const name of names) entries.push(await this.#source(name, copied.includes(name)))
    return entries
  }

  /** Hashes a file of the checkpoint, and copies it when `copy`. */
  async #source(name: string, copy: boolean): Promise<Entry> {
    const path = join(this.#compiled.checkpoint.path, name)
    const read = (write?: (chunk: Uint8Array) => Promise<unknown>) =>
      hashFile(path, 'a file of the checkpoint', async (chunk) => {
        await write?.(chunk)
        await this.#step(chunk.length, name)
      })
    let hash: FileHash | undefined
    if (!copy) hash = await read()
    else
      await this.#create(name, async (file) => {
        hash = await read((chunk) => file.writeFile(chunk))
      })
    return { path: name, ...hash! }
  }

  /** Packs the vocabulary of a large tokenizer.json. */
  async #vocabulary(): Promise<Entry[]> {
    const path = join(this.#folder, TOKENIZER_FILE)
    if (((await stat(path))?.size ?? 0) < LARGE_TOKENIZER_BYTES) return []
    const bytes = await vocabularyOf(path)
    return bytes ? [await this.#file(VOCABULARY_FILE, bytes)] : []
  }

  /** Streams the weights, each chunk converted and packed while the one before it is hashed and written. */
  async #weights(): Promise<Entry> {
    const { weights, checkpoint, plan } = this.#compiled
    const layout = layoutFile(
      plan.tensors.map((tensor) => ({ name: tensor.name, ...storedShape(tensor) })),
      { format: 'ingot' },
    )
    const hash = createHash('sha256')
    const pack = tilePacker(this.#pacer, this.#options.threads)
    await this.#create(WEIGHTS_FILE, async (file) => {
      const target = new AlignedFile(file)
      const append = (bytes: Uint8Array) => {
        hash.update(bytes)
        return target.append(bytes)
      }
      await append(layout.header)
      let left = layout.tensors[0]?.bytes ?? 0
      for await (const { index, bytes } of ahead(packWeights(weights, checkpoint.data, this.#pacer, pack))) {
        const { name, pad } = layout.tensors[index]!
        for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
          const piece = bytes.subarray(at, at + CHUNK_BYTES)
          await append(piece)
          await this.#step(piece.length, name)
        }
        left -= bytes.length
        if (left > 0) continue
        await append(new Uint8Array(pad))
        left = layout.tensors[index + 1]?.bytes ?? 0
      }
      await target.end()
    })
    return { path: WEIGHTS_FILE, bytes: layout.bytes, sha256: hash.digest('hex') }
  }
}

/**
 * Writes `compiled` as package `out`, replacing an older package there. On any failure nothing is left behind.
 * Throws OUTPUT_EXISTS, OUTPUT_UNWRITABLE, QUANTIZE_UNSUPPORTED, ABORTED.
 */
export async function writePackage(
  compiled: CompiledCheckpoint,
  out: string,
  options: WriteOptions = {},
): Promise<Manifest> {
  const path = resolve(out)
  const folder = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`)
  return writing(out, async () => {
    await checkOutput(path)
    await mkdir(folder)
    try {
      const manifest = await new PackageWriter(compiled, folder, options).write()
      await publish(folder, path)
      return manifest
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  })
}
