import fc from 'fast-check'
import { expect, test } from 'vitest'
import { packVocabulary, Vocabulary } from './vocabulary.ts'

const text = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 8 })

test('gives back every token and the rest of the file, whatever the ids', () => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.tuple(text, fc.nat(500)), { selector: ([, id]) => id, minLength: 1 }), (pairs) => {
      const tokens = new Map(pairs)
      const vocab = Object.fromEntries(tokens)
      const added = [{ id: 501, content: '<end>', special: true }]
      const decoder = { type: 'ByteLevel' }
      const model = { type: 'BPE', vocab, merges: [['a', 'b']] }
      const packed = new Vocabulary(packVocabulary({ added_tokens: added, decoder, model })!)
      expect(packed.size).toBe(502)
      expect(packed.rest).toEqual({ added_tokens: added, decoder, model: { type: 'BPE' } })
      const known = new Map(Object.entries(vocab).map(([token, id]) => [id, token]))
      for (let id = 0; id < 500; id++) expect(packed.tokenOf(id)).toBe(known.get(id))
      for (const [id, token] of known) expect(packed.tokenOf(packed.idOf(token)!)).toBe(known.get(id))
      expect(packed.idOf('<end>')).toBe(501)
      expect(packed.tokenOf(502)).toBeUndefined()
      expect(packed.idOf('not a token')).toBeUndefined()
    }),
  )
})

test('reads Unigram vocabularies, and refuses what is none', () => {
  const model = {
    type: 'Unigram',
    vocab: [
      ['<unk>', 0],
      ['\u2581a', -1.5],
    ],
  }
  const packed = new Vocabulary(packVocabulary({ model })!)
  expect([packed.tokenOf(0), packed.tokenOf(1), packed.tokenOf(2)]).toEqual(['<unk>', '\u2581a', undefined])
  for (const value of [null, {}, { model: {} }, { model: { vocab: { a: -1 } } }, { model: { vocab: { a: 2 ** 40 } } }])
    expect(packVocabulary(value)).toBeUndefined()
})

test('refuses bytes that are cut or changed in length', () => {
  const bytes = packVocabulary({ model: { vocab: { a: 0, b: 1 } } })!
  for (let length = 0; length < bytes.length; length++)
    expect(() => new Vocabulary(bytes.subarray(0, length))).toThrow()
  expect(() => new Vocabulary(Uint8Array.from([...bytes, 0]))).toThrow()
  const odd = new Uint8Array(bytes.length + 1)
  odd.set(bytes, 1)
  expect(new Vocabulary(odd.subarray(1)).tokenOf(1)).toBe('b')
})
