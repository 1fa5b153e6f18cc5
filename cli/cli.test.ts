/** The command as a shell sees it: stdout is data, stderr is progress, exit codes 0, 1, 2. Runs the built dist/. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { opNames } from '../abi/ops/index.ts'
import { ingotIn } from './ingot.test-command.ts'

const root = packageRoot()
const golden = join(root, 'parity/goldens/llama')
const folder = mkdtempSync(join(tmpdir(), 'ingot-cli-'))
const pkg = join(folder, 'llama.ingot')
const quantised = join(folder, 'llama-q8.ingot')

const ingot = ingotIn(folder)

beforeAll(() => {
  expect(ingot('compile', golden, '-o', pkg).status).toBe(0)
  expect(ingot('compile', golden, '-o', quantised, '--quantize', 'q8', '--quiet').status).toBe(0)
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('ingot', () => {
  it('compile prints the plan hash, shows progress on stderr, and is reproducible', () => {
    const again = ingot('compile', golden, '-o', join(folder, 'again.ingot'), '--json')
    expect(again.stderr).toMatch(/compile 100 %/)
    expect(again.json()).toMatchObject({ planHash: ingot('inspect', pkg, '--json').json().planHash })
    expect(readFileSync(join(folder, 'again.ingot/manifest.json'))).toEqual(readFileSync(join(pkg, 'manifest.json')))
  })

  it('compile --quiet writes nothing to stderr', () => {
    expect(ingot('compile', golden, '-o', join(folder, 'quiet.ingot'), '--quiet').stderr).toBe('')
  })

  it('inspect prints memory, state and instructions, and writes a page', () => {
    const page = join(folder, 'plan.html')
    const { status, stdout } = ingot('inspect', pkg, '--html', page)
    expect(status).toBe(0)
    expect(stdout).toMatch(/peak/)
    expect(stdout).toMatch(/layers\.0\.attention/)
    const html = readFileSync(page, 'utf8')
    expect(html).toMatch(/<svg/)
    expect(html).not.toMatch(/https?:\/\/(?!www\.w3\.org)/)
  })

  it('diff exits 0 for the same plan and 1 with the difference', () => {
    expect(ingot('diff', pkg, join(folder, 'again.ingot')).status).toBe(0)
    const { status, stdout } = ingot('diff', pkg, quantised)
    expect(status).toBe(1)
    expect(stdout).toMatch(/i8/)
  })

  it('verify accepts a sound package and refuses one flipped byte of any file', () => {
    expect(ingot('verify', pkg, '--json').json()).toMatchObject({ ok: true })
    for (const name of ['plan.bin', 'weights.safetensors', 'manifest.json']) {
      const bad = join(folder, 'bad.ingot')
      rmSync(bad, { recursive: true, force: true })
      cpSync(pkg, bad, { recursive: true })
      const bytes = readFileSync(join(bad, name))
      bytes[bytes.length >> 1]! ^= 1
      writeFileSync(join(bad, name), bytes)
      const { status, stdout } = ingot('verify', bad, '--json')
      expect(status, name).toBe(1)
      expect(JSON.parse(stdout), name).toMatchObject({ ok: false, message: expect.stringContaining(name) })
    }
  })

  it('inspect lists measured choices of kernels, which verify and the plan do not know', () => {
    const tuned = join(folder, 'tuned.ingot')
    cpSync(pkg, tuned, { recursive: true })
    mkdirSync(join(tuned, 'tuning'))
    const time = { low: 1, median: 2, high: 3 }
    const entry = (rows: number, chosen: string) => ({
      ...{ opcode: 'linear', dtype: 'bf16', shape: 'n 64, k 64, branches 1', rows, deterministic: false },
      ...{ instructions: 2, rule: 'stream', chosen, step: { stream: time, tile: time } },
    })
    const file = {
      ...{ format: 1, ingot: '0', measured: '2026-01-31T12:00:00Z', backend: 'cuda', device: 'A GPU' },
      ...{ capability: '9.0', driver: 'CUDA 13.0', kernels: 'ab12', contextTokens: 8 },
      entries: [entry(8, 'tile'), entry(1, 'stream'), entry(2, 'stream'), entry(16, 'tile')],
    }
    writeFileSync(join(tuned, 'tuning', 'a.json'), JSON.stringify(file))
    writeFileSync(join(tuned, 'tuning', 'b.json'), '{')
    const { stdout } = ingot('inspect', tuned)
    expect(stdout).toContain('tuning a.json: 4 choices for A GPU, CUDA 13.0')
    expect(stdout).toContain('default linear bf16 n 64, k 64, branches 1 x 2: 1-2 stream, 8-16 tile (rule stream)')
    expect(stdout).toMatch(/tuning b\.json: unreadable: .*not valid JSON/)
    expect(ingot('inspect', tuned, '--json').json().tuning).toMatchObject([
      { file: 'a.json', device: 'A GPU', entries: file.entries },
      { file: 'b.json', error: expect.stringContaining('not valid JSON') },
    ])
    expect(ingot('verify', tuned, '--json').json()).toMatchObject({ ok: true })
    expect(ingot('diff', pkg, tuned).status).toBe(0)
    expect(
      ingot('bench', tuned, '--no-tuning', '--prompt', '16', '--batch', '1', '--generate', '2', '--quiet').status,
    ).toBe(0)
  })

  it('parity passes on both backends and prints the documented JSON', () => {
    for (const backend of ['reference', 'cpu']) {
      const { status, json } = ingot(
        'parity',
        pkg,
        '--golden',
        join(golden, 'golden.safetensors'),
        '--backend',
        backend,
        '--json',
      )
      expect(status, backend).toBe(0)
      const report = json()
      expect(report).toMatchObject({ pass: true, backend, reference: expect.stringContaining('transformers') })
      expect(Object.keys(report.cases[0])).toEqual(
        expect.arrayContaining(['name', 'tokens', 'maxAbs', 'maxRel', 'kl', 'argmaxAgreement', 'greedy']),
      )
      expect(report.cases[0].greedy).toMatchObject({ matched: 24, total: 24, firstDivergence: null })
    }
  })

  it('parity exits 1 when the golden belongs to other weights', () => {
    const other = join(root, 'parity/goldens/qwen3/golden.safetensors')
    expect(ingot('parity', pkg, '--golden', other, '--quiet').status).toBe(1)
  })

  it('parity --ops judges every opcode of a backend', () => {
    const { status, json } = ingot('parity', '--ops', '--quick', '--isa', 'portable', '--json')
    expect(status).toBe(0)
    const report = json()
    expect(report).toMatchObject({ pass: true, backend: 'cpu', isa: 'portable', slice: 'thin', guarded: true })
    expect(new Set(report.cells.map(({ op }: { op: string }) => op)).size).toBe(opNames.length)
  })

  it('bench prints the documented JSON', () => {
    const { status, json } = ingot(
      'bench',
      pkg,
      '--prompt',
      '16',
      '--generate',
      '4',
      '--batch',
      '1,2',
      '--repeats',
      '1',
      '--json',
    )
    expect(status).toBe(0)
    const report = json()
    expect(Object.keys(report)).toEqual([
      'backend',
      'device',
      'model',
      'weightsBytes',
      'stateBytesPerToken',
      'peakBytes',
      'launchesPerStep',
      'loadMs',
      'ceilings',
      'prefill',
      'decode',
    ])
    expect(report.decode[0].readShare).toBeCloseTo(report.decode[0].gigabytesPerSecond / report.ceilings.read.median, 6)
    expect(report.prefill[0].peakShare).toBeGreaterThan(0)
    expect(report.decode.map((cell: { batch: number }) => cell.batch)).toEqual([1, 2])
    expect(report.launchesPerStep).toBe(ingot('inspect', pkg, '--json').json().instructions.length)
  })

  it('bench --profile explains the time by opcode and instruction, and draws it', () => {
    const svg = join(folder, 'profile.svg')
    const html = join(folder, 'profile.html')
    const sizes = ['--prompt', '16', '--context', '8', '--generate', '4', '--sequences', '1,2', '--repeats', '1']
    const { status, stdout } = ingot('bench', pkg, '--profile', ...sizes, '--svg', svg)
    expect(status).toBe(0)
    expect(stdout).toMatch(/prefill 16: .*linear.*host \(JavaScript\).*decode 2 after 8: /s)
    expect(readFileSync(svg, 'utf8')).toMatch(/^<svg /)
    const { scenarios } = ingot('bench', pkg, '--profile', ...sizes, '--html', html, '--json').json()
    expect(scenarios.length).toBe(3)
    expect(scenarios[0].instructions.length).toBe(ingot('inspect', pkg, '--json').json().instructions.length)
    expect(readFileSync(html, 'utf8')).toMatch(/<svg .*<table>/s)
    const refused = ingot('bench', pkg, '--profile', '--backend', 'null', ...sizes, '--quiet')
    expect(refused).toMatchObject({ status: 1, stderr: expect.stringMatching(/^ConfigError TALLY_MISSING: /) })
    expect(ingot('bench', pkg, '--svg', svg)).toMatchObject({ status: 2 })
    expect(ingot('doctor', '--probe', '--json').json().limits.read.median).toBeGreaterThan(0)
  })

  it('run streams the text, and says so as JSON', () => {
    const checkpoint = join(root, 'checkpoints/storyteller-1m')
    const story = join(folder, 'story.ingot')
    expect(ingot('compile', checkpoint, '-o', story, '--quiet').status).toBe(0)
    const options = ['--max-tokens', '12', '--temperature', '0']
    const text = ingot('run', story, 'Once upon a time', ...options).stdout
    const report = ingot('run', story, 'Once upon a time', ...options, '--json').json()
    expect(text).toBe(`${report.text}\n`)
    expect(report).toMatchObject({ finishReason: 'length', usage: { completionTokens: 12 } })
    expect(ingot('run', story, 'Spell the word Rome.', '--chat', '--temperature', '0').stdout.trim()).toBe('R-o-m-e')

    const guessed = ingot('run', story, 'Once upon a time', ...options, '--draft', story, '--guesses', '3', '--json')
    expect(guessed.json()).toMatchObject({
      tokens: report.tokens,
      // All are right; but a model that drafts for itself costs more than it saves, and gives up.
      usage: { proposedTokens: 6, acceptedTokens: 6 },
    })
    const sizes = ['--prompt', '8', '--generate', '12', '--batch', '1,2', '--repeats', '1']
    const { cells } = ingot('bench', story, '--draft', story, ...sizes, '--json').json()
    expect(cells).toMatchObject([
      { batch: 1, acceptance: 1 },
      { batch: 2, acceptance: 1 },
    ])
    expect(ingot('bench', story, '--lookup', ...sizes).stdout).toMatch(/guesses by lookup, at most 4/)
    for (const wrong of [
      ['--draft', story, '--lookup'],
      ['--guesses', '2'],
      ['--lookup', '--profile'],
    ])
      expect(ingot('bench', story, ...wrong)).toMatchObject({ status: 2, stderr: expect.stringMatching(/USAGE/) })
  })

  it.skipIf(!existsSync('/dev/full'))('says on one line that stdout cannot be written', () => {
    const full = openSync('/dev/full', 'w')
    const main = join(root, 'dist/cli/main.js')
    const { status, stderr } = spawnSync(process.execPath, [main, 'inspect', pkg], { stdio: ['ignore', full, 'pipe'] })
    closeSync(full)
    expect(status).toBe(1)
    expect(`${stderr}`).toMatch(/^ConfigError OUTPUT_UNWRITABLE: cannot write the standard output: .*\n$/)
  })

  it('compile goes on when nobody reads its progress', async () => {
    const path = join(folder, 'unread.ingot')
    const main = join(root, 'dist/cli/main.js')
    const child = spawn(process.execPath, [main, 'compile', golden, '-o', path], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    child.stderr.destroy()
    expect(await once(child, 'exit')).toEqual([0, null])
    expect(existsSync(path)).toBe(true)
  })

  it('compile leaves nothing when it is interrupted', async () => {
    const place = mkdtempSync(join(folder, 'interrupted-'))
    const args = [join(root, 'dist/cli/main.js'), 'compile', join(root, 'checkpoints/storyteller-7m')]
    const child = spawn(process.execPath, [...args, '-o', join(place, 'x.ingot')], {
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    let stderr = ''
    child.stderr.on('data', (chunk) => {
      if (stderr === '') child.kill('SIGINT')
      stderr += chunk
    })
    expect(await once(child, 'close')).toEqual([1, null])
    expect(stderr).toContain('ABORTED')
    expect(readdirSync(place)).toEqual([])
  })

  it('doctor names the instruction set and why other backends are absent', () => {
    const { status, json } = ingot('doctor', '--json')
    expect(status).toBe(0)
    expect(json().machine.available).toContain('portable')
    expect(json().backends).toContainEqual({ name: 'triton', code: 'not_built', reason: expect.any(String) })
  })

  it.each([
    ['an unknown command', ['frobnicate']],
    ['an unknown option', ['verify', pkg, '--frobnicate']],
    ['a missing argument', ['compile']],
    ['a missing golden file', ['parity', pkg]],
    ['a bad number', ['bench', pkg, '--prompt', 'many']],
    ['an unknown backend', ['run', pkg, 'x', '--backend', 'abacus']],
    ['an unknown instruction set', ['run', pkg, 'x', '--isa', 'mmx']],
  ])('exits 2 for %s', (_, args) => {
    const { status, stdout, stderr } = ingot(...args)
    expect(status).toBe(2)
    expect(stdout).toBe('')
    expect(stderr).not.toBe('')
  })

  it.each([
    ['a missing checkpoint', ['compile', 'nowhere'], 'FILE_MISSING'],
    ['a missing package', ['run', 'nowhere.ingot', 'x'], 'FILE_MISSING'],
    ['text without a tokenizer', ['run', pkg, 'x'], 'TOKENIZER_MISSING'],
    ['a name with a line break', ['run', 'no\nwhere', 'x'], 'FILE_MISSING'],
    ['nothing to tune', ['tune', pkg, '--backend', 'cpu'], 'TUNING_MISSING'],
    ['an output that is not a package', ['compile', golden, '-o', folder], 'OUTPUT_EXISTS'],
  ])('exits 1 with one typed line for %s', (_, args, code) => {
    const { status, stderr } = ingot(...args, '--quiet')
    expect(status).toBe(1)
    expect(stderr).toContain(code)
    expect(stderr.trim().split('\n')).toHaveLength(1)
  })
})
