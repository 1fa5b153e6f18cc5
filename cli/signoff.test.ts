/** The worked example of README.md, line by line, and each tampering of its table. Runs the built dist/. */
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { IngotError, open } from '../index.ts'
import { issueCertificate, readClaims } from '../models/certificate.ts'
import { privateKey } from '../models/dsse.ts'
import { manifestText } from '../models/package.ts'

const root = packageRoot()
const folder = mkdtempSync(join(tmpdir(), 'ingot-example-'))
const main = join(root, 'dist/cli/main.js')
const example = readFileSync(join(root, 'README.md'), 'utf8').split('## Signed off')[1]!.split('\n## ')[0]!
const at = (...names: string[]) => join(folder, 'build', ...names)
const day = 24 * 60 * 60 * 1000

/** A line of the example, as a shell runs it in a checkout. */
function shell(line: string, env: Record<string, string> = {}) {
  const command = line.replaceAll('npx ingot', `"${process.execPath}" "${main}"`)
  const { status, stdout, stderr } = spawnSync('sh', ['-ec', command], {
    encoding: 'utf8',
    cwd: folder,
    env: { ...process.env, NO_COLOR: '1', ...env },
  })
  return { status, stdout, stderr }
}
const commands = example.split('```sh\n')[1]!.split('```')[0]!.trim().split('\n')

beforeAll(() => {
  mkdirSync(at())
  symlinkSync(join(root, 'checkpoints'), join(folder, 'checkpoints'))
  for (const command of commands) expect(shell(command), command).toMatchObject({ status: 0 })
}, 300_000)
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const trustedKeys = (role = 'compute') => [readFileSync(at('keys', `${role}.pub`), 'utf8')]

/** Code and message with which a package is refused. */
async function refusal(path: string): Promise<readonly [string, string]> {
  try {
    await using model = await open(path, { certificates: 'require', trustedKeys: trustedKeys() })
    throw new Error(`opened ${model.info.path}`)
  } catch (error) {
    if (error instanceof IngotError) return [error.code, error.message]
    throw error
  }
}

let copies = 0
/** A copy of the package with one file changed, under a manifest that agrees. */
function resealed(name: string, edit: (bytes: Buffer) => void): string {
  const path = at(`copy-${copies++}.ingot`)
  cpSync(at('story.ingot'), path, { recursive: true, dereference: true })
  const bytes = readFileSync(join(path, name))
  edit(bytes)
  writeFileSync(join(path, name), bytes)
  const { hash, ...manifest } = JSON.parse(readFileSync(join(path, 'manifest.json'), 'utf8'))
  const sha256 = createHash('sha256').update(bytes).digest('hex')
  manifest.files.find((file: { path: string }) => file.path === name).sha256 = sha256
  if (name === 'plan.bin') manifest.planHash = sha256
  writeFileSync(join(path, 'manifest.json'), manifestText(manifest))
  return path
}

function withCertificate(edit: (content: string) => string): string {
  const path = at(`copy-${copies++}.ingot`)
  cpSync(at('story.ingot'), path, { recursive: true, dereference: true })
  const file = join(path, 'certificates', 'cpu.json')
  writeFileSync(file, edit(readFileSync(file, 'utf8')))
  return path
}

/** Another build: the same program, with an addon that is a byte longer. */
function withOtherAddon(): readonly [string, string] {
  const app = at('app')
  mkdirSync(join(app, 'build', 'Release'), { recursive: true })
  for (const name of ['dist', 'node_modules', 'package.json']) symlinkSync(join(root, name), join(app, name))
  rmSync(join(app, 'dist'))
  cpSync(join(root, 'dist'), join(app, 'dist'), { recursive: true })
  cpSync(join(root, 'build/Release/ingot.node'), join(app, 'build/Release/ingot.node'))
  appendFileSync(join(app, 'build/Release/ingot.node'), '\0')
  const code = `
    import { open } from ${JSON.stringify(join(app, 'dist/index.js'))}
    await open(${JSON.stringify(at('story.ingot'))}, { certificates: 'require', trustedKeys: ${JSON.stringify(trustedKeys())} })
      .then(() => console.log('[]'), ({ code, message }) => console.log(JSON.stringify([code, message])))`
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', code], { encoding: 'utf8' })
  expect(stderr).toBe('')
  return JSON.parse(stdout)
}

const tamperings: Readonly<Record<string, () => Promise<readonly [string, string]>>> = {
  'one bit of the weights': () =>
    refusal(resealed('weights.safetensors', (bytes) => void (bytes[bytes.length - 1]! ^= 1))),
  // Of a label, which only people read.
  'one bit of the plan': () => refusal(resealed('plan.bin', (bytes) => void (bytes[bytes.indexOf('layers.0')]! ^= 1))),
  'the addon, by one byte': async () => withOtherAddon(),
  'the time: a year later': async () => {
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 365 * day })
    try {
      return await refusal(at('story.ingot'))
    } finally {
      vi.useRealTimers()
    }
  },
  'the key: signed by somebody else': () => {
    shell('npx ingot signoff keygen build/keys/somebody')
    const key = privateKey(readFileSync(at('keys', 'somebody.key'), 'utf8'))!
    return refusal(
      withCertificate((content) => {
        const { subjects, predicate } = readClaims(content, 'cpu.json')
        return issueCertificate(subjects, predicate, [key])
      }),
    )
  },
  'the certificate: valid for longer': () =>
    refusal(
      withCertificate((content) => {
        const envelope = JSON.parse(content)
        const statement = JSON.parse(Buffer.from(envelope.payload, 'base64').toString())
        statement.predicate.expires = '2126-01-01T00:00:00Z'
        return JSON.stringify({ ...envelope, payload: Buffer.from(JSON.stringify(statement)).toString('base64') })
      }),
    ),
}

const rows = [...example.matchAll(/^\| (.+?) \| `(\w+)` \| (.+?) \|$/gm)].map(([, what, code, names]) => [
  what!,
  code!,
  names!,
])

describe('the example of README', () => {
  it('ends with a certificate that open() requires', async () => {
    await using model = await open(at('story.ingot'), { certificates: 'require', trustedKeys: trustedKeys() })
    expect(model.info.certificate!.keyIds).toHaveLength(1)
    const { text } = await model.generate('Once upon a time', { maxTokens: 8 }).result()
    expect(text).not.toBe('')
    await expect(
      open(at('story.ingot'), { certificates: 'require', trustedKeys: trustedKeys(), backend: 'reference' }),
    ).rejects.toMatchObject({ code: 'CERTIFICATE_SCOPE' })
  })

  it('has six tamperings', () => {
    expect(rows.map(([what]) => what)).toEqual(Object.keys(tamperings))
    expect(rows).toHaveLength(6)
  })

  it.each(rows)('refuses %s with %s: %s', async (what, expected, names) => {
    const [code, message] = await tamperings[what!]!()
    expect(code).toBe(expected)
    expect(message).toContain(names)
  })

  it('verify says what each certificate is worth', () => {
    const verify = (role: string) =>
      shell(`npx ingot verify build/story.ingot --json --trusted-key build/keys/${role}.pub`)
    const good = verify('compute')
    expect(good.status).toBe(0)
    expect(JSON.parse(good.stdout)).toMatchObject({
      ok: true,
      certificates: [{ file: 'cpu.json', state: 'valid', backend: 'cpu' }],
    })
    const bad = verify('models')
    expect(bad.status).toBe(1)
    expect(JSON.parse(bad.stdout)).toMatchObject({
      ok: false,
      certificates: [{ state: 'refused', code: 'CERTIFICATE_KEY' }],
    })
    const unchecked = shell('npx ingot verify build/story.ingot')
    expect(unchecked).toMatchObject({
      status: 0,
      stdout: expect.stringContaining('cpu.json: unchecked: no --trusted-key'),
    })
  })

  it('can be checked again, and refuses what does not hold, with one line and its code', () => {
    const fails = (line: string, code: string, status = 1) =>
      expect(shell(line)).toMatchObject({
        status,
        stderr: expect.stringMatching(new RegExp(`^\\w+Error ${code}: .*\\n$`)),
      })
    const check = shell('npx ingot signoff check build/story.json --json')
    expect(check.status).toBe(0)
    expect(JSON.parse(check.stdout)).toEqual({
      phase: 'story',
      ready: true,
      signed: { models: true, inference: true, compute: true },
      refusals: [],
    })
    fails('npx ingot signoff sign build/story.json --role models --key build/keys/compute.key', 'SIGNOFF_KEY')
    fails('npx ingot signoff sign build/story.json --role models --key build/keys/compute.pub', 'OPTION_INVALID', 2)
    fails('npx ingot signoff keygen build/keys/models', 'OUTPUT_UNWRITABLE')
    fails('npx ingot signoff draft build/story.json --package build/story.ingot --keys build/keys', 'OUTPUT_UNWRITABLE')
    fails('npx ingot signoff check build/nothing.json', 'FILE_MISSING')
    fails('npx ingot rollback build/story.ingot --ledger build/ledger.jsonl', 'ROLLBACK_NONE')
    const parity = at('story.parity.json')
    const kept = readFileSync(parity, 'utf8')
    const matrix = JSON.parse(kept)
    writeFileSync(parity, JSON.stringify({ ...matrix, code: '0'.repeat(64), cells: matrix.cells.slice(1) }))
    const broken = shell('npx ingot signoff check build/story.json --json')
    expect(broken.status).toBe(1)
    const codes = JSON.parse(broken.stdout).refusals.map((each: { code: string }) => each.code)
    expect(codes).toEqual(['SIGNOFF_STALE', 'SIGNOFF_CELL_MISSING', ...Array(3).fill('SIGNOFF_UNSIGNED')])
    writeFileSync(parity, kept)
    const story = readFileSync(at('story.json'), 'utf8')
    writeFileSync(at('story.json'), story.replace('any speed', 'no speed'))
    fails('npx ingot signoff measure build/story.json', 'SIGNOFF_RECORD_CHANGED')
    writeFileSync(at('story.json'), story)
    expect(shell('npx ingot signoff')).toMatchObject({ status: 2 })
    expect(shell('npx ingot signoff --help').stdout).toContain('Going back: ingot rollback')
  })
})
