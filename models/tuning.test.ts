/** Tuning files: what is read, what is refused and why, and which one counts where. */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { IngotError } from '../errors.ts'
import { newFolder } from './example.test-checkpoint.ts'
import {
  findTuning,
  matchTuning,
  parseTuning,
  readTuning,
  type TuningFile,
  tuningFileName,
  writeTuning,
} from './tuning.ts'

const here = { backend: 'cuda', device: 'A GPU', capability: '9.0', driver: 'CUDA 13.0', kernels: 'ab12' }
const time = { low: 1, median: 2, high: 3 }
const entryOf = (deterministic: boolean, rows = 8) => ({
  ...{ opcode: 'linear', dtype: 'bf16', shape: 'n 64, k 32', rows, deterministic, instructions: 4 },
  ...{ rule: 'stream', chosen: 'tile', step: { stream: time, tile: time } },
})
const measured = (entries: TuningFile['entries'], identity = here) => ({
  ...{ ingot: '0.1.0', measured: '2026-01-31T12:00:00Z', ...identity, contextTokens: 512, entries },
})
const fileOf = (change: (file: Record<string, unknown> & { entries: Record<string, unknown>[] }) => void) => {
  const file = structuredClone({ format: 1, ...measured([entryOf(false)]) })
  change(file as never)
  return JSON.stringify(file)
}

describe('a tuning file', () => {
  it('comes back as it was written, under a name that its identity decides', async () => {
    const folder = newFolder()
    const { path } = await writeTuning(folder, measured([entryOf(false), entryOf(true)]))
    expect(path).toBe(join(folder, 'tuning', tuningFileName(here)))
    expect(await readTuning(folder)).toEqual([
      { path, tuning: { format: 1, ...measured([entryOf(false), entryOf(true)]) } },
    ])
    expect(tuningFileName({ ...here, driver: 'CUDA 13.1' })).not.toBe(tuningFileName(here))
    expect(readdirSync(folder)).toEqual(['tuning']) // nothing temporary is left
  })

  it('replaces the entries of the modes that were measured, and keeps the others', async () => {
    const folder = newFolder()
    await writeTuning(folder, measured([entryOf(false, 8), entryOf(true, 8)]))
    const { tuning } = await writeTuning(folder, measured([entryOf(false, 16)]))
    expect(tuning.entries).toEqual([entryOf(true, 8), entryOf(false, 16)])
  })

  it.each<[string, string, (file: Record<string, unknown> & { entries: Record<string, unknown>[] }) => void]>([
    ['of a newer format', 'format', (f) => Object.assign(f, { format: 2 })],
    ['without a device', 'device', (f) => void delete f.device],
    ['with a field that nobody knows', 'the file', (f) => Object.assign(f, { more: 1 })],
    ['with rows that are no power of two', 'entries.0.rows', (f) => Object.assign(f.entries[0]!, { rows: 12 })],
    ['with rows of which there are too many', 'entries.0.rows', (f) => Object.assign(f.entries[0]!, { rows: 2 ** 31 })],
    ['that chose what it did not measure', 'entries.0', (f) => Object.assign(f.entries[0]!, { chosen: 'blas' })],
    ['that chose a name of every object', 'entries.0', (f) => Object.assign(f.entries[0]!, { chosen: 'constructor' })],
    ['with a kernel of no name', 'entries.0.chosen', (f) => Object.assign(f.entries[0]!, { chosen: '../x' })],
    [
      'with a negative time',
      'entries.0.step.tile.low',
      (f) => Object.assign(f.entries[0]!, { step: { stream: time, tile: { ...time, low: -1 } } }),
    ],
    [
      'with two answers to one question',
      'entries.1',
      (f) => void f.entries.push({ ...f.entries[0]!, chosen: 'stream' }),
    ],
    ['with a terminal escape', 'device', (f) => Object.assign(f, { device: '\x1b[2J' })],
    ['with a list as entries of entries', 'entries.0', (f) => Object.assign(f, { entries: [[]] })],
  ])('%s is refused by name', (_, thing, change) => {
    const refused = expect.objectContaining({
      code: 'TUNING_INVALID',
      details: expect.objectContaining({ path: 'x.json', thing }),
    })
    expect(() => parseTuning(fileOf(change), 'x.json')).toThrow(refused)
  })

  it('of any bytes is read, or refused by a typed error', () => {
    const sound = fileOf(() => {})
    const typed = (text: string) => {
      try {
        expect(parseTuning(text, 'x').format).toBe(1)
      } catch (error) {
        expect(error).toBeInstanceOf(IngotError)
        expect((error as IngotError).code).toMatch(/^(JSON|TUNING)_INVALID$/)
      }
    }
    fc.assert(fc.property(fc.string(), typed))
    fc.assert(fc.property(fc.json(), typed))
    // A sound file with some of it cut, doubled or replaced.
    const at = fc.nat(sound.length)
    fc.assert(
      fc.property(at, at, fc.string({ maxLength: 8 }), (from, to, text) =>
        typed(sound.slice(0, from) + text + sound.slice(to)),
      ),
    )
    // Any value in any place.
    const places = (value: unknown, path: string[] = []): string[][] =>
      typeof value === 'object' && value !== null
        ? [path, ...Object.entries(value).flatMap(([key, inner]) => places(inner, [...path, key]))]
        : [path]
    const paths = places(JSON.parse(sound)).filter((path) => path.length > 0)
    fc.assert(
      fc.property(fc.constantFrom(...paths), fc.jsonValue(), (path, value) => {
        const file = JSON.parse(sound)
        const parent = path.slice(0, -1).reduce((inner, key) => inner[key], file)
        parent[path.at(-1)!] = value
        typed(JSON.stringify(file))
      }),
      { numRuns: 300 },
    )
  })
})

describe('of the files of a package', () => {
  const folderWith = async (...identities: (typeof here)[]) => {
    const folder = newFolder()
    for (const identity of identities) await writeTuning(folder, measured([entryOf(false)], identity))
    return folder
  }

  it('the one that was measured here counts, in the mode that it was measured in', async () => {
    const found = await readTuning(await folderWith({ ...here, device: 'Another' }, here))
    expect(matchTuning(found, here, false)).toMatchObject({ file: tuningFileName(here), entries: [entryOf(false)] })
    const other = matchTuning(found, here, true)
    expect(other).toMatchObject({ entries: [], reason: expect.stringContaining('no entry of the deterministic mode') })
    expect(other.file).toBeUndefined()
  })

  it.each(['backend', 'device', 'capability', 'driver', 'kernels'] as const)('another %s does not', async (field) => {
    const found = await readTuning(await folderWith({ ...here, [field]: 'else' }))
    const { file, entries, reason } = matchTuning(found, here, false)
    expect({ file, entries }).toEqual({ file: undefined, entries: [] })
    expect(reason).toContain(`is of ${field} else, this is ${here[field]}`)
  })

  it('one that cannot be read is warned of, and hides no other', async () => {
    const folder = await folderWith(here)
    writeFileSync(join(folder, 'tuning', 'a.json'), '{')
    writeFileSync(join(folder, 'tuning', 'b.json'), 'x'.repeat(2 ** 20 + 1))
    const { file, warnings } = matchTuning(await readTuning(folder), here, false)
    expect(file).toBe(tuningFileName(here))
    expect(warnings.map(({ code }) => code)).toEqual(['JSON_INVALID', 'FILE_UNREADABLE'])
  })

  it('none counts where it is not wanted, or where a certificate is required and bits are not fixed', async () => {
    const folder = newFolder()
    await writeTuning(folder, measured([entryOf(false), entryOf(true)]))
    const use = { deterministic: false, wanted: true, certified: false }
    const entries = async (change: Partial<typeof use>) =>
      (await findTuning(folder, here, { ...use, ...change })).entries
    expect(await entries({})).toEqual([entryOf(false)])
    expect(await entries({ wanted: false })).toEqual([])
    expect(await entries({ certified: true })).toEqual([])
    expect(await entries({ certified: true, deterministic: true })).toEqual([entryOf(true)])
    expect((await findTuning(folder, here, { ...use, certified: true })).reason).toContain('certificate')
    expect((await findTuning(folder, undefined, use)).reason).toContain('nothing to choose from')
  })

  it('none, or no sound one, says so', async () => {
    expect(matchTuning(await readTuning(newFolder()), here, false).reason).toContain('ingot tune')
    const folder = newFolder()
    mkdirSync(join(folder, 'tuning'))
    writeFileSync(
      join(folder, 'tuning', 'a.json'),
      fileOf((f) => void delete f.device),
    )
    const { reason, warnings } = matchTuning(await readTuning(folder), here, false)
    expect(reason).toContain('device')
    expect(warnings).toMatchObject([{ code: 'TUNING_INVALID' }])
    expect(readFileSync(join(folder, 'tuning', 'a.json'), 'utf8')).toContain('entries') // nothing is deleted
  })
})
