/** The library as its users call it: compile, open, generate, dispose, from the main thread and from workers. */
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Worker } from 'node:worker_threads'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from './abi/native.ts'
import { ConfigError, compile, DeviceError, type Model, open, PlanError } from './index.ts'

const root = packageRoot()
const folder = mkdtempSync(join(tmpdir(), 'ingot-index-'))
const story = join(folder, 'story.ingot')
const ids = [5, 6, 7]
const greedy = { temperature: 0, maxTokens: 8, ignoreEos: true } as const

beforeAll(() => compile(join(root, 'checkpoints/storyteller-1m'), { out: story }))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** Names of the pool's threads in this process; none where the system does not list them. */
function workersOfPool(): string[] {
  const folder = '/proc/self/task'
  if (!existsSync(folder)) return []
  const names = readdirSync(folder).map((task) => readFileSync(join(folder, task, 'comm'), 'utf8').trim())
  return names.filter((name) => /^ingot-\d+$/.test(name))
}

async function withModel<T>(options: Parameters<typeof open>[1], work: (model: Model) => Promise<T>): Promise<T> {
  await using model = await open(story, options)
  return await work(model)
}

describe('a model', () => {
  it('streams what result() returns', () =>
    withModel({}, async (model) => {
      const generation = model.generate('Once upon a time', { maxTokens: 30, seed: 3 })
      let streamed = ''
      for await (const { text } of generation) streamed += text
      const { text, usage, seed } = await generation.result()
      expect(streamed).toBe(text)
      expect(usage).toMatchObject({ completionTokens: 30, promptTokens: 4 })
      expect(seed).toBe(3)
    }))

  it('answers a chat', () =>
    withModel({}, async (model) => {
      const { text, finishReason } = await model
        .chat([{ role: 'user', content: 'Spell the word Rome.' }], { temperature: 0 })
        .result()
      expect(text).toBe('R-o-m-e')
      expect(finishReason).toBe('eos')
    }))

  it('embeds texts as unit vectors, the same ones in any company', () =>
    withModel({}, async (model) => {
      const [alone] = await model.embed('a fox and a goat')
      const [, second] = await model.embed(['a long way to the castle', 'a fox and a goat', 'bread'])
      expect(alone).toHaveLength(model.info.hidden)
      expect(Math.hypot(...alone!)).toBeCloseTo(1, 5)
      expect(second).toEqual(alone)
    }))

  it('gives logits of every token, whose best is what greedy generation chooses', () =>
    withModel({}, async (model) => {
      const logits = await model.logits(ids)
      expect(logits).toHaveLength(ids.length * model.info.vocab)
      const last = logits.subarray(-model.info.vocab)
      const { tokens } = await model.generate(ids, greedy).result()
      expect(last.indexOf(Math.max(...last))).toBe(tokens[0])
    }))

  it('never chooses a token whose bias is -Infinity, and others in the batch notice nothing', () =>
    withModel({}, async (model) => {
      const free = await model.generate(ids, greedy).result()
      const logitBias = { [free.tokens[0]!]: Number.NEGATIVE_INFINITY }
      const [barred, other] = await Promise.all(
        [{ ...greedy, logitBias }, greedy].map((options) => model.generate(ids, options).result()),
      )
      expect(barred!.tokens).not.toContain(free.tokens[0])
      expect(other!.tokens).toEqual(free.tokens)
    }))

  it('runs beside others in one process with the same outputs', async () => {
    const expected = await withModel({}, (model) => model.generate(ids, greedy).result())
    const results = await Promise.all(
      Array.from({ length: 4 }, () => withModel({ maxSlots: 2 }, (model) => model.generate(ids, greedy).result())),
    )
    for (const { tokens } of results) expect(tokens).toEqual(expected.tokens)
  })

  it('runs in worker threads, and survives one that is terminated while it generates', async () => {
    const expected = await withModel({}, (model) => model.generate(ids, greedy).result())
    const source = `
      import { parentPort, workerData } from 'node:worker_threads'
      const { open } = await import(workerData.index)
      const model = await open(workerData.story)
      parentPort.postMessage((await model.generate([5, 6, 7], { temperature: 0, maxTokens: 8, ignoreEos: true }).result()).tokens)
      for (let i = 0; i < 8; i++) model.generate([i + 1], { maxTokens: 900, ignoreEos: true }).result().catch(() => {})
    `
    const index = pathToFileURL(join(root, 'dist/index.js')).href
    const start = () =>
      new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), { workerData: { index, story } })
    const workers = [start(), start()]
    const tokens = await Promise.all(
      workers.map((worker) => new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))),
    )
    expect(tokens).toEqual([expected.tokens, expected.tokens])
    await Promise.all(workers.map((worker) => worker.terminate()))
    expect((await withModel({}, (model) => model.generate(ids, greedy).result())).tokens).toEqual(expected.tokens)
  })

  it('shares one pool with others, which uses no processor while nothing runs', async () => {
    const options = { threads: 2, maxSlots: 2 }
    const expected = await withModel(options, (model) => model.generate(ids, greedy).result())
    await using one = await open(story, options)
    await using two = await open(story, options)
    const long = { ...greedy, maxTokens: 100 }
    const results = await Promise.all([one, two, one, two].map((model) => model.generate(ids, long).result()))
    for (const { tokens } of results) expect(tokens.slice(0, 8)).toEqual(expected.tokens)
    expect(workersOfPool().filter((name) => name === 'ingot-1')).toHaveLength(workersOfPool().length > 0 ? 1 : 0)
    await new Promise((resolve) => setTimeout(resolve, 20))
    const before = process.cpuUsage()
    await new Promise((resolve) => setTimeout(resolve, 300))
    const { user, system } = process.cpuUsage(before)
    expect((user + system) / 1000).toBeLessThan(60)
  })

  it('says whether its threads are held to cores, and why not', async () => {
    const pinning = (options: Parameters<typeof open>[1]) => withModel(options, async (model) => model.device.pinning!)
    expect(await pinning({ pin: false })).toEqual({ pinned: false, reason: 'not asked for' })
    const many = await pinning({ pin: true, threads: 1024 })
    expect(many).toMatchObject({ pinned: false, reason: expect.stringMatching(/cores/) })
    const held = await withModel({ pin: true, threads: 1 }, (model) => model.generate(ids, greedy).result())
    const free = await withModel({ pin: false, threads: 1 }, (model) => model.generate(ids, greedy).result())
    expect(held.tokens).toEqual(free.tokens)
  })

  it('launches as many kernels for one sequence as for many', () =>
    withModel({ maxSlots: 8 }, async (model) => {
      await model.generate(ids, greedy).result()
      const one = model.stats().launchesPerStep
      await Promise.all(Array.from({ length: 8 }, (_, i) => model.generate([i + 3], greedy).result()))
      expect(model.stats()).toMatchObject({ launchesPerStep: one, slotLaunchesPerStep: 0 })
      expect(one).toBe(model.plan.instructions.length)
    }))

  it('stops computing within a step of an abort, and frees the slot', () =>
    withModel({ maxSlots: 1 }, async (model) => {
      const controller = new AbortController()
      const long = model.generate(ids, { maxTokens: 1000, ignoreEos: true, signal: controller.signal })
      for await (const _ of long) break
      const aborted = model.generate(ids, { maxTokens: 1000, ignoreEos: true, signal: AbortSignal.abort() }).result()
      await expect(aborted).rejects.toMatchObject({ code: 'ABORTED' })
      expect((await model.generate(ids, greedy).result()).tokens).toHaveLength(8)
      expect(model.stats()).toMatchObject({ running: 0, waiting: 0 })
    }))

  it('refuses every call after dispose', async () => {
    const model = await open(story)
    const pending = model.generate(ids, { maxTokens: 1000, ignoreEos: true }).result()
    await Promise.all([expect(pending).rejects.toMatchObject({ code: 'DISPOSED' }), model.dispose()])
    await model.dispose()
    await expect(model.generate(ids).result()).rejects.toMatchObject({ code: 'MODEL_DISPOSED' })
    await expect(model.logits(ids)).rejects.toMatchObject({ code: 'MODEL_DISPOSED' })
    expect(() => model.stats()).toThrow(ConfigError)
  })
})

describe('open refuses', () => {
  it.each([
    ['an unknown option', { colour: 'blue' }, ConfigError, 'OPTION_UNKNOWN'],
    ['a bad value', { maxSlots: 0 }, ConfigError, 'OPTION_INVALID'],
    ['more context than the model has', { contextTokens: 4096 }, ConfigError, 'OPTION_INVALID'],
    ['an unknown backend', { backend: 'abacus' }, ConfigError, 'BACKEND_UNKNOWN'],
    ['a backend that is not built', { backend: 'triton' }, DeviceError, 'BACKEND_UNAVAILABLE'],
    ['an unknown instruction set', { isa: 'mmx' }, ConfigError, 'ISA_UNAVAILABLE'],
    ['more state than there is memory', { blocks: 2 ** 30 }, DeviceError, 'OUT_OF_MEMORY'],
    ['more state than can be counted', { stateBytes: Number.MAX_SAFE_INTEGER }, DeviceError, 'OUT_OF_MEMORY'],
  ])('%s', async (_, options, type, code) => {
    const error = await open(story, options as object).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(type)
    expect(error).toMatchObject({ code })
  })

  it.each([undefined, null, '', 7, {}])('%j as a path', async (path) => {
    await expect(open(path as string)).rejects.toMatchObject({ code: 'OPTION_INVALID', details: { option: 'package' } })
  })

  it('a package whose weights changed by one bit, unless told to trust them', async () => {
    const { writeFileSync } = await import('node:fs')
    const copy = join(folder, 'copy.ingot')
    cpSync(story, copy, { recursive: true })
    const weights = join(copy, 'weights.safetensors')
    const bytes = readFileSync(weights)
    bytes[bytes.length - 100]! ^= 1
    writeFileSync(weights, bytes)
    const error = await open(copy).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(PlanError)
    expect(error).toMatchObject({ code: 'HASH_MISMATCH', message: expect.stringContaining('weights.safetensors') })
    await (await open(copy, { integrity: 'structure' })).dispose()
  })
})

describe('generate refuses', () => {
  it.each([
    ['an empty prompt', [], {}, 'PROMPT_EMPTY'],
    ['a prompt longer than the context', Array.from({ length: 2000 }, () => 5), {}, 'PROMPT_TOO_LONG'],
    ['a token outside the vocabulary', [99_999], {}, 'TOKEN_OUT_OF_RANGE'],
    ['an unknown option', ids, { temprature: 1 }, 'OPTION_UNKNOWN'],
    ['a bad option', ids, { topP: 2 }, 'OPTION_INVALID'],
    ['a deadline that passes', ids, { deadlineMs: 1, maxTokens: 1000, ignoreEos: true }, 'DEADLINE_EXCEEDED'],
  ])('%s', async (_, prompt, options, code) => {
    await withModel({}, async (model) => {
      await expect(model.generate(prompt, options as object).result()).rejects.toMatchObject({ code })
      expect((await model.generate(ids, greedy).result()).tokens).toHaveLength(8)
    })
  })
})
