/** Each rule of a sign-off, on evidence that is made up here; cli/signoff.test.ts runs it on evidence that was measured. */
import { generateKeyPairSync } from 'node:crypto'
import { cpSync, existsSync, lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { packageRoot } from '../../abi/native.ts'
import { backends } from '../../compute/backends.ts'
import { kernelDigest } from '../../compute/kernels.ts'
import { compile, IngotError, open } from '../../index.ts'
import { seal } from '../../models/dsse.ts'
import { readPackage, weightsHash } from '../../models/package.ts'
import { codeDigest } from '../code.ts'
import { editOf } from '../edit.test-json.ts'
import type { MatrixReport } from '../matrix-report.ts'
import { readEvidence, readPackages, weigh } from './evidence.ts'
import { append, readLedger } from './ledger.ts'
import {
  assertDualPath,
  certificateFile,
  ownerKey,
  type PhaseRecord,
  packagePaths,
  phaseFiles,
  readPhase,
  roles,
} from './phase.ts'
import { rollback } from './releases.ts'
import { check, close, sign, start } from './signoff.ts'

const folder = mkdtempSync(join(tmpdir(), 'ingot-signoff-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const keys = Object.fromEntries(roles.map((role) => [role, generateKeyPairSync('ed25519')]))
const stranger = generateKeyPairSync('ed25519')
const pem = (role: string) => keys[role]!.publicKey.export({ type: 'spki', format: 'pem' }).toString()
const day = 24 * 60 * 60 * 1000
const now = Date.parse('2026-06-01T12:00:00Z')

const record: PhaseRecord = {
  format: 'ingot-phase',
  version: 1,
  title: 'Run the story on the CPU',
  exitCriteria: [{ command: 'npm test', prints: 'no failure' }],
  rollback: 'ingot rollback story.ingot',
  fallback: { runs: 'the reference backend', reason: 'cpu_not_signed_off' },
  dualPath: { path: 'the reference beside it', milestone: 'phase 3', date: '2026-06-30' },
  owners: {
    models: { name: 'Mo', key: pem('models') },
    inference: { name: 'In', key: pem('inference') },
    compute: { name: 'Co', key: pem('compute') },
  },
  packages: [{ name: 'story', path: 'story.ingot' }],
  parity: { reference: 'reference', rows: ['cpu', 'cpu:portable'], shapes: ['text', 'random'] },
  conformance: 'full',
  performance: {
    prompt: 16,
    generate: 4,
    sequences: [1],
    repeats: 1,
    cells: [{ name: 'story cpu decode 1 of read', least: 0.5, reason: 'half of what the memory gives' }],
  },
  certificateDays: 30,
}

const shapeNamed = (name: string) => ({
  name,
  kind: name,
  prompts: [9],
  batch: 1,
  chunk: 9,
  generate: 0,
  judged: true,
})

/** Evidence that passes, of the package and code that are here. */
async function evidenceOf(path: string) {
  const pkg = await readPackage(path, { integrity: 'structure' })
  const [code, cpu, reference] = [
    await codeDigest(),
    await kernelDigest(backends.cpu),
    await kernelDigest(backends.reference),
  ]
  await using model = await open(path)
  const { isa, description } = model.device
  const row = (name: string, backend: string, isa: string, kernels: string) => ({
    name,
    backend,
    isa,
    description,
    deterministic: true,
    kernels,
  })
  const one = { value: 0.001, allowed: 0.01 }
  const none = { value: 0, allowed: 0 }
  const metrics = {
    maxAbs: one,
    rms: one,
    kl: one,
    mismatchRatio: one,
    argmaxOutsideTies: none,
    tokens: 9,
    maxRel: 0.001,
    argmaxAgreement: 1,
    greedy: { matched: 8, total: 8, ties: 0, outsideTies: none },
  }
  const pairs = [
    ['reference', 'cpu'],
    ['reference', 'cpu:portable'],
    ['cpu', 'cpu:portable'],
  ] as const
  const cells = ['text', 'random'].flatMap((shape) =>
    pairs.map(([expected, actual]) => ({
      model: 'story',
      precision: 'bf16',
      shape,
      expected,
      actual,
      verdict: 'pass' as MatrixReport['cells'][number]['verdict'],
      failures: [] as string[],
      metrics,
    })),
  )
  const suite = (row: string) => ({
    row,
    kernels: cpu,
    pass: true,
    slice: 'full',
    cells: [
      {
        op: 'embed',
        weights: 'f32',
        state: '-',
        verdict: 'pass',
        reason: '',
        cases: { pass: 1, fail: 0 },
        worst: 0.5,
        failures: [],
      },
    ],
    staleExpectations: [] as string[],
  })
  return {
    parity: {
      format: 'ingot-parity-matrix',
      version: 1,
      code,
      pass: true,
      created: new Date(now).toISOString(),
      seconds: 1,
      corpus: 'c'.repeat(64),
      seed: 1,
      machine: { cpu: 'abacus', arch: 'wood', node: 'v20', ingot: '0.1.0' },
      shapes: ['text', 'random'].map(shapeNamed),
      operations: [],
      reasons: {},
      rows: [
        row('reference', 'reference', 'float64', reference),
        row('cpu', 'cpu', isa, cpu),
        row('cpu:portable', 'cpu', 'portable', cpu),
      ],
      models: [
        {
          name: 'story',
          precision: 'bf16',
          weights: 'bf16',
          state: 'bf16',
          layers: 4,
          vocab: pkg.plan.vocab,
          planSha256: pkg.planHash,
          weightsSha256: weightsHash(pkg),
        },
      ],
      cells,
    },
    conformance: {
      format: 'ingot-conformance',
      version: 1,
      code,
      reports: [suite('cpu'), suite('cpu:portable')],
    },
    performance: {
      format: 'ingot-performance-matrix',
      version: 1,
      code,
      created: new Date(now).toISOString(),
      machine: 'abacus',
      cells: [
        {
          name: 'story cpu decode 1 of read',
          package: 'story',
          planSha256: pkg.planHash,
          row: 'cpu',
          kernels: cpu,
          ratio: 0.8,
          measured: 80,
          compared: 100,
          unit: 'tokens/s',
          low: 79,
          high: 81,
        },
      ],
    },
  }
}
type Files = Awaited<ReturnType<typeof evidenceOf>>

const story = join(folder, 'story.ingot')
let files: Files
beforeAll(async () => {
  await compile(join(packageRoot(), 'checkpoints/storyteller-1m'), { out: story })
  files = await evidenceOf(story)
})

/** A new folder with record, evidence and package; `path` is the record's. */
function phaseFolder(change: Partial<PhaseRecord> = {}): string {
  const place = mkdtempSync(join(folder, 'phase-'))
  cpSync(story, join(place, 'story.ingot'), { recursive: true })
  writeFileSync(join(place, '0002-story.json'), JSON.stringify({ ...record, ...change }, null, 2))
  writeEvidence(place)
  return join(place, '0002-story.json')
}

function writeEvidence(place: string, edit: (files: Files) => void = () => {}): void {
  const own = structuredClone(files)
  edit(own)
  for (const [kind, content] of Object.entries(own))
    writeFileSync(join(place, `0002-story.${kind}.json`), JSON.stringify(content))
}

const placeOf = (path: string) => join(path, '..')
const codes = (refusals: readonly IngotError[]) => refusals.map(({ code }) => code)

/** A phase that started and that everyone has signed. */
async function signedPhase(change?: Partial<PhaseRecord>) {
  const path = phaseFolder(change)
  const phase = await readPhase(path)
  await start(phase, now)
  for (const role of roles) await sign(phase, role, keys[role]!.privateKey, now)
  return { path, phase, ledger: join(placeOf(path), 'ledger.jsonl') }
}

/** The one refusal besides missing signatures. */
async function refusal(path: string, time = now) {
  const { refusals } = await check(await readPhase(path), time)
  const others = refusals.filter(({ code }) => code !== 'SIGNOFF_UNSIGNED')
  expect(codes(others)).toHaveLength(1)
  return { code: others[0]!.code, message: others[0]!.message }
}

/** Nothing, where an error is one of ours. */
function typed(error: unknown): undefined {
  expect(error).toBeInstanceOf(IngotError)
}

describe('a record', () => {
  test.each<[string, object, string]>([
    [
      'no owner of compute',
      { owners: { models: record.owners.models, inference: record.owners.inference } },
      'owners.compute',
    ],
    ['an owner without a key', { owners: { ...record.owners, models: { name: 'Mo', key: 'x' } } }, 'owners.models.key'],
    ['no exit criteria', { exitCriteria: [] }, 'at least one of criteria'],
    ['no rollback', { rollback: ' ' }, 'rollback: expected a text that is not empty'],
    ['a fallback without a code', { fallback: { runs: 'x', reason: 'Because.' } }, 'a code such as'],
    [
      'a dual path without a date',
      { dualPath: { path: 'x', milestone: 'y', date: 'soon' } },
      'dualPath.date: expected a date',
    ],
    ['no word on a dual path', { dualPath: undefined }, 'dualPath'],
    [
      'a threshold without a reason',
      { performance: { ...record.performance, cells: [{ name: 'x', least: 1 }] } },
      'reason',
    ],
    ['a field more', { note: '' }, 'a phase record'],
    ['a newer version', { version: 2 }, 'version: expected 1, got 2'],
    [
      'a row twice',
      { parity: { ...record.parity, rows: ['cpu', 'cpu'] } },
      'parity.rows: expected each name once, got cpu',
    ],
  ])('with %s is refused', async (_, change, message) => {
    const path = phaseFolder(change)
    await expect(readPhase(path)).rejects.toMatchObject({
      code: 'SIGNOFF_FILE_INVALID',
      message: expect.stringContaining(message),
    })
  })

  test('is read or refused with a typed error whatever it says, and what is read can be used', async () => {
    const path = phaseFolder()
    await fc.assert(
      fc.asyncProperty(editOf(record), async (edit) => {
        writeFileSync(path, JSON.stringify(edit(record)))
        const phase = await readPhase(path).catch(typed)
        if (!phase) return
        expect(Object.values(phaseFiles(phase)).map(placeOf)).toEqual(Array(4).fill(placeOf(path)))
        expect(packagePaths(phase).size).toBe(phase.record.packages.length)
        for (const role of roles) expect(ownerKey(phase, role).asymmetricKeyType).toBe('ed25519')
        for (const row of phase.record.parity.rows) expect(certificateFile(row)).toMatch(/^[\w.-]+\.json$/)
        try {
          assertDualPath(phase, now)
        } catch (error) {
          expect(error).toMatchObject({ code: 'SIGNOFF_OVERDUE' })
        }
        await readPackages(phase).catch(typed)
      }),
      { numRuns: 150 },
    )
  })

  test('is fixed by the first entry, before anything else', async () => {
    const path = phaseFolder()
    const phase = await readPhase(path)
    expect((await check(phase, now)).refusals[0]).toMatchObject({ code: 'SIGNOFF_NOT_STARTED' })
    await expect(sign(phase, 'models', keys.models!.privateKey, now)).rejects.toMatchObject({
      code: 'SIGNOFF_NOT_STARTED',
    })
    const entry = await start(phase, now)
    expect(entry).toMatchObject({ index: 0, kind: 'start', record: phase.sha256 })
    expect(await start(phase, now)).toEqual(entry)
    writeFileSync(path, readFileSync(path, 'utf8').replace('no failure', 'few failures'))
    const changed = await readPhase(path)
    await expect(start(changed, now)).rejects.toMatchObject({ code: 'SIGNOFF_RECORD_CHANGED' })
    expect((await check(changed, now)).refusals[0]).toMatchObject({ code: 'SIGNOFF_RECORD_CHANGED' })
  })

  test('with a dual path ends on its date', async () => {
    const path = phaseFolder()
    const last = Date.parse('2026-06-30T23:59:59Z')
    await expect(start(await readPhase(path), last + 1000)).rejects.toMatchObject({ code: 'SIGNOFF_OVERDUE' })
    await start(await readPhase(path), last)
    expect(codes((await check(await readPhase(path), last)).refusals)).not.toContain('SIGNOFF_OVERDUE')
    expect(await refusal(path, last + 1000)).toMatchObject({
      code: 'SIGNOFF_OVERDUE',
      message: expect.stringContaining('the reference beside it was to be deleted by 2026-06-30 (phase 3)'),
    })
  })
})

describe('evidence', () => {
  const edited = async (edit: (files: Files) => void) => {
    const path = phaseFolder()
    await start(await readPhase(path), now)
    writeEvidence(placeOf(path), edit)
    return refusal(path)
  }

  test.each<[string, (files: Files) => void, string, string]>([
    [
      'lacks a cell of the parity matrix',
      ({ parity }) => void parity.cells.pop(),
      'SIGNOFF_CELL_MISSING',
      'story random: cpu:portable by cpu',
    ],
    [
      'lacks a row of op conformance',
      ({ conformance }) => void conformance.reports.pop(),
      'SIGNOFF_CELL_MISSING',
      '"cpu:portable"',
    ],
    [
      'has only some of the op cases',
      ({ conformance }) => void (conformance.reports[0]!.slice = 'thin'),
      'SIGNOFF_CELL_MISSING',
      'cpu, all cases',
    ],
    [
      'lacks a cell of the performance matrix',
      ({ performance }) => void performance.cells.pop(),
      'SIGNOFF_CELL_MISSING',
      'decode 1 of read',
    ],
    [
      'was skipped',
      ({ parity }) => void Object.assign(parity.cells[0]!, { verdict: 'skipped', reason: 'no kernel' }),
      'SIGNOFF_CELL_FAILED',
      'no kernel',
    ],
    [
      'fails',
      ({ parity }) => {
        Object.assign(parity.cells[0]!, { verdict: 'fail', failures: ['rms too large'] })
        parity.pass = false
      },
      'SIGNOFF_CELL_FAILED',
      'rms too large',
    ],
    [
      'passes beyond a threshold',
      ({ parity }) => void (parity.cells[0]!.metrics = { ...parity.cells[0]!.metrics, kl: { value: 2, allowed: 1 } }),
      'SIGNOFF_CELL_FAILED',
      'it passes, and exceeds: kl',
    ],
    [
      'passes without figures',
      ({ parity }) => void Object.assign(parity.cells[0]!, { metrics: undefined }),
      'SIGNOFF_CELL_FAILED',
      'without metrics',
    ],
    [
      'fails an op',
      ({ conformance }) => void (conformance.reports[0]!.cells[0]!.verdict = 'fail'),
      'SIGNOFF_CELL_FAILED',
      'cpu embed f32 -',
    ],
    [
      'passes where it was to fail',
      ({ conformance }) => void conformance.reports[0]!.staleExpectations.push('embed: 7'),
      'SIGNOFF_CELL_FAILED',
      'expected to fail',
    ],
    [
      'is too slow',
      ({ performance }) => void (performance.cells[0]!.ratio = 0.4),
      'SIGNOFF_CELL_FAILED',
      '0.400 of it, asked for are 0.5',
    ],
    ['is of other code', ({ parity }) => void (parity.code = '1'.repeat(64)), 'SIGNOFF_STALE', 'code of digest 1111'],
    [
      'measured other code',
      ({ performance }) => void (performance.code = '1'.repeat(64)),
      'SIGNOFF_STALE',
      'performance.json judges code',
    ],
    [
      'ran other cases',
      ({ conformance }) => void (conformance.code = '1'.repeat(64)),
      'SIGNOFF_STALE',
      'conformance.json judges code',
    ],
    [
      'is of other kernels',
      ({ parity }) => void (parity.rows[1]!.kernels = '1'.repeat(64)),
      'SIGNOFF_STALE',
      'kernels of cpu',
    ],
    [
      'is of another plan',
      ({ parity }) => void (parity.models[0]!.planSha256 = '1'.repeat(64)),
      'SIGNOFF_STALE',
      'plan of story',
    ],
    [
      'is of other weights',
      ({ parity }) => void (parity.models[0]!.weightsSha256 = '1'.repeat(64)),
      'SIGNOFF_STALE',
      'weights of story',
    ],
    [
      'is of another format',
      ({ performance }) => void (performance.version = 2),
      'SIGNOFF_FILE_INVALID',
      'version: expected 1, got 2',
    ],
    [
      'does not say what a row is',
      ({ parity }) => void parity.rows.pop(),
      'SIGNOFF_CELL_MISSING',
      'row cpu:portable, once',
    ],
    [
      'says that of a row twice',
      ({ parity }) => void parity.rows.push(parity.rows[1]!),
      'SIGNOFF_CELL_MISSING',
      'row cpu',
    ],
    [
      'does not say what a package is',
      ({ parity }) => void (parity.models[0]!.name = 'other'),
      'SIGNOFF_CELL_MISSING',
      'package story, once',
    ],
    [
      'is of another instruction set',
      ({ parity }) => void (parity.rows[2]!.isa = 'avx2'),
      'SIGNOFF_CELL_FAILED',
      'row cpu:portable" does not pass: it ran on cpu, avx2',
    ],
    ['is no parity matrix', ({ parity }) => void (parity.pass = false), 'MATRIX_INVALID', 'the cells say otherwise'],
  ])('that %s does not do', async (_, edit, code, message) => {
    expect(await edited(edit)).toEqual({ code, message: expect.stringContaining(message) })
  })

  test('is weighed or refused with a typed error whatever it says', async () => {
    const path = phaseFolder()
    const phase = await readPhase(path)
    const packages = await readPackages(phase)
    await fc.assert(
      fc.asyncProperty(editOf(files), async (edit) => {
        writeEvidence(placeOf(path), (own) => Object.assign(own, edit(own)))
        const evidence = await readEvidence(phase).catch(typed)
        if (evidence) for (const each of (await weigh(phase, evidence, packages).catch(typed)) ?? []) typed(each)
      }),
      { numRuns: 60 },
    )
  })

  test('that is not there is missed', async () => {
    const path = phaseFolder()
    await start(await readPhase(path), now)
    rmSync(join(placeOf(path), '0002-story.performance.json'))
    expect(await refusal(path)).toMatchObject({
      code: 'FILE_MISSING',
      message: expect.stringContaining('ingot signoff measure'),
    })
  })

  test('that does not pass is signed by nobody', async () => {
    const path = phaseFolder()
    const phase = await readPhase(path)
    await start(phase, now)
    writeEvidence(placeOf(path), ({ parity }) => void parity.cells.pop())
    await expect(sign(phase, 'models', keys.models!.privateKey, now)).rejects.toMatchObject({
      code: 'SIGNOFF_CELL_MISSING',
    })
    expect(await readLedger(join(placeOf(path), 'ledger.jsonl'))).toHaveLength(1)
  })
})

describe('owners', () => {
  test('all sign, each with their key', async () => {
    const path = phaseFolder()
    const phase = await readPhase(path)
    await start(phase, now)
    await expect(sign(phase, 'models', keys.compute!.privateKey, now)).rejects.toMatchObject({ code: 'SIGNOFF_KEY' })
    for (const [count, role] of roles.entries()) {
      const { refusals, signed } = await check(phase, now)
      expect(codes(refusals)).toEqual(roles.slice(count).map(() => 'SIGNOFF_UNSIGNED'))
      expect(Object.values(signed).filter(Boolean)).toHaveLength(count)
      expect(refusals[0]!.message).toContain('there is no signature in the ledger')
      await expect(close(phase, [keys.compute!.privateKey], now)).rejects.toMatchObject({ code: 'SIGNOFF_UNSIGNED' })
      await sign(phase, role, keys[role]!.privateKey, now)
    }
    expect((await check(phase, now)).refusals).toEqual([])
    await expect(close(phase, [stranger.privateKey], now)).rejects.toMatchObject({ code: 'SIGNOFF_KEY' })
  })

  test('sign this evidence: other evidence has no signature', async () => {
    const { path } = await signedPhase()
    writeEvidence(placeOf(path), ({ performance }) => void (performance.cells[0]!.ratio = 0.9))
    const { refusals } = await check(await readPhase(path), now)
    expect(codes(refusals)).toEqual(roles.map(() => 'SIGNOFF_UNSIGNED'))
    expect(refusals[0]!.message).toContain('what was signed has another performance')
  })

  test('sign this history: one that was chained anew does not have their signatures', async () => {
    const { path, ledger } = await signedPhase()
    const entries = await readLedger(ledger)
    rmSync(ledger)
    const phase = await readPhase(path)
    await start(phase, now + 1)
    for (const { index, time, previous, hash, ...event } of entries.slice(1)) await append(ledger, () => event, now)
    const { refusals } = await check(phase, now)
    expect(codes(refusals)).toEqual(roles.map(() => 'SIGNOFF_UNSIGNED'))
    expect(refusals[0]!.message).toContain('another history')
  })

  test('are not kept from signing by entries that are no signatures', async () => {
    const path = phaseFolder()
    const phase = await readPhase(path)
    await start(phase, now)
    for (const envelope of ['no JSON', '{}', seal('text/plain', Buffer.from('no JSON'), [stranger.privateKey])])
      await append(
        join(placeOf(path), 'ledger.jsonl'),
        () => ({ kind: 'sign', phase: phase.name, role: 'models', envelope }),
        now,
      )
    expect((await check(phase, now)).refusals[0]!.message).toContain('what was signed is no statement')
    await sign(phase, 'models', keys.models!.privateKey, now)
    expect((await check(phase, now)).signed.models).toBe(true)
  })

  test('cannot be spoken for by the key of another', async () => {
    const { path, ledger } = await signedPhase()
    const entries = await readLedger(ledger)
    rmSync(ledger)
    for (const { index, time, previous, hash, ...event } of entries)
      await append(ledger, () => (event.kind === 'sign' ? { ...event, role: 'compute' } : event), Date.parse(time))
    const { signed } = await check(await readPhase(path), now)
    expect(signed).toEqual({ models: false, inference: false, compute: false })
  })
})

describe('the end of a phase', () => {
  test('certifies every row, keeps the package, and the loader takes it', async () => {
    const { path, phase, ledger } = await signedPhase({ dualPath: null })
    const name = join(placeOf(path), 'story.ingot')
    const issuedAt = Date.now()
    const { entry, certificates } = await close(phase, [keys.compute!.privateKey], issuedAt)
    expect(entry).toMatchObject({ index: 4, kind: 'signoff', phase: '0002-story', packages: [{ path: 'story.ingot' }] })
    expect(certificates.map((file) => file.split('/').at(-1))).toEqual(['cpu.json', 'cpu-portable.json'])
    expect(lstatSync(name).isSymbolicLink()).toBe(true)
    for (const isa of ['', 'portable']) {
      const options = { certificates: 'require', trustedKeys: [pem('compute')], isa } as const
      await using model = await open(name, options)
      expect(model.info.certificate!.predicate).toMatchObject({
        verdict: 'pass',
        issued: new Date(issuedAt).toISOString(),
        expires: new Date(issuedAt + 30 * day).toISOString(),
        reference: expect.stringContaining('reference: '),
        metrics: expect.arrayContaining([{ name: 'rms', value: 0.001, threshold: 0.01 }]),
      })
    }
    await expect(open(name, { certificates: 'require', trustedKeys: [pem('models')] })).rejects.toMatchObject({
      code: 'CERTIFICATE_KEY',
    })
    expect(await readLedger(ledger)).toHaveLength(5)
  })

  test('is there again for the same package, and for one that was compiled anew', async () => {
    const { path, phase, ledger } = await signedPhase()
    const name = join(placeOf(path), 'story.ingot')
    const owner = [keys.compute!.privateKey]
    const releases = () => readdirSync(`${name}.releases`).length
    await close(phase, owner, now)
    await close(phase, owner, now + day)
    expect(releases()).toBe(1)
    await compile(join(packageRoot(), 'checkpoints/storyteller-1m'), { out: name })
    expect(lstatSync(name).isSymbolicLink()).toBe(false)
    expect(releases()).toBe(1)
    await close(phase, owner, now + day)
    expect(releases()).toBe(2)
    expect((await readLedger(ledger)).filter(({ kind }) => kind === 'signoff')).toHaveLength(3)
  })
})

describe('a rollback', () => {
  const other = () => join(packageRoot(), 'parity/goldens/llama')
  const modelOf = async (path: string) => (await readPackage(path, { integrity: 'full' })).manifest.model

  test('points the name at the last release, and then at the one before; nothing is lost', async () => {
    const { path, phase, ledger } = await signedPhase()
    const name = join(placeOf(path), 'story.ingot')
    await expect(rollback(name, ledger)).rejects.toMatchObject({
      code: 'ROLLBACK_NONE',
      message: expect.stringContaining('none was signed off'),
    })
    await close(phase, [keys.compute!.privateKey], now)
    await expect(rollback(name, ledger)).rejects.toMatchObject({
      code: 'ROLLBACK_NONE',
      message: expect.stringContaining('the only one'),
    })

    // What was compiled over it was never signed off.
    await compile(other(), { out: name })
    expect(await modelOf(name)).toBe('llama')
    const first = await rollback(name, ledger)
    expect(await modelOf(name)).toBe('qwen3')
    expect(await modelOf(join(placeOf(path), first.from!))).toBe('llama')

    // A second release, and back.
    rmSync(name)
    await compile(join(packageRoot(), 'checkpoints/storyteller-1m'), { out: name })
    await close(phase, [keys.compute!.privateKey], now)
    const second = await rollback(name, ledger)
    expect(second.to).toBe(first.to)
    expect(second.from).not.toBe(first.to)
    expect(existsSync(join(placeOf(path), second.from!))).toBe(true)
    await expect(rollback(name, ledger)).rejects.toMatchObject({ code: 'ROLLBACK_NONE' })
    expect((await readLedger(ledger)).filter(({ kind }) => kind === 'rollback')).toHaveLength(2)

    // A name that is gone comes back.
    rmSync(name)
    expect(await rollback(name, ledger)).toMatchObject({ to: first.to, from: null })
    expect(await modelOf(name)).toBe('qwen3')
  })

  test('goes nowhere by a ledger that names what is no release', async () => {
    const place = mkdtempSync(join(folder, 'nowhere-'))
    cpSync(story, join(place, 'story.ingot'), { recursive: true })
    for (const [i, release] of ['../..', '/', '', 'a\0b', 'story.ingot', '__proto__'].entries()) {
      const ledger = join(place, `${i}.jsonl`)
      const packages = [{ path: 'story.ingot', release, manifest: 'a'.repeat(64) }]
      const [record, evidence] = ['b'.repeat(64), 'c'.repeat(64)]
      await append(ledger, () => ({ kind: 'signoff', phase: 'x', record, evidence, packages, certificates: [] }))
      await expect(rollback(join(place, 'story.ingot'), ledger)).rejects.toBeInstanceOf(IngotError)
      expect(await readLedger(ledger)).toHaveLength(1)
      expect(lstatSync(join(place, 'story.ingot')).isDirectory()).toBe(true)
    }
  })

  test('refuses a release that was damaged, a folder that is no package, and a broken ledger', async () => {
    const { path, phase, ledger } = await signedPhase()
    const name = join(placeOf(path), 'story.ingot')
    await close(phase, [keys.compute!.privateKey], now)
    await compile(other(), { out: name })
    const [release] = readdirSync(`${name}.releases`)
    const weights = join(`${name}.releases`, release!, 'weights.safetensors')
    const bytes = readFileSync(weights)
    bytes[bytes.length - 1]! ^= 1
    writeFileSync(weights, bytes)
    const before = readFileSync(ledger, 'utf8')
    await expect(rollback(name, ledger)).rejects.toMatchObject({ code: 'HASH_MISMATCH' })
    expect(await modelOf(name)).toBe('llama')
    expect(readFileSync(ledger, 'utf8')).toBe(before)
    await expect(rollback(placeOf(path), ledger)).rejects.toMatchObject({ code: 'OUTPUT_EXISTS' })
    writeFileSync(ledger, before.replace('"index":0', '"index":1'))
    await expect(rollback(name, ledger)).rejects.toMatchObject({ code: 'SIGNOFF_LEDGER_BROKEN' })
  })
})
