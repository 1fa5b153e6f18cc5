import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { compile, type Model, open } from '../index.ts'
import { randomPrompts } from './measure.ts'
import { type Profile, profile } from './profile.ts'
import { profileHtml, profileSvg } from './profile-chart.ts'
import { timeDecode } from './step.ts'

const folder = mkdtempSync(join(tmpdir(), 'ingot-profile-'))
const path = join(folder, 'a<b.ingot')
beforeAll(() => compile(join(packageRoot(), 'checkpoints/storyteller-1m'), { out: path }))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const generate = (model: Model, prompt: number, maxTokens: number) =>
  model
    .generate(randomPrompts(1, prompt, model.info.vocab)[0]!, { maxTokens, temperature: 0, ignoreEos: true })
    .result()

describe('a tally', () => {
  it('counts every step, instruction and token by phase, and no more time than the steps took', async () => {
    await using model = await open(path, { maxSlots: 2, maxTokensPerStep: 8, threads: 2 })
    expect(await model.tally()).toBeUndefined()
    await model.setTally(true)
    const start = performance.now()
    await generate(model, 20, 5)
    const wall = (performance.now() - start) * 1e6
    const { prefill, decode } = (await model.tally())!
    // chunks of 8, 8 and 4 tokens, of which the last gives the first of five tokens
    expect(prefill).toMatchObject({
      steps: 3,
      tokens: 20,
      rows: 1,
      sequences: 3,
      positions: 8 + 16 + 20,
      attended: 210,
    })
    expect(decode).toMatchObject({ steps: 4, tokens: 4, rows: 4, sequences: 4, positions: 90, attended: 90 })
    for (const { steps, nanoseconds, states, results, instructionCalls, instructionNanoseconds } of [prefill, decode]) {
      expect(instructionCalls.length).toBe(model.plan.instructions.length)
      expect(Math.max(...instructionCalls)).toBe(steps)
      const inside = instructionNanoseconds.reduce((sum, ns) => sum + ns, 0)
      expect(inside).toBeGreaterThan(0)
      expect(inside + states + results).toBeLessThanOrEqual(nanoseconds)
      expect(nanoseconds).toBeLessThan(wall)
    }
    const logits = model.plan.instructions.findIndex(({ op }) => op === 'logits')
    expect(prefill.instructionCalls[logits]).toBe(1)
  })

  it('starts at zero, ends, and changes no output', async () => {
    await using model = await open(path, { maxSlots: 2, prefixCache: false })
    const plain = await generate(model, 9, 6)
    await model.setTally(true)
    expect((await generate(model, 9, 6)).tokens).toEqual(plain.tokens)
    await model.setTally(true)
    expect((await model.tally())!.decode).toMatchObject({ steps: 0, nanoseconds: 0 })
    await model.setTally(false)
    await generate(model, 9, 2)
    expect(await model.tally()).toBeUndefined()
  })

  it('waits for the requests under way', async () => {
    await using model = await open(path, { maxSlots: 2 })
    await model.setTally(true)
    const running = generate(model, 9, 12)
    await new Promise((resolve) => setTimeout(resolve, 1))
    expect((await model.tally())!.decode.steps).toBe(11)
    await running
  })

  it.each(['null', 'reference'])('is refused by the %s backend', async (backend) => {
    await using model = await open(path, { backend, maxSlots: 1 })
    await expect(model.setTally(true)).rejects.toMatchObject({ code: 'TALLY_MISSING', details: { backend } })
  })
})

describe('timeDecode', () => {
  it('times steps in which every sequence decodes', async () => {
    await using model = await open(path, { maxSlots: 3, maxTokensPerStep: 16, contextTokens: 128, prefixCache: false })
    await model.setTally(true)
    const times = await timeDecode(model, randomPrompts(3, 24, model.info.vocab), 10)
    expect(times.length).toBe(10)
    expect(Math.min(...times)).toBeGreaterThan(0)
    const { decode } = (await model.tally())!
    expect(decode.tokens).toBe(3 * decode.steps)
    expect(decode.steps).toBeGreaterThanOrEqual(10)
  })

  it('answers means where steps are submitted ahead', async () => {
    await using model = await open(path, { maxSlots: 3, contextTokens: 128, prefixCache: false, pipelined: true })
    expect(await timeDecode(model, randomPrompts(3, 24, model.info.vocab), 10)).toHaveLength(7)
  })
})

describe('profile', () => {
  let found: Profile
  beforeAll(async () => {
    const sizes = { prompt: 40, context: 24, generate: 8, batches: [1, 3], repeats: 2 }
    found = await profile(path, { backend: 'cpu', threads: 1, ...sizes })
  }, 60_000)

  it('explains all of the time', () => {
    expect(found.scenarios.map(({ name }) => name)).toEqual(['prefill 40', 'decode 1 after 24', 'decode 3 after 24'])
    for (const { opcodes, instructions, outside, ms } of found.scenarios) {
      const sum = (rows: readonly { share: number }[]) => rows.reduce((total, { share }) => total + share, 0)
      expect(sum(opcodes) + sum(outside)).toBeCloseTo(1, 6)
      expect(sum(instructions)).toBeCloseTo(sum(opcodes), 9)
      expect(Math.min(...outside.map((row) => row.ms))).toBeGreaterThanOrEqual(0)
      expect(ms).toBeGreaterThan(0)
    }
  })

  it('relates bytes and operations to the time and the limits', () => {
    for (const { opcodes } of found.scenarios) {
      const linear = opcodes.find(({ name }) => name === 'linear')!
      expect(linear.bytes / linear.ms / 1e6).toBeCloseTo(linear.gigabytesPerSecond, 6)
      expect(linear.readShare).toBeCloseTo(linear.gigabytesPerSecond / found.ceilings.read.median, 6)
      expect(linear.peakShare).toBeCloseTo(linear.gigaoperationsPerSecond / found.ceilings.peak.bf16.median, 6)
      expect(linear.limitShare).toBeCloseTo(Math.max(linear.readShare, linear.peakShare), 6)
    }
    const [, one, three] = found.scenarios.map(({ opcodes }) => opcodes.find(({ name }) => name === 'linear')!)
    expect(three!.bytes).toBe(one!.bytes)
    expect(three!.operations).toBeCloseTo(3 * one!.operations, 3)
  })

  it('is drawn without a link to anything, whatever its name', () => {
    const svg = profileSvg(found)
    expect(svg).toContain('a&lt;b: where the time goes')
    for (const text of [svg, profileHtml(found)]) {
      expect(text.replace('http://www.w3.org/2000/svg', '')).not.toMatch(/https?:|NaN|Infinity|undefined/)
      expect(text).toContain('decode 3 after 24')
      expect(text.match(/<g>/g)?.length).toBe(text.match(/<\/g>/g)?.length)
    }
  })
})
