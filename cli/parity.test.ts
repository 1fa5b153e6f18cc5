/** `ingot parity --matrix` and `ingot replay` as a shell sees them. Runs the built dist/. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { compile, open } from '../index.ts'
import type { MatrixReport } from '../parity/matrix-report.ts'
import { ingotIn } from './ingot.test-command.ts'

const root = packageRoot()
const golden = join(root, 'parity/goldens/llama')
const folder = mkdtempSync(join(tmpdir(), 'ingot-cli-parity-'))
const pkg = join(folder, 'llama.ingot')

const ingot = ingotIn(folder)

beforeAll(() => compile(golden, { out: pkg }))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

it('parity --matrix prints a line a pair, writes the matrix and the page, and shows them again', () => {
  const [file, page] = [join(folder, 'matrix.json'), join(folder, 'report.html')]
  const bench = join(root, 'bench/results/peers-2026-11-21-intel-xeon-2-llama-3-2-1b-q4.json')
  const args = ['--backends', 'reference,cpu', '--precisions', 'bf16', '-o', file, '--html', page, '--bench', bench]
  const { status, stdout, stderr } = ingot('parity', '--matrix', golden, ...args)
  expect(status, stderr).toBe(0)
  expect(stdout).toMatch(/^ok {3}llama, bf16 by reference: 3 shapes, rms error/)
  expect(stdout).toMatch(/pass: 3 cells pass, 0 fail, 0 skipped/)
  expect(stderr).toMatch(/parity 100 %/)
  const matrix = JSON.parse(readFileSync(file, 'utf8')) as MatrixReport
  expect(matrix).toMatchObject({ format: 'ingot-parity-matrix', version: 1, pass: true })
  const html = readFileSync(page, 'utf8')
  expect(html).toContain('node-llama-cpp')
  expect(html).toContain('npx ingot parity --matrix')
  const again = ingot('parity', '--from', file, '--json')
  expect(again.status).toBe(0)
  expect(again.json()).toEqual(matrix)
  const [first, ...others] = matrix.cells
  const failed = { ...matrix, pass: false, cells: [{ ...first, verdict: 'fail', failures: ['x'] }, ...others] }
  writeFileSync(file, JSON.stringify(failed))
  expect(ingot('parity', '--from', file).status).toBe(1)
  writeFileSync(file, '{}')
  expect(ingot('parity', '--from', file)).toMatchObject({
    status: 1,
    stderr: expect.stringContaining('MATRIX_INVALID'),
  })
})

it('replay runs a recorded step again on any backend, and names what parts them', async () => {
  const record = join(folder, 'steps')
  {
    await using model = await open(pkg, { record, maxSlots: 1 })
    await model.generate([3, 1, 4, 1, 5, 9, 2, 6], { maxTokens: 6, temperature: 0, ignoreEos: true }).result()
  }
  const step = join(record, readdirSync(record).sort().at(-1)!)
  expect(ingot('replay', step, pkg)).toMatchObject({
    status: 0,
    stdout: expect.stringMatching(/^pass: cpu against the record, the same/),
  })
  const bisected = ingot('replay', step, pkg, '--bisect', '--json')
  expect(bisected.status).toBe(0)
  expect(bisected.json()).toMatchObject({ pass: true, expected: 'reference', divergence: { found: 'largest' } })
  const text = readFileSync(step, 'utf8')
  writeFileSync(step, text.replace(/"history":\[3,/, '"history":[4,'))
  expect(ingot('replay', step, pkg)).toMatchObject({
    status: 1,
    stdout: expect.stringMatching(/^FAIL: cpu against the record/),
  })
  writeFileSync(step, text.replace(/"plan":"./, '"plan":"x'))
  expect(ingot('replay', step, pkg)).toMatchObject({ status: 1, stderr: expect.stringContaining('RECORD_INVALID') })
})

it.each([
  ['neither golden nor matrix', ['parity', pkg]],
  ['both', ['parity', pkg, '--matrix', '--golden', 'x']],
  ['an option that a matrix does not read', ['parity', '--matrix', pkg, '--isa', 'avx2']],
  ['an option that is of a matrix only', ['parity', '--ops', '--html', 'x.html']],
  ['an unknown precision', ['parity', '--matrix', pkg, '--precisions', 'f8']],
  ['an unknown backend', ['parity', '--matrix', pkg, '--backends', 'reference,abacus']],
  ['an unknown instruction set', ['parity', '--matrix', pkg, '--backends', 'reference,cpu:mmx']],
  ['one row', ['parity', '--matrix', pkg, '--backends', 'cpu']],
])('exits 2 for %s', (_, args) => {
  const { status, stdout } = ingot(...args)
  expect(status).toBe(2)
  expect(stdout).toBe('')
})
