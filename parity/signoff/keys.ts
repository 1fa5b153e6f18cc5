/** Key files of owners: `name.key` (PKCS #8, for its owner's eyes) and `name.pub` (SubjectPublicKeyInfo), PEM. */
import { generateKeyPairSync, type KeyObject } from 'node:crypto'
import { mkdir, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { fail } from '../../errors.ts'
import { keyId, privateKey, publicKey } from '../../models/dsse.ts'
import { readBytes } from '../../models/files.ts'

/** Longer than any key. */
const MAX_KEY_BYTES = 16 * 1024

export interface KeyFiles {
  readonly privatePath: string
  readonly publicPath: string
  readonly keyId: string
}

/** Makes a new Ed25519 pair. Throws OUTPUT_UNWRITABLE; a key that is there already is never overwritten. */
export async function generateKeys(path: string): Promise<KeyFiles> {
  const pair = generateKeyPairSync('ed25519')
  const write = async (file: string, pem: string | Buffer, mode: number) => {
    await writeFile(file, pem, { mode, flag: 'wx' }).catch((cause: Error) => {
      throw fail('OUTPUT_UNWRITABLE', { path: file, reason: cause.message }, cause)
    })
    return file
  }
  await mkdir(dirname(path), { recursive: true }).catch((cause: Error) => {
    throw fail('OUTPUT_UNWRITABLE', { path, reason: cause.message }, cause)
  })
  const privatePath = await write(`${path}.key`, pair.privateKey.export({ type: 'pkcs8', format: 'pem' }), 0o600)
  const publicPath = await write(`${path}.pub`, pair.publicKey.export({ type: 'spki', format: 'pem' }), 0o644)
  return { privatePath, publicPath, keyId: keyId(pair.publicKey) }
}

const readKey = async (path: string, expected: string, parse: (pem: string) => KeyObject | undefined) => {
  const key = parse((await readBytes(path, expected, MAX_KEY_BYTES)).toString('utf8'))
  if (key) return key
  throw fail('OPTION_INVALID', { option: path, expected, got: 'something else' })
}

/** Throws FILE_MISSING, FILE_UNREADABLE, OPTION_INVALID. */
export const readPrivateKey = (path: string): Promise<KeyObject> =>
  readKey(path, 'an Ed25519 private key as PEM (PKCS #8)', privateKey)
export const readPublicKey = (path: string): Promise<KeyObject> =>
  readKey(path, 'an Ed25519 public key as PEM', publicKey)
