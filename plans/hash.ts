import { createHash } from 'node:crypto'

/** Content hash of a plan's bytes: SHA-256 (FIPS 180-4), lower-case hexadecimal. */
export const planHash = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')
