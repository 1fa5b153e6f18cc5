import { describe, expect, it } from 'vitest'
import type { Divergence, MatrixCell, MatrixReport, OperandStatistics } from './matrix-report.ts'
import { renderReport } from './report.ts'
import type { ReportData } from './report-data.ts'

const bounded = (value: number, allowed: number) => ({ value, allowed })
const statistics = (name: string): OperandStatistics => ({
  name,
  rows: 3,
  width: 8,
  min: -1,
  max: 2,
  mean: 0.25,
  rms: 0.5,
  nans: 0,
  infinities: 0,
  largest: { difference: 0.125, row: 2, column: 7 },
})
const divergence: Divergence = {
  judged: 'cpu',
  instruction: 7,
  op: 'attention',
  label: 'layers.1.attention',
  found: 'alone',
  error: bounded(0.3, 0.05),
  step: 0,
  row: 2,
  position: 2,
  inputs: [statistics('q')],
  outputs: [statistics('out')],
  states: [],
}
const cell = (changes: Partial<MatrixCell>): MatrixCell => ({
  model: 'tiny',
  precision: 'bf16',
  shape: 'text, batch of 4, whole',
  expected: 'reference',
  actual: 'cpu',
  verdict: 'pass',
  sameBits: false,
  metrics: {
    tokens: 100,
    maxAbs: bounded(0.1, 1),
    maxRel: 0.1,
    rms: bounded(0.02, 0.08),
    kl: bounded(1e-4, 1e-2),
    mismatchRatio: bounded(0, 1e-3),
    argmaxAgreement: 0.99,
    argmaxOutsideTies: bounded(0, 0),
    greedy: { matched: 15, total: 16, ties: 1, outsideTies: bounded(0, 0) },
  },
  layers: ['embed', 'layers.0', 'layers.1'].map((label, i) => ({
    label,
    instruction: 5 * i,
    mean: i * 1e-3,
    worst: bounded(i * 1e-2, 0.25),
  })),
  failures: [],
  ...changes,
})
const matrix: MatrixReport = {
  format: 'ingot-parity-matrix',
  version: 1,
  pass: false,
  created: '2026-01-02T03:04:05.000Z',
  seconds: 61,
  code: 'c'.repeat(64),
  corpus: 'd'.repeat(64),
  seed: 1,
  machine: { cpu: 'a processor', arch: 'x64', node: 'v20', ingot: '0.1.0' },
  rows: ['reference', 'cpu', 'cuda'].map((name) => ({
    name,
    backend: name,
    isa: '',
    description: name,
    deterministic: true,
    kernels: 'e'.repeat(64),
  })),
  models: [
    {
      name: 'tiny',
      precision: 'bf16',
      weights: 'bf16',
      state: 'bf16',
      layers: 2,
      vocab: 40,
      planSha256: 'f'.repeat(64),
      weightsSha256: 'a'.repeat(64),
    },
  ],
  shapes: [
    { name: 'text, batch of 4, whole', kind: 'text', prompts: [9], batch: 4, chunk: 4096, generate: 4, judged: true },
  ],
  cells: [
    cell({}),
    cell({ actual: 'cuda', verdict: 'fail', failures: ['the rms logit error: 3, allowed is 0.1'], divergence }),
    cell({ expected: 'cpu', actual: 'cuda', verdict: 'skipped', reason: 'cuda: no kernels' }),
  ],
  operations: [
    {
      row: 'cpu',
      model: 'tiny',
      precision: 'bf16',
      kind: 'text',
      op: 'linear',
      errors: [1e-3, 0, 2e-3],
      allowed: 1e-2,
    },
  ],
  reasons: { rms: 'because' },
}
const whole: ReportData = {
  title: 'A report',
  subtitle: 'of all parts',
  matrix,
  conformance: [
    {
      backend: 'cpu',
      pass: true,
      ops: [
        {
          op: 'moe',
          passed: 0,
          failed: 0,
          unsupported: [{ what: 'all', reason: 'no topology' }],
          expectedFailures: [{ what: 'f16', issue: '#7' }],
        },
      ],
    },
  ],
  performance: {
    machine: 'two cores',
    groups: [
      {
        name: 'decode',
        unit: 'tok/s',
        bars: [{ name: 'Ingot', value: 42, spread: [40, 44], own: true }],
        ceiling: 50,
        threshold: 30,
      },
    ],
  },
  scores: [{ name: 'kernel defects', caught: 33, total: 34 }],
  certificate: {
    verdict: 'pass',
    keyId: 'key-1',
    issued: '2026-01-01',
    expires: '2027-01-01',
    subjects: [{ name: 'plan', sha256: 'b'.repeat(64) }],
  },
  ledger: { entries: [{ index: 0, time: '2026-01-01', what: 'opened', by: 'Models', hash: '9'.repeat(64) }] },
  commands: ['npx ingot parity --matrix'],
}

/** Every element that opens closes: what a browser forgives hides what is missing. */
function unbalanced(html: string): string[] {
  const open: string[] = []
  for (const [, close, name, rest] of html.matchAll(/<(\/?)([a-z][a-z0-9]*)([^>]*)>/g)) {
    if (['meta', 'br', 'html', 'body'].includes(name!) || rest!.endsWith('/')) continue
    if (!close) open.push(name!)
    else if (open.pop() !== name) return [`</${name}>`]
  }
  return open
}

describe('a report', () => {
  const html = renderReport(whole)

  it('shows every part that it was given', () => {
    for (const text of [
      'A report',
      'of all parts',
      'Fails',
      '1 of 2',
      'layers.1.attention',
      '0.125 at (2, 7)',
      'no topology',
      '#7',
      '42',
      '33 of 34',
      'key-1',
      'opened',
      '$ </span>npx ingot parity --matrix',
      'because',
      'cuda: no kernels',
    ])
      expect(html).toContain(text)
    expect(html.match(/<svg/g)!.length).toBe(2)
    expect(unbalanced(html)).toEqual([])
  })

  it('needs nothing but itself', () => {
    expect(html).not.toMatch(/https?:|src=|<link|<script|url\(|@import/)
    expect(html).toMatch(/prefers-color-scheme: dark/)
    expect(html).toMatch(/name="viewport"/)
  })

  it('leaves out what it was not given', () => {
    const bare = renderReport({ title: 'Bare' })
    expect(bare).not.toMatch(/<section|<h2|undefined|NaN/)
    expect(html).not.toMatch(/undefined|NaN<\/?(td|b|text)/)
    expect(renderReport({ title: 'Signed', pass: true })).toContain('Passes')
  })

  it('takes nothing for HTML', () => {
    const evil = '<img src=x onerror="alert(1)">\'&'
    const spoil = (value: unknown): unknown =>
      typeof value === 'string' &&
      !/^[0-9a-f]{64}$|^\d{4}-|^(pass|fail|skipped|alone|text|ingot-parity-matrix|linear)$/.test(value)
        ? evil
        : Array.isArray(value)
          ? value.map(spoil)
          : value && typeof value === 'object'
            ? Object.fromEntries(Object.entries(value).map(([key, each]) => [key, spoil(each)]))
            : value
    const spoiled = renderReport(spoil(whole) as ReportData)
    expect(spoiled).toContain('&lt;img')
    expect(spoiled).not.toContain('<img')
    expect(spoiled).not.toMatch(/="[^"]*<img/)
    expect(unbalanced(spoiled)).toEqual([])
  })
})
