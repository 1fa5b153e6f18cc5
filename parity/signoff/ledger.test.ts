import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { append, GENESIS, headOf, readLedger } from './ledger.ts'

const folder = mkdtempSync(join(tmpdir(), 'ingot-ledger-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
let files = 0
const newPath = () => join(folder, `${files++}.jsonl`)
const start = (phase: string) => ({ kind: 'start', phase, record: 'a'.repeat(64) }) as const

async function ledger(phases: readonly string[]): Promise<string> {
  const path = newPath()
  for (const phase of phases) await append(path, () => start(phase), 0)
  return path
}

const broken = (path: string, line?: number, reason: RegExp = /./) =>
  expect(readLedger(path)).rejects.toMatchObject({
    code: 'SIGNOFF_LEDGER_BROKEN',
    details: { ...(line && { line }), reason: expect.stringMatching(reason) },
  })

describe('a ledger', () => {
  test('chains each entry to the one before', async () => {
    const path = await ledger(['a', 'b', 'c'])
    const entries = await readLedger(path)
    expect(entries.map(({ index }) => index)).toEqual([0, 1, 2])
    expect(entries.map(({ previous }) => previous)).toEqual([GENESIS, entries[0]!.hash, entries[1]!.hash])
    expect(headOf(entries)).toBe(entries[2]!.hash)
    expect(entries[0]).toMatchObject({ time: '1970-01-01T00:00:00.000Z', kind: 'start', phase: 'a' })
    expect(await readLedger(newPath())).toEqual([])
  })

  test('shows a line that was dropped, moved, doubled or written anew', async () => {
    const path = await ledger(['a', 'b', 'c'])
    const [a, b, c] = readFileSync(path, 'utf8').trimEnd().split('\n') as [string, string, string]
    const write = (...lines: string[]) => writeFileSync(path, `${lines.join('\n')}\n`)
    write(a, c)
    await broken(path, 2, /entry 2/)
    write(b, a, c)
    await broken(path, 1, /entry 1/)
    write(a, b, b, c)
    await broken(path, 3, /entry 1/)
    const other = readFileSync(await ledger(['a', 'x']), 'utf8')
      .trimEnd()
      .split('\n')[1]!
    write(a, other, c)
    await broken(path, 3, /does not follow/)
    write(a, b.replace('"phase":"b"', '"phase":"x"'), c)
    await broken(path, 2, /its hash/)
    write(a, b.replace('{', '{ '), c)
    await broken(path, 2, /not written as/)
    writeFileSync(path, `${a}\n${b.slice(0, -5)}`)
    await broken(path, 2, /cut off/)
    write(a, '', b)
    await broken(path, 2)
    write(a, '{"kind":"end"}')
    await broken(path, 2, /kind/)
  })

  test('shows any byte that changed', async () => {
    const path = await ledger(['a', 'b', 'c'])
    const bytes = readFileSync(path)
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 7 }), async (at, bit) => {
        const changed = Buffer.from(bytes)
        changed[at]! ^= 1 << bit
        writeFileSync(path, changed)
        await broken(path)
      }),
      { numRuns: 300 },
    )
  })

  test('is read or refused by name, whatever its lines say and however they are chained', async () => {
    const path = newPath()
    const odd = fc.oneof(
      fc.jsonValue(),
      fc.constantFrom('a'.repeat(64), '__proto__', '2026-02-30T00:00:00Z', -1, 1e300),
    )
    const field = fc.constantFrom(
      'kind',
      'phase',
      'record',
      'role',
      'envelope',
      'packages',
      'index',
      'time',
      '__proto__',
    )
    const change = fc.dictionary(field, odd, { maxKeys: 2 })
    const kinds = [start('a'), { ...start('a'), kind: 'sign', role: 'models', envelope: '' }, { kind: 'rollback' }]
    const lineOf = (index: number, event: object, previous: string) => {
      const chained = { index, time: '2026-01-01T00:00:00Z', ...event, previous }
      const hash = createHash('sha256').update(JSON.stringify(chained)).digest('hex')
      return { line: JSON.stringify({ ...chained, hash }), hash }
    }
    let read = 0
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(fc.constantFrom(...kinds), change), { maxLength: 3 }), async (events) => {
        let previous = GENESIS
        const lines = events.map(([event, more], index) => {
          const { line, hash } = lineOf(index, { ...event, ...more }, previous)
          previous = hash
          return `${line}\n`
        })
        writeFileSync(path, lines.join(''))
        try {
          expect(await readLedger(path)).toHaveLength(events.length)
          read++
        } catch (error) {
          expect(error).toMatchObject({ code: 'SIGNOFF_LEDGER_BROKEN' })
        }
      }),
      { numRuns: 300 },
    )
    expect(read).toBeGreaterThan(10)
    for (const text of ['['.repeat(100_000) + ']'.repeat(100_000), '\0', 'null', '{"__proto__":{}}']) {
      writeFileSync(path, `${text}\n`)
      await broken(path, 1)
    }
  })

  test('is not added to once broken, nor by two at once', async () => {
    const path = await ledger(['a', 'b'])
    const sound = readFileSync(path, 'utf8')
    writeFileSync(path, sound.replace('"phase":"a"', '"phase":"x"'))
    await expect(append(path, () => start('c'))).rejects.toMatchObject({ code: 'SIGNOFF_LEDGER_BROKEN' })
    writeFileSync(path, sound)
    const [one, other] = await Promise.allSettled([append(path, () => start('c')), append(path, () => start('d'))])
    const done = [one, other].filter(({ status }) => status === 'fulfilled').length
    expect(done).toBeGreaterThan(0)
    for (const each of [one, other])
      if (each.status === 'rejected') expect(each.reason).toMatchObject({ code: 'SIGNOFF_LEDGER_BUSY' })
    expect(await readLedger(path)).toHaveLength(2 + done)
  })

  test('is as it was when its event fails', async () => {
    const path = await ledger(['a'])
    const before = readFileSync(path, 'utf8')
    const failing = append(path, () => {
      throw new Error('no')
    })
    await expect(failing).rejects.toThrow('no')
    expect(readFileSync(path, 'utf8')).toBe(before)
    await append(path, () => start('b'))
  })
})
