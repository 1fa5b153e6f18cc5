/**
 * DSSE 1.0.2 envelopes (secure-systems-lab/dsse: protocol.md, envelope.md) signed with Ed25519 (RFC 8032). What is signed
 * is the type and the bytes of a payload, so that nobody has to agree on one form of JSON.
 */
import { createPrivateKey, createPublicKey, type KeyObject, sign, verify } from 'node:crypto'
import { z } from 'zod'
import { fail, wrongField } from '../errors.ts'
import { digestOf } from '../plans/hash.ts'
import { parseJson } from './files.ts'

export interface Signature {
  /** A hint of who signed, which nothing protects; empty: none. */
  readonly keyId: string
  readonly bytes: Uint8Array
}

export interface Envelope {
  readonly payloadType: string
  readonly payload: Buffer
  readonly signatures: readonly Signature[]
}

/** RFC 4648 in either alphabet, padded or not, but only the one text that encoders give for some bytes. */
const base64 = z
  .string('base64')
  .refine((text) => ['base64', 'base64url'].some((form) => canonical(text, form as BufferEncoding)), 'base64')
  .transform((text) => Buffer.from(text, 'base64'))

function canonical(text: string, form: BufferEncoding): boolean {
  const encoded = Buffer.from(text, form).toString(form)
  return text === encoded || (form === 'base64url' && text === encoded.padEnd(Math.ceil(encoded.length / 4) * 4, '='))
}

/** Fields that are not named here are ignored, as the specification asks. */
const envelopeSchema = z.object(
  {
    payloadType: z.string('a string'),
    payload: base64,
    signatures: z
      .array(z.object({ keyid: z.string('a string').optional(), sig: base64 }, 'an object'), 'a list')
      .min(1, 'at least one signature')
      .max(64, 'at most 64 signatures'),
  },
  'an object',
)

/** Pre-authentication encoding: the bytes that are signed. */
export function preAuthentication(payloadType: string, payload: Uint8Array): Buffer {
  const type = Buffer.from(payloadType)
  return Buffer.concat([Buffer.from(`DSSEv1 ${type.length} ${payloadType} ${payload.length} `), payload])
}

/** Name of a key: SHA-256 of its SubjectPublicKeyInfo (RFC 8410), lower-case hexadecimal. */
export const keyId = (key: KeyObject): string =>
  digestOf((key.type === 'private' ? createPublicKey(key) : key).export({ type: 'spki', format: 'der' }))

const isEd25519 = (key: KeyObject) => key.asymmetricKeyType === 'ed25519'

/** An Ed25519 public key from PEM (SubjectPublicKeyInfo); undefined: it is none. A private key is none. */
export function publicKey(pem: string): KeyObject | undefined {
  if (!pem.includes('-----BEGIN PUBLIC KEY-----')) return undefined
  try {
    const key = createPublicKey(pem)
    return isEd25519(key) ? key : undefined
  } catch {
    return undefined
  }
}

/** An Ed25519 private key from PEM (PKCS #8); undefined: it is none. */
export function privateKey(pem: string): KeyObject | undefined {
  try {
    const key = createPrivateKey(pem)
    return isEd25519(key) ? key : undefined
  } catch {
    return undefined
  }
}

/** The text of an envelope that every one of the private keys signed. */
export function seal(payloadType: string, payload: Uint8Array, keys: readonly KeyObject[]): string {
  const signed = preAuthentication(payloadType, payload)
  const signatures = keys.map((key) => ({ keyid: keyId(key), sig: sign(null, signed, key).toString('base64') }))
  return `${JSON.stringify({ payload: Buffer.from(payload).toString('base64'), payloadType, signatures }, null, 2)}\n`
}

/** Parses an envelope; nothing in it may be trusted before `signers` has named who signed. Throws ENVELOPE_INVALID. */
export function parseEnvelope(text: string, path: string): Envelope {
  const json = parseJson(text, path)
  const result = envelopeSchema.safeParse(json)
  if (!result.success) throw fail('ENVELOPE_INVALID', { path, ...wrongField(result.error, json, 'the envelope') })
  const { payloadType, payload, signatures } = result.data
  return { payloadType, payload, signatures: signatures.map(({ keyid = '', sig }) => ({ keyId: keyid, bytes: sig })) }
}

/** Those of `keys` (public) that signed. Every key is tried on every signature: hints are not to be trusted. */
export function signers({ payloadType, payload, signatures }: Envelope, keys: readonly KeyObject[]): KeyObject[] {
  const signed = preAuthentication(payloadType, payload)
  return keys.filter((key) => signatures.some(({ bytes }) => verify(null, signed, key, bytes)))
}
