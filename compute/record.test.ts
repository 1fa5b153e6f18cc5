import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { createStep, sampleFlags } from '../abi/step.ts'
import { IngotError } from '../errors.ts'
import { type BatchInput, packStep } from '../parity/batch.ts'
import { captureStep, parseRecord, recordText, type StepRecord } from './record.ts'

const limits = { tokens: 64, rows: 64, sequences: 8, blocksPerSequence: 4, history: 512, biases: 64, copies: 8 }
const f32 = fc.float({ noNaN: true, noDefaultInfinity: true }).map((value) => value + 0)
const id = fc.nat(1000)

const sequence = (slot: number) =>
  fc
    .record({ position: fc.nat(60), tokens: fc.array(id, { minLength: 1, maxLength: 6 }) })
    .chain(({ position, tokens }) => {
      const blocks = Array.from({ length: Math.ceil((position + tokens.length) / 32) }, (_, i) => slot * 4 + i + 1)
      return fc.subarray([...tokens.keys()]).map((rows) => ({ slot, blocks, position, tokens, rows }))
    })
const sampling = fc.record({
  flags: fc.nat(7),
  seed_low: fc.nat(),
  seed_high: fc.nat(),
  position: id,
  temperature: f32,
  top_k: id,
  top_p: f32,
  min_p: f32,
  repetition_penalty: f32,
  presence_penalty: f32,
  frequency_penalty: f32,
  history_prompt: fc.nat(3),
  top_logprobs: fc.nat(20),
  history: fc.array(id, { maxLength: 5 }),
  bias: fc.array(fc.tuple(id, f32), { maxLength: 3 }),
})
const batches = fc
  .tuple(fc.tuple(sequence(1), sequence(2), sequence(3)), fc.array(sampling, { minLength: 18, maxLength: 18 }))
  .map(([sequences, rows]): BatchInput => ({ sequences, sampling: (row) => rows[row]!, copies: [[1, 5]], resets: [2] }))

const sound: StepRecord = {
  format: 'ingot-step',
  version: 1,
  plan: 'a'.repeat(64),
  weights: 'b'.repeat(64),
  model: 'llama',
  backend: 'cpu',
  isa: 'avx2',
  description: 'a test',
  created: '2026-01-01T00:00:00.000Z',
  index: 3,
  ...(({ order: _, ...inputs }) => inputs)(
    captureStep(
      packStep(createStep(limits), {
        sequences: [
          { slot: 1, blocks: [1], position: 2, tokens: [7, 8], rows: [1] },
          { slot: 2, blocks: [2], position: 0, tokens: [9], rows: [0] },
        ],
        sampling: () => ({ temperature: 0.5, history: [1, 2], bias: [[3, -1.5]] }),
      }),
      32,
      (s) => (s ? [] : [5, 6]),
    ),
  ),
  result: {
    rows: [
      { token: 4, sha256: 'c'.repeat(64) },
      { token: -1, sha256: 'd'.repeat(64) },
    ],
    units: [{ state: 0, unit: 1, sha256: 'e'.repeat(64) }],
  },
}
const parse = (value: unknown) => parseRecord(JSON.stringify(value), 'a record')
const refusal = (text: string): string => {
  try {
    parseRecord(text, 'a record')
    return 'none'
  } catch (error) {
    expect(error).toBeInstanceOf(IngotError)
    return (error as IngotError).code
  }
}

describe('a record', () => {
  it('holds what a step buffer holds', () => {
    fc.assert(
      fc.property(batches, (batch) => {
        const captured = captureStep(packStep(createStep(limits), batch), 32, () => [])
        expect(captured.sequences.map(({ history: _, ...rest }) => rest)).toEqual(batch.sequences)
        expect(captured.copies).toEqual(batch.copies)
        expect(captured.resets).toEqual(batch.resets)
        for (const [row, got] of captured.sampling.entries()) expect(got).toEqual(batch.sampling!(row))
        const again = packStep(createStep(limits), { ...captured, sampling: (row) => captured.sampling[row]! })
        expect(again.buffer).toEqual(packStep(createStep(limits), batch).buffer)
      }),
      { numRuns: 50 },
    )
  })

  it('is read back as it was written', () => {
    expect(parseRecord(recordText(sound), 'a record')).toEqual(sound)
    const { result: _, ...failed } = { ...sound, error: 'STEP_FAILED' }
    expect(parse(failed)).toEqual(failed)
    expect(sound.sampling[0]!.flags).toBe(Object.values(sampleFlags).reduce<number>((all, flag) => all | flag, 0))
  })

  it.each([
    ['no JSON', '{', 'RECORD_INVALID'],
    ['another document', '[]', 'RECORD_INVALID'],
    ['null', 'null', 'RECORD_INVALID'],
    ['what is nested too deeply', '['.repeat(100_000) + ']'.repeat(100_000), 'RECORD_INVALID'],
    ['another format', JSON.stringify({ ...sound, format: 'x' }), 'RECORD_INVALID'],
    ['a newer version', JSON.stringify({ ...sound, version: 2 }), 'RECORD_NEWER'],
    ['an unknown field', JSON.stringify({ ...sound, extra: 1 }), 'RECORD_INVALID'],
    ['a digest in capitals', JSON.stringify({ ...sound, plan: 'A'.repeat(64) }), 'RECORD_INVALID'],
    ['no sequence', JSON.stringify({ ...sound, sequences: [], sampling: [] }), 'RECORD_INVALID'],
    ['a short history', JSON.stringify(sound).replace('"history":[5,6]', '"history":[5]'), 'RECORD_INVALID'],
    ['an unknown history', JSON.stringify(sound).replace('"history":[5,6]', '"history":[5,-1]'), 'RECORD_INVALID'],
    ['a row beyond the tokens', JSON.stringify(sound).replace('"rows":[1]', '"rows":[2]'), 'RECORD_INVALID'],
    ['fewer rows of sampling', JSON.stringify({ ...sound, sampling: [sound.sampling[0]] }), 'RECORD_INVALID'],
    [
      'a temperature of null',
      JSON.stringify(sound).replace('"temperature":0.5', '"temperature":null'),
      'RECORD_INVALID',
    ],
    ['neither result nor error', JSON.stringify({ ...sound, result: undefined }), 'RECORD_INVALID'],
    ['both', JSON.stringify({ ...sound, error: 'x' }), 'RECORD_INVALID'],
  ])('is refused with %s', (_, text, code) => expect(refusal(text)).toBe(code))

  it('is refused by name, or sound, whatever the bytes', () => {
    const text = recordText(sound)
    const edits = fc.array(fc.tuple(fc.nat(text.length), fc.nat(4), fc.string({ maxLength: 4 })), {
      minLength: 1,
      maxLength: 4,
    })
    fc.assert(
      fc.property(edits, (each) => {
        const edited = each.reduce((t, [at, cut, put]) => t.slice(0, at) + put + t.slice(at + cut), text)
        expect(['none', 'RECORD_INVALID', 'RECORD_NEWER']).toContain(refusal(edited))
      }),
      { numRuns: 2000 },
    )
    fc.assert(
      fc.property(fc.json(), (text) => {
        expect(refusal(text)).toBe('RECORD_INVALID')
      }),
      { numRuns: 500 },
    )
  })
})
