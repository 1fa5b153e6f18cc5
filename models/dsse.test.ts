import { createPublicKey, generateKeyPairSync, sign } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { IngotError } from '../errors.ts'
import { keyId, parseEnvelope, preAuthentication, privateKey, publicKey, seal, signers } from './dsse.ts'

const [ours, theirs] = [generateKeyPairSync('ed25519'), generateKeyPairSync('ed25519')]
const code = (code: string) => expect.objectContaining({ code })
const envelope = (change: object = {}) =>
  JSON.stringify({ ...JSON.parse(seal('text/x', Buffer.from('hello'), [ours.privateKey])), ...change })

describe('the encoding that is signed', () => {
  test("is the specification's", () => {
    const got = preAuthentication('http://example.com/HelloWorld', Buffer.from('hello world'))
    expect(got.toString()).toBe('DSSEv1 29 http://example.com/HelloWorld 11 hello world')
  })

  test('counts bytes, and differs wherever type or payload do', () => {
    expect(preAuthentication('ä', Buffer.from('ö')).toString()).toBe('DSSEv1 2 ä 2 ö')
    const pair = fc.tuple(fc.string({ unit: 'binary' }), fc.uint8Array())
    fc.assert(
      fc.property(pair, pair, ([a, x], [b, y]) => {
        const same = a === b && Buffer.compare(x, y) === 0
        expect(Buffer.compare(preAuthentication(a, x), preAuthentication(b, y)) === 0).toBe(same)
      }),
    )
  })
})

describe('an envelope', () => {
  test('says who of the trusted signed, however many did', () => {
    const keys = [ours.privateKey, theirs.privateKey]
    const both = parseEnvelope(seal('text/x', Buffer.from('hello'), keys), 'x')
    expect(both.payload.toString()).toBe('hello')
    expect(both.signatures.map((signature) => signature.keyId)).toEqual(keys.map(keyId))
    expect(signers(both, [theirs.publicKey, ours.publicKey])).toEqual([theirs.publicKey, ours.publicKey])
    const one = parseEnvelope(envelope(), 'x')
    expect(signers(one, [theirs.publicKey, ours.publicKey])).toEqual([ours.publicKey])
    expect(signers(one, [theirs.publicKey])).toEqual([])
  })

  test('needs no hint of the key, believes none, and ignores fields that the specification does not name', () => {
    const [{ sig }] = JSON.parse(envelope()).signatures
    for (const signature of [{ sig }, { keyid: keyId(theirs.publicKey), sig }, { sig, cert: 'x' }])
      expect(
        signers(parseEnvelope(envelope({ signatures: [signature], more: 1 }), 'x'), [ours.publicKey]),
      ).toHaveLength(1)
  })

  test('is read in both alphabets of base64, and in no second spelling of one', () => {
    const payload = Buffer.from([0xfb, 0xff, 0xfe, 0xff])
    const signed = JSON.parse(seal('t', payload, [ours.privateKey]))
    for (const text of ['+//+/w==', '-__-_w==', '-__-_w'])
      expect(signers(parseEnvelope(JSON.stringify({ ...signed, payload: text }), 'x'), [ours.publicKey])).toHaveLength(
        1,
      )
    for (const text of ['+//+/x==', '+//+/w=', ' +//+/w==', '+__+_w==', '+//+/w==\n', 4])
      expect(() => parseEnvelope(JSON.stringify({ ...signed, payload: text }), 'x')).toThrow(code('ENVELOPE_INVALID'))
  })

  test('whose type or payload changed has no signer', () => {
    for (const change of [{ payloadType: 'text/y' }, { payload: Buffer.from('hellp').toString('base64') }])
      expect(signers(parseEnvelope(envelope(change), 'x'), [ours.publicKey])).toEqual([])
    // A signature of the bare payload is none of the type and the payload.
    const sig = sign(null, Buffer.from('hello'), ours.privateKey).toString('base64')
    expect(signers(parseEnvelope(envelope({ signatures: [{ sig }] }), 'x'), [ours.publicKey])).toEqual([])
  })

  test.each([
    ['no list of signatures', { signatures: {} }, 'signatures: expected a list'],
    ['no signature', { signatures: [] }, 'at least one signature'],
    ['too many', { signatures: Array.from({ length: 65 }, () => ({ sig: '' })) }, 'at most 64'],
    ['a signature without bytes', { signatures: [{}] }, 'signatures.0.sig: expected base64'],
    [
      'what is nested too deeply',
      { payload: JSON.parse('['.repeat(1000) + ']'.repeat(1000)) },
      'payload: expected base64',
    ],
    ['no type', { payloadType: undefined }, 'payloadType: expected a string, got nothing'],
  ])('with %s is refused', (_, change, message) => {
    expect(() => parseEnvelope(envelope(change), 'x')).toThrow(message)
  })

  test('of any JSON is read or refused with a typed error', () => {
    const key = fc.constantFrom('payload', 'payloadType', 'signatures', 'sig', 'keyid', '__proto__')
    const { value } = fc.letrec((tie) => ({
      value: fc.oneof(fc.jsonValue(), fc.dictionary(key, tie('value')), fc.array(tie('value'), { maxLength: 2 })),
    }))
    fc.assert(
      fc.property(value, (json) => {
        try {
          signers(parseEnvelope(JSON.stringify(json) ?? '', 'x'), [ours.publicKey])
        } catch (error) {
          expect(error).toBeInstanceOf(IngotError)
        }
      }),
      { numRuns: 500 },
    )
  })
})

test('a file of a key is a key or none, whatever its bytes', () => {
  const forms = { spki: ours.publicKey, pkcs8: ours.privateKey }
  const pems = Object.entries(forms).map(([type, key]) => key.export({ type, format: 'pem' } as never).toString())
  const edits = fc.array(fc.tuple(fc.nat(120), fc.nat(3), fc.string({ maxLength: 3 })), { maxLength: 3 })
  const ids = new Map<string, string>()
  fc.assert(
    fc.property(fc.oneof(fc.constantFrom(...pems), fc.string()), edits, (pem, each) => {
      const text = each.reduce((t, [at, cut, put]) => t.slice(0, at) + put + t.slice(at + cut), pem)
      for (const key of [publicKey(text), privateKey(text)]) {
        if (!key) continue
        expect(key.asymmetricKeyType).toBe('ed25519')
        const own = (key.type === 'private' ? createPublicKey(key) : key).export({ format: 'jwk' }).x as string
        // One key has one id, and one id is of one key.
        expect(ids.get(keyId(key)) ?? own).toBe(own)
        ids.set(keyId(key), own)
      }
    }),
    { numRuns: 500 },
  )
  expect(new Set(ids.values()).size).toBe(ids.size)
})

test('keys are Ed25519, each in its own form', () => {
  const spki = ours.publicKey.export({ type: 'spki', format: 'pem' }).toString()
  const pkcs8 = ours.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString()
  expect(keyId(publicKey(spki)!)).toBe(keyId(privateKey(pkcs8)!))
  expect(keyId(ours.publicKey)).toMatch(/^[0-9a-f]{64}$/)
  expect(publicKey(pkcs8)).toBeUndefined()
  expect(privateKey(spki)).toBeUndefined()
  const rsa = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ type: 'spki', format: 'pem' })
  expect(publicKey(rsa.toString())).toBeUndefined()
  expect(publicKey('-----BEGIN PUBLIC KEY-----')).toBeUndefined()
})
