import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { IngotError } from '../errors.ts'
import { openCheckpoint } from './checkpoint.ts'
import {
  decoderTensors,
  newFolder,
  readWhole,
  safetensorsBytes,
  tensor,
  tinyConfig,
  values,
  writeCheckpoint,
} from './example.test-checkpoint.ts'
import { isPad, layoutFile, readHeader, repeatedKey, tensorFiles } from './safetensors.ts'

const sample = safetensorsBytes({
  a: tensor('F32', [2, 3], values(6)),
  b: tensor('BF16', [5], values(5)),
  empty: tensor('F16', [0, 7], values(0)),
})

function file(bytes: Uint8Array): string {
  const path = join(newFolder(), 'x.safetensors')
  writeFileSync(path, bytes)
  return path
}

/** A file with this header object or text, and `data` bytes. */
function withHeader(header: unknown, data: number, claimed?: bigint): string {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(claimed ?? BigInt(json.length))
  return file(Buffer.concat([length, json, Buffer.alloc(data)]))
}

const entry = (dtype: string, shape: unknown, data_offsets: unknown) => ({ dtype, shape, data_offsets })

const opened = async (path: string) => tensorFiles((await readHeader(path)).tensors, [path], readWhole)

describe('one file', () => {
  test('gives each tensor its dtype, shape and bytes', async () => {
    const { tensors, data } = await opened(file(sample))
    expect([...tensors.keys()].sort()).toEqual(['a', 'b', 'empty'])
    expect(tensors.get('a')).toMatchObject({ dtype: 'F32', shape: [2, 3], bytes: 24 })
    expect(new Float32Array(data('a').slice().buffer)).toEqual(values(6))
    expect(data('empty')).toHaveLength(0)
    expect(() => data('c')).toThrow(expect.objectContaining({ code: 'TENSOR_MISSING' }))
  })

  test.each([
    ['no header length', file(new Uint8Array(7)), 'FILE_TRUNCATED'],
    ['empty file', file(new Uint8Array()), 'FILE_TRUNCATED'],
    ['header beyond the file', withHeader('{}', 0, 1000n), 'FILE_TRUNCATED'],
    ['header of 2^64 - 1', withHeader('{}', 0, 2n ** 64n - 1n), 'SAFETENSORS_HEADER'],
    ['header above the limit', withHeader('{}', 0, 100_000_001n), 'SAFETENSORS_HEADER'],
    ['not JSON', withHeader('{"a":', 0), 'SAFETENSORS_HEADER'],
    ['not an object', withHeader([], 0), 'SAFETENSORS_HEADER'],
    ['entry not an object', withHeader({ a: 3 }, 0), 'SAFETENSORS_HEADER'],
    ['unknown dtype', withHeader({ a: entry('Q4', [4], [0, 2]) }, 2), 'SAFETENSORS_HEADER'],
    ['inherited dtype', withHeader({ a: entry('toString', [1], [0, 1]) }, 1), 'SAFETENSORS_HEADER'],
    ['negative shape', withHeader({ a: entry('U8', [-1], [0, 1]) }, 1), 'SAFETENSORS_HEADER'],
    ['fractional shape', withHeader({ a: entry('U8', [1.5], [0, 1]) }, 1), 'SAFETENSORS_HEADER'],
    ['shape not a list', withHeader({ a: entry('U8', 1, [0, 1]) }, 1), 'SAFETENSORS_HEADER'],
    ['overflowing shape', withHeader({ a: entry('U8', [2 ** 40, 2 ** 40], [0, 1]) }, 1), 'SAFETENSORS_HEADER'],
    ['reversed range', withHeader({ a: entry('U8', [1], [1, 0]) }, 1), 'SAFETENSORS_HEADER'],
    ['range of one number', withHeader({ a: entry('U8', [1], [0]) }, 1), 'SAFETENSORS_HEADER'],
    ['wrong size', withHeader({ a: entry('F32', [2], [0, 4]) }, 4), 'SAFETENSORS_HEADER'],
    ['beyond the data', withHeader({ a: entry('U8', [9], [0, 9]) }, 4), 'FILE_TRUNCATED'],
    ['overlap', withHeader({ a: entry('U8', [4], [0, 4]), b: entry('U8', [4], [2, 6]) }, 6), 'SAFETENSORS_HEADER'],
    ['hole', withHeader({ a: entry('U8', [2], [0, 2]), b: entry('U8', [2], [4, 6]) }, 6), 'SAFETENSORS_HEADER'],
    ['bytes after the last tensor', withHeader({ a: entry('U8', [2], [0, 2]) }, 9), 'SAFETENSORS_HEADER'],
    [
      'repeated name',
      withHeader(
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        1,
      ),
      'SAFETENSORS_HEADER',
    ],
    ['metadata of numbers', withHeader({ __metadata__: { a: 1 } }, 0), 'SAFETENSORS_HEADER'],
    ['missing file', join(newFolder(), 'none.safetensors'), 'FILE_MISSING'],
    ['a folder', newFolder(), 'FILE_UNREADABLE'],
  ])('%s', async (_, path, code) => {
    await expect(readHeader(path)).rejects.toMatchObject({ code })
    await expect(readHeader(path)).rejects.toThrow(path)
  })

  test('a pipe is refused, not waited for', async () => {
    const path = join(newFolder(), 'pipe.safetensors')
    execFileSync('mkfifo', [path])
    await expect(readHeader(path)).rejects.toMatchObject({ code: 'FILE_UNREADABLE' })
  })

  test('any mutation of the bytes gives a sound header or a typed error', async () => {
    const path = join(newFolder(), 'fuzz.safetensors')
    const edit = fc.tuple(fc.nat(sample.length - 1), fc.nat(255))
    await fc.assert(
      fc.asyncProperty(fc.array(edit, { minLength: 1, maxLength: 8 }), fc.nat(sample.length), async (edits, cut) => {
        const bytes = Buffer.from(sample)
        for (const [at, value] of edits) bytes[at] = value
        writeFileSync(path, bytes.subarray(0, cut % 3 ? bytes.length : cut))
        try {
          const { tensors, data } = await opened(path)
          for (const name of tensors.keys()) data(name)
        } catch (error) {
          expect(error).toBeInstanceOf(IngotError)
        }
      }),
      { numRuns: 400 },
    )
  })

  test('any JSON value in an entry gives a typed error', async () => {
    const path = join(newFolder(), 'fuzz.safetensors')
    await fc.assert(
      fc.asyncProperty(fc.jsonValue(), fc.constantFrom('dtype', 'shape', 'data_offsets', ''), async (value, field) => {
        const good = entry('U8', [3], [0, 3])
        const json = Buffer.from(JSON.stringify({ a: field ? { ...good, [field]: value } : value }))
        const length = Buffer.alloc(8)
        length.writeBigUInt64LE(BigInt(json.length))
        writeFileSync(path, Buffer.concat([length, json, Buffer.alloc(3)]))
        await readHeader(path).catch((error) => expect(error).toBeInstanceOf(IngotError))
      }),
      { numRuns: 300 },
    )
  })
})

test('repeatedKey finds what JSON.parse hides, at any depth', () => {
  expect(repeatedKey('{"a":{"b":1},"c":{"b":1}}')).toBeUndefined()
  expect(repeatedKey('{"a":{"b":1,"c":[{"b":2}], "b" : 2}}')).toBe('b')
  expect(repeatedKey('{"a":"\\"a\\":","b":"{"}')).toBeUndefined()
})

describe('shards', () => {
  const tensors = decoderTensors(tinyConfig, () => 'F16')

  test('hold the same tensors as one file', async () => {
    const [one, three] = await Promise.all(
      [1, 3].map((shards) => openCheckpoint(writeCheckpoint(tinyConfig, tensors, { shards }), readWhole)),
    )
    expect(three!.sources).toHaveLength(4)
    for (const name of Object.keys(tensors)) expect(three!.data(name)).toEqual(one!.data(name))
  })

  const index = (weight_map: unknown, text?: string) => {
    const folder = writeCheckpoint(tinyConfig, tensors, { shards: 2 })
    writeFileSync(join(folder, 'model.safetensors.index.json'), text ?? JSON.stringify({ weight_map }))
    return folder
  }
  const first = 'model-00001.safetensors'
  test.each([
    ['an index that is not JSON', index(0, '{'), 'SAFETENSORS_INDEX'],
    ['no weight_map', index(undefined), 'SAFETENSORS_INDEX'],
    ['a path out of the folder', index({ a: '../x.safetensors' }), 'SAFETENSORS_INDEX'],
    ['a missing shard', index({ a: 'model-9.safetensors' }), 'FILE_MISSING'],
    ['a tensor that its shard lacks', index({ 'model.nothing.weight': first }), 'SAFETENSORS_INDEX'],
    ['a tensor that the map lacks', index({ 'model.embed_tokens.weight': first }), 'SAFETENSORS_INDEX'],
    ['a repeated key', index(0, `{"weight_map":{"a":"${first}","a":"${first}"}}`), 'SAFETENSORS_INDEX'],
    ['neither file nor index', newFolder(), 'FILE_MISSING'],
  ])('%s', async (_, folder, code) => {
    await expect(openCheckpoint(folder, readWhole)).rejects.toMatchObject({ code })
  })
})

describe('a written file', () => {
  test('is valid, and every tensor starts at a multiple of 64', async () => {
    const shape = fc.tuple(fc.nat(9), fc.nat(9))
    const dtype = fc.constantFrom('F32', 'F16', 'I8' as const)
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(dtype, shape), { maxLength: 6 }), async (list) => {
        const tensors = list.map(([dtype, shape], i) => ({ name: `t${i}`, dtype, shape }))
        const layout = layoutFile(tensors, { format: 'ingot' })
        const header = await readHeader(
          file(Buffer.concat([layout.header, Buffer.alloc(layout.bytes - layout.header.length)])),
        )
        for (const { name, dtype, shape } of tensors) {
          expect(header.tensors.get(name)).toMatchObject({ dtype, shape })
          expect(header.tensors.get(name)!.offset % 64).toBe(0)
        }
        const rest = [...header.tensors.keys()].filter((name) => !isPad(name))
        expect(rest).toHaveLength(tensors.length)
        expect(layoutFile(tensors, { format: 'ingot' })).toEqual(layout)
      }),
      { numRuns: 100 },
    )
  })
})
