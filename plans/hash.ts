import { createHash } from 'node:crypto'
import { z } from 'zod'

/** SHA-256 (FIPS 180-4) of bytes, or of a text as UTF-8: lower-case hexadecimal. */
export const digestOf = (content: Uint8Array | string): string => createHash('sha256').update(content).digest('hex')

/** Such a digest, in a file. */
export const sha256 = z.string('a string').regex(/^[0-9a-f]{64}$/, 'a SHA-256 in lower-case hexadecimal')
