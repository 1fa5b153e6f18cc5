import { describe, expect, it } from 'vitest'
import { chart } from './chart.ts'
import { readOptions } from './options.ts'
import { type Answer, Arrivals, parseMemory, type Side, stepSeconds } from './scenarios.ts'
import { operationsPerToken, shape, stateBytesPerToken } from './shapes.ts'
import { goalTable, type Measurement, rowsOf, type Subject, speedTable } from './table.ts'

const weights = { weights: 1e9, step: 1e9 }
const config = shape('Llama-3.2-1B')
const subject: Subject = { model: 'Llama-3.2-1B', format: 'q4', config, bytes: { ingot: weights, peer: weights } }
const peaks = { read: 100, bf16: 5000, i8: 10_000 }

const answer = (samples: number[], single?: number[]): Answer => ({
  device: 'test',
  openMs: 10,
  firstTokenMs: 30,
  samples,
  ...(single && { single }),
  stateTokens: 1000,
  stateTokenBytes: 1000,
  memory: { resident: 1.101e9, anonymous: 1e8, file: 1e9 },
})
const measurement = (side: Side, round: number, scenario: Measurement['scenario'], found: Answer): Measurement => ({
  model: 'Llama-3.2-1B',
  format: 'q4',
  scenario,
  round,
  side,
  answer: found,
})

describe('shapes', () => {
  it('count what is known of Llama-3.2-1B', () => {
    expect(operationsPerToken(config)).toBe(2 * 973_078_528)
    expect(stateBytesPerToken(config)).toBe(32_768)
  })
})

describe('rows', () => {
  const decode = [
    measurement('ingot', 0, 'decode1', answer([0.02, 0.02, 0.5])),
    measurement('peer', 0, 'decode1', answer([0.04])),
    measurement('ingot', 1, 'decode1', answer([0.01])),
    measurement('peer', 1, 'decode1', answer([0.04])),
    measurement('ingot', 2, 'decode1', answer([0.02])),
  ]

  it('pair rounds, take medians, and leave out what has no pair', () => {
    const [row, ...others] = rowsOf(subject, decode, peaks)
    expect(others).toEqual([])
    expect(row!.rounds).toBe(2)
    expect([row!.ratio.least, row!.ratio.most]).toEqual([2, 4])
    expect(row!.peer.value.median).toBe(25)
    expect(row!.ingot.overhead).toBeCloseTo(1e8)
  })

  it('give the share of the read bandwidth: weights and state over time', () => {
    const [row] = rowsOf(subject, decode.slice(0, 2), peaks)
    expect(row!.peer.share).toBeCloseTo((1e9 + 16.5 * 1000) / 0.04 / 100e9)
  })

  it('give the share of the matrix peak', () => {
    const pair = (['ingot', 'peer'] as const).map((side) => measurement(side, 0, 'prefill512', answer([0.5])))
    const [row] = rowsOf(subject, pair, peaks)
    expect(row!.ingot.share).toBeCloseTo((operationsPerToken(config) * 512) / 0.5 / 1e13)
  })

  it('compare step times within a process', () => {
    const pair = (['ingot', 'peer'] as const).map((side) =>
      measurement(side, 0, 'decode8', answer([0.03], [side === 'ingot' ? 0.025 : 0.01])),
    )
    const rows = rowsOf(subject, pair, peaks)
    expect(rows[0]!.ingot.stepRatio!.median).toBeCloseTo(1.2)
    expect(goalTable(rows)).toContain('| 1.20 | 3.00 | 1.30 | 1.12 |')
  })

  it('of a start are milliseconds, and less is better', () => {
    const pair = [
      measurement('ingot', 0, 'start', { ...answer([]), firstTokenMs: 50 }),
      measurement('peer', 0, 'start', { ...answer([]), firstTokenMs: 500 }),
    ]
    expect(rowsOf(subject, pair, peaks)[0]!.ratio.median).toBe(10)
  })

  it('are told with their verdict, in text and picture', () => {
    const distance = { error: 0.1, kl: 0.01, top1: 1 }
    const parity = { ingot: distance, peer: distance, timed: distance, pass: false }
    const rows = rowsOf({ ...subject, parity }, decode, peaks)
    expect(speedTable(rows)).toContain('FAIL')
    expect(speedTable(rows)).toContain('(2.00 to 4.00) | 2 |') // not of the third, which has no pair
    expect(chart(rows, 'a < b', 'note')).toMatch(/a &#60; b[\s\S]*parity FAILS[\s\S]*<\/svg>/)
  })
})

describe('step times', () => {
  it('count from the last first token to the first end, a step being a token of each sequence', () => {
    expect(
      stepSeconds([
        [0, 1000, 3000],
        [500, 1000, 3000, 9000],
      ]),
    ).toEqual([0.5, 2])
    expect(stepSeconds([[0, 10, 30]])).toEqual([0.01, 0.02])
  })

  it('end when the time is up, but not before every sequence has begun', () => {
    const arrivals = new Arrivals(2, 0)
    for (let i = 0; i < 60; i++) arrivals.add(0)
    expect(arrivals.enough).toBe(false)
    for (let i = 0; i < 60; i++) arrivals.add(1)
    expect(arrivals.enough).toBe(true)
  })
})

describe('the command line', () => {
  it('makes a quick run small, unless the user says otherwise', () => {
    const quick = readOptions(['node', 'run', '--quick', '--formats', 'q8'])
    expect([quick.layers, quick.rounds, quick.formats]).toEqual([2, 1, ['q8']])
    expect(quick.only).not.toContain('decode8192')
  })
})

describe('memory', () => {
  it('is read from /proc', () => {
    const status = 'VmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\nRssFile:\t     512 kB\n'
    expect(parseMemory(status)).toEqual({ resident: 2_097_152, anonymous: 1_048_576, file: 524_288 })
  })
})
