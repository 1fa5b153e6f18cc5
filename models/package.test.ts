import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { Vocabulary } from '../abi/vocabulary.ts'
import { IngotError } from '../errors.ts'
import { type CompileOptions, compile } from './compile.ts'
import {
  decoderTensors,
  newFolder,
  readWhole,
  tinyCheckpoint,
  tinyConfig,
  writeCheckpoint,
} from './example.test-checkpoint.ts'
import { hashBytes } from './files.ts'
import { type Manifest, manifestText, parseManifest, readPackage } from './package.ts'

const storyteller = join(packageRoot(), 'checkpoints/storyteller-1m')
const out = () => join(newFolder(), 'x.ingot')
const full = { integrity: 'full' } as const
const code = (code: string) => expect.objectContaining({ code })

/** Names and bytes of every file of a folder. */
const snapshot = (folder: string) =>
  Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), 'base64')]))

const tiny = await compile(tinyCheckpoint(), { out: out() })
/** A copy of a small package, to be changed. */
function copy(change: (folder: string) => void): string {
  const folder = out()
  cpSync(tiny.path, folder, { recursive: true })
  change(folder)
  return folder
}
/** A copy whose manifest is edited and sealed again. */
const resealed = (edit: (manifest: Record<string, unknown> & Manifest) => void, folder = copy(() => {})) => {
  const path = join(folder, 'manifest.json')
  const { hash, ...rest } = JSON.parse(readFileSync(path, 'utf8'))
  edit(rest)
  writeFileSync(path, manifestText(rest))
  return folder
}

describe('a package', () => {
  test.each(['none', 'q8', 'q4', 'fp8'] as const)('%s: reads back as what was compiled', async (quantize) => {
    const result = await compile(storyteller, { out: out(), quantize })
    const pkg = await readPackage(result.path, full)
    expect(pkg.plan).toEqual(result.plan)
    expect(pkg.planHash).toBe(result.planHash)
    expect(pkg.manifest).toEqual(result.manifest)
    expect(pkg.manifest).toMatchObject({
      format: 1,
      model: 'qwen3',
      architecture: 'Qwen3ForCausalLM',
      quantize,
      contextTokens: 1024,
      generation: { eos: [2, 0], bos: 0, doSample: true, temperature: 0.7, topP: 0.95 },
    })
    expect(pkg.tokenizerJson).toBe(readFileSync(join(storyteller, 'tokenizer.json'), 'utf8'))
    expect(pkg.chatTemplate).toBe(readFileSync(join(storyteller, 'chat_template.jinja'), 'utf8'))
    expect(Object.keys(JSON.parse(pkg.generationConfigJson!))).toContain('eos_token_id')
    for (const { path, bytes, sha256 } of pkg.manifest.sources)
      expect({ bytes, sha256 }).toEqual(hashBytes(readFileSync(join(storyteller, path))))
    expect(pkg.manifest.sources.map(({ path }) => path)).toEqual(
      expect.arrayContaining(['config.json', 'model.safetensors', 'tokenizer.json']),
    )
    for (const { name, bytes } of pkg.plan.tensors) {
      expect(pkg.tensors.get(name)).toMatchObject({ bytes })
      expect(pkg.tensors.get(name)!.offset % 64).toBe(0)
    }
    expect(result.weightsBytes).toBe(pkg.plan.tensors.reduce((sum, { bytes }) => sum + bytes, 0))
  })

  test('has the same bytes for the same checkpoint, mapped natively or not, on any threads, in one file or in shards', async () => {
    const tensors = decoderTensors(tinyConfig, () => 'BF16')
    const [one, three] = [1, 3].map((shards) => writeCheckpoint(tinyConfig, tensors, { shards }))
    const a = await compile(one!, { out: out() })
    const b = await compile(one!, { out: out(), mapFile: readWhole })
    expect(snapshot(b.path)).toEqual(snapshot(a.path))
    const slow = await compile(one!, { out: out(), threads: 1 })
    expect(snapshot(slow.path)).toEqual(snapshot(a.path))
    const sharded = await compile(three!, { out: out() })
    for (const name of ['plan.bin', 'weights.safetensors'])
      expect(snapshot(sharded.path)[name]).toBe(snapshot(a.path)[name])
  })

  test('with a large tokenizer.json holds its vocabulary, and does not read the file to open', async () => {
    const folder = tinyCheckpoint()
    const vocab = Object.fromEntries(Array.from({ length: 60_000 }, (_, id) => [`token number ${id}`, id]))
    writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify({ model: { type: 'BPE', vocab, merges: [] } }))
    const { path } = await compile(folder, { out: out() })
    const pkg = await readPackage(path, full)
    expect(pkg).not.toHaveProperty('tokenizerJson')
    expect(pkg.tokenizerPath).toBe(join(path, 'tokenizer.json'))
    expect(new Vocabulary(pkg.vocabulary!).tokenOf(59_999)).toBe('token number 59999')
    const entry = pkg.manifest.files.find((file) => file.path === 'tokenizer.json')!
    writeFileSync(join(path, 'tokenizer.json'), ' '.repeat(entry.bytes))
    await expect(readPackage(path, full)).rejects.toMatchObject({ code: 'HASH_MISMATCH' })
    resealed((m) => void m.files.splice(m.files.indexOf(m.files.find((f) => f.path === 'tokenizer.json')!), 1), path)
    await expect(readPackage(path, full)).rejects.toMatchObject({ code: 'PACKAGE_INVALID' })
    // What has no vocabulary is copied as it is, and refused where it is used.
    writeFileSync(join(folder, 'tokenizer.json'), JSON.stringify({ model: ' '.repeat(2 ** 20) }))
    expect(await readPackage((await compile(folder, { out: out() })).path, full)).not.toHaveProperty('vocabulary')
  })

  test('without a tokenizer has none', async () => {
    expect(await readPackage(tiny.path, full)).not.toHaveProperty('tokenizerJson')
  })
})

describe('a changed package is refused', () => {
  const names = readdirSync(tiny.path)
  test('whatever byte changes, in whatever file', async () => {
    const bits = fc.integer({ min: 1, max: 255 })
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...names),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        bits,
        async (name, where, flip) => {
          const folder = copy((folder) => {
            const bytes = readFileSync(join(folder, name))
            bytes[Math.floor(where * bytes.length)]! ^= flip
            writeFileSync(join(folder, name), bytes)
          })
          const error = await readPackage(folder, full).catch((error: unknown) => error)
          expect(error).toBeInstanceOf(IngotError)
          expect((error as IngotError).message).toContain(join(folder, name))
        },
      ),
      { numRuns: 150 },
    )
  })

  test('every byte of the manifest counts, spaces too', () => {
    const text = readFileSync(join(tiny.path, 'manifest.json'))
    for (let i = 0; i < text.length; i++) {
      const changed = Buffer.from(text)
      changed[i] = text[i] === 0x20 ? 0x09 : 0x20
      expect(() => parseManifest(changed.toString(), 'manifest.json')).toThrow(IngotError)
    }
    expect(() => parseManifest(`${text} `, 'manifest.json')).toThrow(code('HASH_MISMATCH'))
  })

  test.each(names.filter((name) => name !== 'manifest.json'))('%s cut short, longer or gone', async (name) => {
    const path = (folder: string) => join(folder, name)
    const cut = copy((folder) => truncateSync(path(folder), 40))
    await expect(readPackage(cut, { integrity: 'structure' })).rejects.toMatchObject({ code: 'FILE_TRUNCATED' })
    const longer = copy((folder) =>
      writeFileSync(path(folder), Buffer.concat([readFileSync(path(folder)), Buffer.alloc(1)])),
    )
    await expect(readPackage(longer, { integrity: 'structure' })).rejects.toMatchObject({ code: 'PACKAGE_INVALID' })
  })

  const structure = (folder: string) => readPackage(folder, { integrity: 'structure' })
  test('structure alone does not read the bytes of the weights', async () => {
    const folder = copy((folder) => {
      const path = join(folder, 'weights.safetensors')
      const bytes = readFileSync(path)
      bytes[bytes.length - 100]! ^= 1
      writeFileSync(path, bytes)
    })
    await structure(folder)
    await expect(readPackage(folder, full)).rejects.toMatchObject({ code: 'HASH_MISMATCH' })
  })

  test('measured choices of kernels lie beside it, and are no part of it', async () => {
    const before = await readPackage(tiny.path, full)
    const folder = copy((f) => {
      mkdirSync(join(f, 'tuning'))
      writeFileSync(join(f, 'tuning', 'a.json'), 'anything')
    })
    const { manifest, planHash } = await readPackage(folder, full)
    expect({ manifest, planHash }).toEqual({ manifest: before.manifest, planHash: before.planHash })
    for (let i = 0; i < 64; i++) writeFileSync(join(folder, 'tuning', `${i}.json`), '')
    await expect(structure(folder)).rejects.toMatchObject({ code: 'PACKAGE_INVALID', details: { got: 65 } })
  })

  const tuned = (put: (folder: string) => void) =>
    copy((f) => {
      mkdirSync(join(f, 'tuning'))
      put(join(f, 'tuning'))
    })
  test.each([
    ['something else than a tuning file', tuned((f) => writeFileSync(join(f, 'a.so'), '')), 'PACKAGE_INVALID'],
    ['a link to a tuning file', tuned((f) => symlinkSync('/dev/null', join(f, 'a.json'))), 'PACKAGE_INVALID'],
    ['a file that the manifest does not list', copy((f) => writeFileSync(join(f, 'x'), '')), 'PACKAGE_INVALID'],
    ['a folder inside', copy((f) => mkdirSync(join(f, 'x'))), 'PACKAGE_INVALID'],
    ['a link inside', copy((f) => symlinkSync('/dev/zero', join(f, 'x'))), 'PACKAGE_INVALID'],
    ['a manifest that is not JSON', copy((f) => writeFileSync(join(f, 'manifest.json'), '{')), 'JSON_INVALID'],
    ['a manifest that is a list', copy((f) => writeFileSync(join(f, 'manifest.json'), '[]')), 'PACKAGE_INVALID'],
    ['a newer format', resealed((m) => void (m.format = 2 as 1)), 'PACKAGE_NEWER'],
    ['a newer format with new fields', resealed((m) => Object.assign(m, { format: 9, more: 1 })), 'PACKAGE_NEWER'],
    ['an unknown field', resealed((m) => Object.assign(m, { more: 1 })), 'PACKAGE_INVALID'],
    ['a path out of the folder', resealed((m) => void (m.files[0]!.path = '../plan.bin')), 'PACKAGE_INVALID'],
    [
      'a listed file that is not there',
      resealed((m) => void m.files.push({ ...m.files[0]!, path: 'y' })),
      'FILE_MISSING',
    ],
    ['the same file twice', resealed((m) => void m.files.push(m.files[0]!)), 'PACKAGE_INVALID'],
    ['no weights', resealed((m) => void m.files.pop()), 'PACKAGE_INVALID'],
    ['another plan hash', resealed((m) => void (m.planHash = '0'.repeat(64))), 'HASH_MISMATCH'],
    ['another context than the plan', resealed((m) => void (m.contextTokens = 2 ** 31 - 1)), 'PACKAGE_INVALID'],
    ['another model than the plan', resealed((m) => void (m.model = 'other')), 'PACKAGE_INVALID'],
    ['sampling out of range', resealed((m) => Object.assign(m.generation, { topP: -5 })), 'PACKAGE_INVALID'],
    ['half a token to keep', resealed((m) => Object.assign(m.generation, { topK: 1.5 })), 'PACKAGE_INVALID'],
    ['no package at all', newFolder(), 'FILE_MISSING'],
  ])('%s', async (_, folder, expected) => {
    await expect(structure(folder)).rejects.toMatchObject({ code: expected })
  })

  test('weights of another model, sealed again, do not match the plan', async () => {
    const other = await compile(tinyCheckpoint({ intermediate_size: 90 }), { out: out() })
    const folder = copy((folder) =>
      cpSync(join(other.path, 'weights.safetensors'), join(folder, 'weights.safetensors')),
    )
    const entry = hashBytes(readFileSync(join(folder, 'weights.safetensors')))
    resealed((manifest) => Object.assign(manifest.files.find(({ path }) => path.startsWith('weights'))!, entry), folder)
    await expect(structure(folder)).rejects.toMatchObject({ code: 'PACKAGE_INVALID' })
  })

  test('a broken plan, sealed again, stops at the verifier', async () => {
    const folder = copy((folder) => {
      const bytes = readFileSync(join(folder, 'plan.bin'))
      bytes.fill(0xff, 40, 60)
      writeFileSync(join(folder, 'plan.bin'), bytes)
    })
    const entry = hashBytes(readFileSync(join(folder, 'plan.bin')))
    resealed((manifest) => {
      Object.assign(manifest.files[0]!, entry)
      manifest.planHash = entry.sha256
    }, folder)
    await expect(structure(folder)).rejects.toMatchObject({ code: expect.stringMatching(/^PLAN_/) })
  })
})

describe('compile', () => {
  test('replaces a package, and nothing else', async () => {
    const path = out()
    await compile(tinyCheckpoint(), { out: path })
    const q8 = await compile(tinyCheckpoint(), { out: path, quantize: 'q8' })
    expect((await readPackage(path, full)).planHash).toBe(q8.planHash)
    for (const make of [(p: string) => mkdirSync(p), (p: string) => writeFileSync(p, 'mine')]) {
      const taken = out()
      make(taken)
      await expect(compile(tinyCheckpoint(), { out: taken })).rejects.toMatchObject({ code: 'OUTPUT_EXISTS' })
      expect(existsSync(taken)).toBe(true)
    }
    expect(readdirSync(join(path, '..'))).toEqual(['x.ingot'])
  })

  test('names an output that cannot be written', async () => {
    const nowhere = join(newFolder(), 'no', 'such', 'x.ingot')
    await expect(compile(tinyCheckpoint(), { out: nowhere })).rejects.toMatchObject({ code: 'OUTPUT_UNWRITABLE' })
    const file = join(newFolder(), 'file')
    writeFileSync(file, '')
    const below = compile(tinyCheckpoint(), { out: join(file, 'x.ingot') })
    await expect(below).rejects.toMatchObject({ code: 'OUTPUT_UNWRITABLE' })
    const locked = newFolder()
    chmodSync(locked, 0o500)
    // root may write anywhere
    if (process.getuid?.() !== 0)
      await expect(compile(tinyCheckpoint(), { out: join(locked, 'x.ingot') })).rejects.toMatchObject({
        code: 'OUTPUT_UNWRITABLE',
      })
  })

  test('several at once to one output: each succeeds, one stays, nothing else', async () => {
    const path = out()
    for (let round = 0; round < 5; round++) {
      const both = [undefined, 'q8', undefined, 'q8'] as const
      await Promise.all(both.map((quantize) => compile(tinyCheckpoint(), { out: path, quantize })))
      await readPackage(path, full)
      expect(readdirSync(join(path, '..'))).toEqual(['x.ingot'])
    }
  })

  test.each([
    ['tokenizer.json', '{', 'JSON_INVALID'],
    ['tokenizer.json', '', 'JSON_INVALID'],
    ['tokenizer_config.json', '[]', 'CONFIG_INVALID'],
  ])('refuses a broken %s: %j', async (name, text, expected) => {
    const checkpoint = tinyCheckpoint()
    writeFileSync(join(checkpoint, name), text)
    const path = out()
    const call = compile(checkpoint, { out: path })
    await expect(call).rejects.toMatchObject({ code: expected, message: expect.stringContaining(name) })
    expect(existsSync(path)).toBe(false)
  })

  test('stops at once when aborted, and leaves nothing', async () => {
    const folder = newFolder()
    const path = join(folder, 'x.ingot')
    const early = compile(storyteller, { out: path, signal: AbortSignal.abort() })
    await expect(early).rejects.toMatchObject({ code: 'ABORTED' })
    const controller = new AbortController()
    const late = compile(storyteller, {
      out: path,
      signal: controller.signal,
      onProgress: ({ done, total }) => done > total / 2 && controller.abort(),
    })
    await expect(late).rejects.toMatchObject({ code: 'ABORTED' })
    expect(readdirSync(folder)).toEqual([])
  })

  test('keeps the older package when it fails half-way', async () => {
    const path = out()
    await compile(tinyCheckpoint(), { out: path })
    const before = snapshot(path)
    const boom = compile(storyteller, {
      out: path,
      onProgress: () => {
        throw new Error('boom')
      },
    })
    await expect(boom).rejects.toThrow('boom')
    expect(snapshot(path)).toEqual(before)
    expect(readdirSync(join(path, '..'))).toEqual(['x.ingot'])
  })

  test('a weight that cannot be quantised ends it, and the hashing beside it', async () => {
    const tensors = decoderTensors(tinyConfig, () => 'BF16')
    const [, { bytes }] = Object.entries(tensors).find(([name]) => name.endsWith('q_proj.weight'))!
    new DataView(bytes.buffer, bytes.byteOffset).setUint16(0, 0x7f80, true)
    const folder = newFolder()
    const call = compile(writeCheckpoint(tinyConfig, tensors), { out: join(folder, 'x.ingot'), quantize: 'q4' })
    await expect(call).rejects.toMatchObject({
      code: 'QUANTIZE_UNSUPPORTED',
      message: expect.stringMatching(/row 0 of .*holds NaN, infinity/),
    })
    expect(readdirSync(folder)).toEqual([])
  })

  test('reports progress up to the end', async () => {
    const seen: number[] = []
    let total = 0
    await compile(tinyCheckpoint(), {
      out: out(),
      onProgress: (progress) => {
        seen.push(progress.done)
        total = progress.total
      },
    })
    expect(seen).toEqual(seen.toSorted((a, b) => a - b))
    expect(seen.at(-1)).toBe(total)
  })

  test.each([
    [{ quantise: 'q8' }, 'OPTION_UNKNOWN'],
    [{ fusions: { qvk: false } }, 'OPTION_UNKNOWN'],
    [{ fusions: { qkv: 'no' } }, 'OPTION_INVALID'],
    [{ quantize: 'q5' }, 'OPTION_INVALID'],
    [{ state: 'q4' }, 'OPTION_INVALID'],
    [{ out: 7 }, 'OPTION_INVALID'],
    [{ threads: 0 }, 'OPTION_INVALID'],
    [{ threads: 1.5 }, 'OPTION_INVALID'],
    [{ fusions: null }, 'OPTION_INVALID'],
    [{ mapFile: 1 }, 'OPTION_INVALID'],
    [{ signal: {} }, 'OPTION_INVALID'],
  ])('%j is refused', async (options, expected) => {
    const call = compile(tinyCheckpoint(), { out: out(), ...options } as CompileOptions)
    await expect(call).rejects.toMatchObject({ code: expected })
  })

  test('names a source that is no checkpoint', async () => {
    const gguf = join(newFolder(), 'm.gguf')
    writeFileSync(gguf, 'GGUF')
    await expect(compile(gguf, { out: out() })).rejects.toThrow(/GGUF files are not read yet/)
    await expect(compile(join(newFolder(), 'none'), { out: out() })).rejects.toMatchObject({ code: 'FILE_MISSING' })
    await expect(compile(newFolder(), { out: out() })).rejects.toThrow(/config\.json/)
    await expect(compile(undefined as unknown as string)).rejects.toMatchObject({ code: 'OPTION_INVALID' })
  })
})
