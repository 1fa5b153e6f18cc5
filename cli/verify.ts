import type { KeyObject } from 'node:crypto'
import { basename } from 'node:path'
import { Command } from 'commander'
import { backendOf } from '../compute/backends.ts'
import { kernelDigest } from '../compute/kernels.ts'
import { IngotError } from '../errors.ts'
import {
  checkCertificate,
  kernelSubject,
  packageSubjects,
  precisionOf,
  readCertificates,
  readClaims,
} from '../models/certificate.ts'
import { type Package, readPackage } from '../models/package.ts'
import { readPublicKey } from '../parity/signoff/keys.ts'
import { finish, log, print, type Shared } from './terminal.ts'

interface Options extends Shared {
  readonly trustedKey: string[]
}

interface CertificateState {
  readonly file: string
  /** valid: for what it names, with the package and kernels that are here. unchecked: no key was given. */
  readonly state: 'valid' | 'refused' | 'unchecked'
  readonly reason: string
  readonly code?: string
  readonly backend?: string
  readonly deviceClass?: string
  readonly issued?: string
  readonly expires?: string
  readonly keyIds?: readonly string[]
}

/** What a certificate says, and whether it counts for this package on the device that it names. */
async function certificateState(
  pkg: Package,
  { path, content }: { readonly path: string; readonly content: string },
  trusted: readonly KeyObject[],
): Promise<CertificateState> {
  const file = basename(path)
  let claims: Partial<CertificateState> = {}
  try {
    const { predicate, keyIds } = readClaims(content, path)
    const { backend, device, issued, expires } = predicate
    claims = { backend, deviceClass: device.class, issued, expires, keyIds }
    if (trusted.length === 0) return { file, state: 'unchecked', reason: 'no --trusted-key', ...claims }
    const kernels = { name: kernelSubject(backend), sha256: await kernelDigest(backendOf(backend)) }
    const subjects = [...packageSubjects(pkg), kernels]
    const { class: deviceClass, deterministic } = device
    const candidate = { subjects, backend, deviceClass, deterministic, precision: precisionOf(pkg.plan) }
    checkCertificate(content, path, trusted, candidate, Date.now())
    return { file, state: 'valid', reason: '', ...claims }
  } catch (error) {
    if (!(error instanceof IngotError)) throw error
    return { file, state: 'refused', reason: error.message, code: error.code, ...claims }
  }
}

const certificateLine = ({ file, state, reason, backend, deviceClass, issued, expires, keyIds }: CertificateState) =>
  [
    `certificate ${file}: ${state}${reason && `: ${reason}`}`,
    ...(backend ? [`  ${backend} on ${deviceClass}, ${issued} to ${expires}, signed by ${keyIds!.join(', ')}`] : []),
  ].join('\n')

export const verifyCommand = new Command('verify')
  .description('check structure, hashes of every byte, the rules of the plan, and certificates')
  .argument('<package>')
  .option('--trusted-key <file...>', 'public keys: exit 1 unless a certificate by one of them is valid', [])
  .action((path: string, options: Options) =>
    finish(async () => {
      const trusted = await Promise.all(options.trustedKey.map(readPublicKey))
      try {
        const pkg = await readPackage(path, { integrity: 'full' })
        const { plan, planHash, manifest } = pkg
        const files = manifest.files.length
        const found = await readCertificates(pkg.path)
        const certificates = await Promise.all(found.map((each) => certificateState(pkg, each, trusted)))
        const ok = trusted.length === 0 || certificates.some(({ state }) => state === 'valid')
        print(
          options,
          { ok, path, planHash, instructions: plan.instructions.length, files, certificates },
          [
            `${ok ? 'ok' : 'refused'}: ${path}, plan ${planHash}, ${files} files`,
            ...(certificates.length ? certificates.map(certificateLine) : ['no certificates']),
          ].join('\n'),
        )
        return ok
      } catch (error) {
        if (!(error instanceof IngotError)) throw error
        print(options, { ok: false, path, code: error.code, message: error.message }, `refused: ${error.message}`)
        log(options, error.code)
        return false
      }
    }),
  )
