import { generateKeyPairSync, type KeyObject } from 'node:crypto'
import { mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { IngotError } from '../errors.ts'
import {
  type Candidate,
  checkCertificate,
  findCertificate,
  issueCertificate,
  kernelSubject,
  type Predicate,
  packageSubjects,
  precisionOf,
  readClaims,
  writeCertificate,
} from './certificate.ts'
import { compile } from './compile.ts'
import { seal } from './dsse.ts'
import { newFolder, tinyCheckpoint } from './example.test-checkpoint.ts'
import { readPackage } from './package.ts'

const [ours, theirs] = [generateKeyPairSync('ed25519'), generateKeyPairSync('ed25519')]
const digest = (digit: string) => digit.repeat(64)
const now = Date.parse('2026-06-01T00:00:00Z')
const full = { integrity: 'full' } as const

const predicate: Predicate = {
  verdict: 'pass',
  issued: '2026-01-01T00:00:00Z',
  expires: '2027-01-01T00:00:00Z',
  reference: 'the reference backend',
  backend: 'abacus',
  device: { class: 'wood/beads', description: 'ten wires', driver: '1.0', deterministic: true },
  precision: { weights: ['bf16', 'i8'], states: ['bf16'] },
  corpus: { sha256: digest('c') },
  code: { sha256: digest('d') },
  metrics: [{ name: 'rms', value: 0.01, threshold: 0.02 }],
}
const subjects = [
  { name: 'plan.bin', sha256: digest('1') },
  { name: 'weights.safetensors', sha256: digest('2') },
  { name: kernelSubject('abacus'), sha256: digest('3') },
]
const candidate: Candidate = {
  subjects,
  backend: 'abacus',
  deviceClass: 'wood/beads',
  deterministic: true,
  precision: predicate.precision,
}
const issue = (change: Partial<Predicate> = {}, keys: readonly KeyObject[] = [ours.privateKey]) =>
  issueCertificate(subjects, { ...predicate, ...change }, keys)
const check = (content: string, change: Partial<Candidate> = {}, time = now) =>
  checkCertificate(content, 'x.json', [ours.publicKey], { ...candidate, ...change }, time)
const refusal = (content: string, change: Partial<Candidate> = {}, time = now): [string, string] => {
  try {
    check(content, change, time)
  } catch (error) {
    if (error instanceof IngotError) return [error.code, error.message]
    throw error
  }
  throw new Error('it was accepted')
}

describe('a certificate', () => {
  test('counts for what it names, and says who signed what', () => {
    const found = check(issue({}, [theirs.privateKey, ours.privateKey]))
    expect(found).toMatchObject({ path: 'x.json', predicate, subjects })
    expect(found.keyIds).toHaveLength(1)
    expect(readClaims(issue(), 'x.json')).toMatchObject({ predicate, keyIds: found.keyIds })
  })

  test('has the fields of an in-toto statement', () => {
    const { payload, payloadType } = JSON.parse(issue())
    expect(payloadType).toBe('application/vnd.in-toto+json')
    expect(JSON.parse(Buffer.from(payload, 'base64').toString())).toEqual({
      _type: 'https://in-toto.io/Statement/v1',
      subject: subjects.map(({ name, sha256 }) => ({ name, digest: { sha256 } })),
      predicateType: 'https://ingot.invalid/parity/v1',
      predicate,
    })
  })

  const other = (index: number) => ({
    subjects: subjects.map((subject, i) => (i === index ? { ...subject, sha256: digest('9') } : subject)),
  })
  test.each<[string, Partial<Predicate>, Partial<Candidate>, string, RegExp]>([
    ['another plan', {}, other(0), 'CERTIFICATE_SUBJECT', /plan\.bin of digest 1{64}, this one has 9{64}/],
    ['other weights', {}, other(1), 'CERTIFICATE_SUBJECT', /weights\.safetensors of digest 2/],
    ['other kernels', {}, other(2), 'CERTIFICATE_SUBJECT', /kernels\/abacus of digest 3/],
    ['another backend', {}, { backend: 'cpu' }, 'CERTIFICATE_SCOPE', /certifies backend abacus, this is cpu/],
    ['another device', {}, { deviceClass: 'x64/avx2' }, 'CERTIFICATE_SCOPE', /device class wood\/beads, .* x64\/avx2/],
    [
      'another mode',
      {},
      { deterministic: false },
      'CERTIFICATE_SCOPE',
      /mode deterministic, this is not deterministic/,
    ],
    ['another precision', {}, { precision: { weights: ['i4'], states: [] } }, 'CERTIFICATE_SCOPE', /precision .* i4/],
    ['a verdict of fail', { verdict: 'fail' }, {}, 'CERTIFICATE_VERDICT', /its verdict is fail/],
    [
      'a measure beyond its threshold',
      { metrics: [{ name: 'kl', value: 3, threshold: 2 }] },
      {},
      'CERTIFICATE_VERDICT',
      /kl is 3, more than 2/,
    ],
    ['the time before it', { issued: '2026-06-01T00:00:00.001Z' }, {}, 'CERTIFICATE_EARLY', /valid from 2026-06-01/],
    ['the time after it', { expires: '2026-06-01T00:00:00Z' }, {}, 'CERTIFICATE_EXPIRED', /expired at 2026-06-01/],
  ])('does not count for %s', (_, said, asked, code, message) => {
    const [gotCode, gotMessage] = refusal(issue(said), asked)
    expect(gotCode).toBe(code)
    expect(gotMessage).toMatch(message)
  })

  test('must name every subject, and not twice with two digests', () => {
    const drop = issueCertificate(subjects.slice(1), predicate, [ours.privateKey])
    expect(refusal(drop)).toEqual(['CERTIFICATE_SUBJECT', expect.stringContaining('plan.bin of digest nothing')])
    const twice = issueCertificate([...subjects, { ...subjects[0]!, sha256: digest('7') }], predicate, [
      ours.privateKey,
    ])
    expect(refusal(twice)[0]).toBe('CERTIFICATE_SUBJECT')
    check(issueCertificate([...subjects, { name: 'more', sha256: digest('7') }], predicate, [ours.privateKey]))
  })

  test('of another key is told from one that was changed', () => {
    expect(refusal(issue({}, [theirs.privateKey]))[0]).toBe('CERTIFICATE_KEY')
    const changed = JSON.parse(issue({ verdict: 'fail' }))
    const text = Buffer.from(changed.payload, 'base64').toString().replace('"fail"', '"pass"')
    const forged = JSON.stringify({ ...changed, payload: Buffer.from(text).toString('base64') })
    expect(refusal(forged)[0]).toBe('CERTIFICATE_SIGNATURE')
  })

  test('is refused after any change of a bit that is signed', () => {
    const { payload, payloadType, signatures } = JSON.parse(issue())
    const flip = (base64: string, bit: number) => {
      const bytes = Buffer.from(base64, 'base64')
      bytes[(bit >> 3) % bytes.length]! ^= 1 << (bit & 7)
      return bytes.toString('base64')
    }
    fc.assert(
      fc.property(fc.nat(), fc.boolean(), (bit, ofPayload) => {
        const [{ keyid, sig }] = signatures
        const changed = ofPayload
          ? { payload: flip(payload, bit), payloadType, signatures }
          : { payload, payloadType, signatures: [{ keyid, sig: flip(sig, bit) }] }
        expect(refusal(JSON.stringify(changed))[0]).toBe('CERTIFICATE_SIGNATURE')
      }),
      { numRuns: 500 },
    )
  })

  test('is refused or read with a typed error whatever its holder signed', () => {
    const fuzzed = fc.oneof(
      fc.json().map((text) => Buffer.from(text)),
      fc.uint8Array(),
      fc.tuple(fc.constantFrom(...Object.keys(predicate)), fc.jsonValue()).map(([field, value]) => {
        const statement = JSON.parse(Buffer.from(JSON.parse(issue()).payload, 'base64').toString())
        return Buffer.from(JSON.stringify({ ...statement, predicate: { ...predicate, [field]: value } }))
      }),
    )
    fc.assert(
      fc.property(fuzzed, (payload) => {
        const content = seal('application/vnd.in-toto+json', payload, [ours.privateKey])
        try {
          expect(check(content).predicate).toMatchObject({ verdict: 'pass', backend: 'abacus' })
        } catch (error) {
          expect(error).toBeInstanceOf(IngotError)
        }
      }),
      { numRuns: 500 },
    )
  })

  test('holds at times that everybody reads alike: of the calendar, in UTC', () => {
    for (const expires of ['2026-06-01T00:00:00Z', '2026-06-01T00:00:00.000000001Z']) {
      expect(refusal(issue({ expires }), {}, now + 1)[0]).toBe('CERTIFICATE_EXPIRED')
      expect(check(issue({ expires }), {}, now - 1).predicate.expires).toBe(expires)
    }
    const wrong = [
      '2027-02-29T00:00:00Z',
      '2027-01-01T24:00:00Z',
      '2027-01-01T00:00:60Z',
      '2027-01-01',
      '2027-01-01T00:00Z',
    ]
    for (const expires of [...wrong, '2027-01-01T00:00:00', '2027-01-01T00:00:00+00:00', '2027-01-01T00:00:00z', ''])
      expect(() => issue({ expires }), expires).toThrow('expires: expected a time in UTC')
    const part = (most: number) => fc.nat(most).map((n) => String(n).padStart(2, '0'))
    fc.assert(
      fc.property(part(13), part(32), part(25), part(61), part(61), fc.nat(999), (month, day, h, m, s, ms) => {
        const issued = `2024-${month}-${day}T${h}:${m}:${s}.${ms}Z`
        try {
          issue({ issued })
        } catch {
          return
        }
        expect(new Date(issued).toISOString().slice(0, 16)).toBe(issued.slice(0, 16))
      }),
      { numRuns: 500 },
    )
  })

  test.each<[string, object, string]>([
    ['a field more', { note: 'trust me' }, 'a parity predicate and no other'],
    ['no metrics', { metrics: [] }, 'at least one metric'],
    ['a metric that is no number', { metrics: [{ name: 'rms', value: null, threshold: 1 }] }, 'a finite number'],
    ['a local time', { expires: '2027-01-01T00:00:00+02:00' }, 'a time in UTC'],
    ['a short digest', { corpus: { sha256: 'abc' } }, 'a SHA-256'],
  ])('with %s is not issued, nor read', (_, change, message) => {
    expect(() => issue(change)).toThrow(message)
    const statement = JSON.parse(Buffer.from(JSON.parse(issue()).payload, 'base64').toString())
    const payload = Buffer.from(JSON.stringify({ ...statement, predicate: { ...predicate, ...change } }))
    const [code, got] = refusal(seal('application/vnd.in-toto+json', payload, [ours.privateKey]))
    expect(code).toBe('CERTIFICATE_INVALID')
    expect(got).toContain(message)
  })
})

describe('the certificates of a package', async () => {
  const { path } = await compile(tinyCheckpoint(), { out: join(newFolder(), 'x.ingot') })
  const find = () => findCertificate(path, [ours.publicKey], candidate, now)

  test('lie in a folder that the manifest does not list, beside files that it does', async () => {
    await expect(find()).rejects.toMatchObject({ code: 'CERTIFICATE_MISSING' })
    await writeCertificate(path, 'other.json', issue({ backend: 'cpu' }))
    await expect(find()).rejects.toMatchObject({ code: 'CERTIFICATE_SCOPE' })
    await writeCertificate(path, 'broken.json', 'no JSON')
    await writeCertificate(path, 'old.json', issue({ expires: '2026-02-01T00:00:00Z' }))
    await expect(find()).rejects.toMatchObject({ code: 'CERTIFICATE_EXPIRED' })
    const written = await writeCertificate(path, 'z.json', issue())
    expect(await find()).toMatchObject({ path: written })
    const pkg = await readPackage(path, full)
    expect(packageSubjects(pkg).map(({ name }) => name)).toEqual(['plan.bin', 'weights.safetensors'])
    expect(precisionOf(pkg.plan)).toEqual({ weights: ['bf16'], states: ['bf16'] })
    expect(readdirSync(join(path, '..'))).toEqual(['x.ingot'])
  })

  test('have nothing beside them', async () => {
    const folder = join(path, 'certificates')
    writeFileSync(join(folder, 'note.txt'), '')
    await expect(readPackage(path, full)).rejects.toMatchObject({ code: 'PACKAGE_INVALID' })
    const { path: second } = await compile(tinyCheckpoint(), { out: join(newFolder(), 'x.ingot') })
    mkdirSync(join(second, 'certificates'))
    symlinkSync('/dev/null', join(second, 'certificates', 'a.json'))
    await expect(readPackage(second, full)).rejects.toMatchObject({ code: 'PACKAGE_INVALID' })
  })

  test('are not many', async () => {
    const { path: many } = await compile(tinyCheckpoint(), { out: join(newFolder(), 'x.ingot') })
    for (let i = 0; i < 64; i++) await writeCertificate(many, `${i}.json`, issue())
    await readPackage(many, full)
    await writeCertificate(many, 'more.json', issue())
    await expect(readPackage(many, full)).rejects.toMatchObject({ message: expect.stringContaining('at most 64') })
  })

  test('larger than any certificate are not read', async () => {
    const { path: third } = await compile(tinyCheckpoint(), { out: join(newFolder(), 'x.ingot') })
    await writeCertificate(third, 'large.json', ' '.repeat(2 ** 20 + 1))
    const found = findCertificate(third, [ours.publicKey], candidate, now)
    await expect(found).rejects.toMatchObject({ code: 'FILE_UNREADABLE' })
  })
})
