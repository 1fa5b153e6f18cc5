import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { ConfigError } from '../errors.ts'
import { capacity } from './capacity.ts'
import { leftovers, nothing, openFake } from './fixtures/model.ts'
import { fakePlan } from './fixtures/runner.ts'
import type { GenerateOptions } from './sampling.ts'
import type { TokenizerFiles } from './text/tokenizer.ts'

const folder = join(packageRoot(), 'checkpoints', 'storyteller-7m')
const read = (name: string) => readFileSync(join(folder, name), 'utf8')
const tokenizer: TokenizerFiles = {
  tokenizer: read('tokenizer.json'),
  config: read('tokenizer_config.json'),
  chatTemplate: read('chat_template.jinja'),
}
/** The fake model with the checkpoint's vocabulary: it babbles, in real tokens. */
const openText = (options = {}) => openFake(options, { vocab: 4096 }, { tokenizer })

describe('generate', () => {
  test('streams events that add up to the result', async () => {
    const { model } = openText()
    const generation = model.generate('Once upon a time', { maxTokens: 30, seed: 4, temperature: 1, logprobs: 3 })
    const events = []
    for await (const event of generation) events.push(event)
    const result = await generation.result()
    expect(events.map((event) => event.token)).toEqual(result.tokens)
    expect(events.map((event) => event.text).join('')).toBe(result.text)
    expect(result.text).toBe(model.detokenize(result.tokens))
    expect(result).toMatchObject({ finishReason: 'length', seed: 4, usage: { completionTokens: 30, cachedTokens: 0 } })
    expect(result.usage.promptTokens).toBe((await model.tokenize('Once upon a time')).length)
    expect(result.logprobs).toHaveLength(30)
    for (const { logprob, topLogprobs } of result.logprobs!) {
      expect(topLogprobs).toHaveLength(3)
      expect(topLogprobs[0]!.logprob).toBeGreaterThanOrEqual(logprob)
    }
    const { queuedMs, firstTokenMs, totalMs, tokensPerSecond } = result.timings
    expect(queuedMs).toBeLessThanOrEqual(firstTokenMs)
    expect(firstTokenMs).toBeLessThanOrEqual(totalMs)
    expect(tokensPerSecond).toBeGreaterThan(0)
  })

  test('a slow consumer does not hold up the engine and misses nothing', async () => {
    const { model } = openText()
    const slow = model.generate('a', { maxTokens: 20, temperature: 0 })
    const iterator = slow[Symbol.asyncIterator]()
    await iterator.next()
    const { tokens } = await slow.result()
    const rest = []
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) rest.push(next.value.token)
    expect(rest).toEqual(tokens.slice(1))
  })

  test('ends at an end-of-sequence token, unless told not to', async () => {
    const { model } = openText()
    const options = { maxTokens: 40, temperature: 0 }
    const { tokens } = await model.generate('x', options).result()
    const parts = { tokenizer, generation: { eosTokens: [tokens[6]!], options: {} } }
    const withEos = openFake({}, { vocab: 4096 }, parts).model
    const cut = await withEos.generate('x', options).result()
    expect(cut.tokens).toEqual(tokens.slice(0, tokens.indexOf(tokens[6]!) + 1))
    expect(cut).toMatchObject({ finishReason: 'eos', stopReason: tokens[6] })
    expect(cut.text).toBe(model.detokenize(cut.tokens.slice(0, -1)))
    expect((await withEos.generate('x', { ...options, ignoreEos: true }).result()).tokens).toEqual(tokens)
  })

  test('ends at a stop token', async () => {
    const { model } = openText()
    const { tokens } = await model.generate('y', { maxTokens: 9, temperature: 0 }).result()
    const cut = await model.generate('y', { temperature: 0, stopTokens: [tokens[4]!] }).result()
    expect(cut).toMatchObject({ finishReason: 'stop', stopReason: tokens[4] })
    expect(cut.tokens.at(-1)).toBe(tokens[4])
  })

  test('ends at a stop string and emits no part of it', async () => {
    const { model } = openText()
    const { text } = await model.generate('z', { maxTokens: 60, temperature: 0 }).result()
    for (const [from, length] of [
      [5, 1],
      [20, 4],
      [31, 12],
      [0, 3],
    ] as const) {
      const stop = text.slice(from, from + length)
      const generation = model.generate('z', { maxTokens: 60, temperature: 0, stop: ['never this', stop] })
      let streamed = ''
      for await (const event of generation) {
        streamed += event.text
        expect(text.slice(0, text.indexOf(stop)).startsWith(streamed)).toBe(true)
      }
      const result = await generation.result()
      expect(streamed).toBe(text.slice(0, text.indexOf(stop)))
      expect(result).toMatchObject({ text: streamed, finishReason: 'stop', stopReason: stop })
    }
    expect(leftovers(model)).toEqual(nothing)
  })

  test('a stop string that spells a special token is found although its text is left out', async () => {
    const { model } = openText()
    const options: GenerateOptions = { temperature: 0, logitBias: { 1: 100 }, stop: '<|im_start|>' }
    const result = await model.generate('w', options).result()
    expect(result).toMatchObject({ tokens: [1], text: '', finishReason: 'stop', stopReason: '<|im_start|>' })
  })

  test('an unfinished character at the end becomes U+FFFD, as in the text of all tokens', async () => {
    const { model } = openText()
    const [lead] = await model.tokenize('😀')
    const generation = model.generate('v', { maxTokens: 3, temperature: 0, logitBias: { [lead!]: 100 } })
    const pieces: string[] = []
    for await (const { text } of generation) pieces.push(text)
    const { tokens, text } = await generation.result()
    expect(tokens).toEqual([lead, lead, lead])
    expect(text).toBe(model.detokenize(tokens))
    expect(pieces.join('')).toBe(text)
    expect(text.endsWith('\uFFFD')).toBe(true)
  })

  test('stops where the context is full', async () => {
    const { model } = openFake({ contextTokens: 20 })
    const result = await model.generate([1, 2, 3]).result()
    expect(result).toMatchObject({ finishReason: 'length', usage: { completionTokens: 17 } })
    const full = await model.generate(Array(20).fill(1)).result()
    expect(full).toMatchObject({ tokens: [], finishReason: 'length' })
    expect((await model.generate([1], { maxTokens: 0 }).result()).tokens).toEqual([])
  })

  test('the same seed gives the same tokens; a seed that was drawn can be used again', async () => {
    const { model } = openFake()
    const options = { maxTokens: 12, temperature: 1 }
    const drawn = await model.generate([1], options).result()
    const again = await model.generate([1], { ...options, seed: drawn.seed }).result()
    const other = await model.generate([1], { ...options, seed: 2n ** 63n + 5n }).result()
    expect(again.tokens).toEqual(drawn.tokens)
    expect(other.tokens).not.toEqual(drawn.tokens)
    expect(other.seed).toBe(2n ** 63n + 5n)
  })

  test('logit bias and penalties reach the sampler', async () => {
    const { model } = openFake()
    const options = { maxTokens: 6, temperature: 0 }
    const forced = await model.generate([1], { ...options, logitBias: { 9: 50 } }).result()
    expect(forced.tokens).toEqual(Array(6).fill(9))
    const varied = await model.generate([1], { ...options, logitBias: { 9: 50 }, frequencyPenalty: 30 }).result()
    expect(varied.tokens.slice(0, 2)).toEqual([9, 9])
    expect(varied.tokens).not.toEqual(forced.tokens)
    const banned = await model.generate([1, 9], { ...options, logitBias: { 9: 6.5 }, repetitionPenalty: 1000 }).result()
    expect(banned.tokens).not.toContain(9)
    const logitBias = { 8: 50, 9: Number.NEGATIVE_INFINITY }
    expect((await model.generate([1], { ...options, logitBias }).result()).tokens).toEqual(Array(6).fill(8))
  })

  test('chat renders the template', async () => {
    const { model } = openText()
    const messages = [{ role: 'user', content: 'Spell the word Rome.' }]
    const prompt = model.renderChat(messages)
    const chat = await model.chat(messages, { maxTokens: 8, temperature: 0, addGenerationPrompt: true }).result()
    expect(chat.tokens).toEqual((await model.generate(prompt, { maxTokens: 8, temperature: 0 }).result()).tokens)
    await expect(model.chat([]).result()).rejects.toMatchObject({ code: 'OPTION_INVALID' })
    expect((await model.chat(messages, null as never).result()).usage.promptTokens).toBe(chat.usage.promptTokens)
    await expect(model.chat(messages, { toolz: [] } as object).result()).rejects.toMatchObject({
      code: 'OPTION_UNKNOWN',
      details: { option: 'toolz', where: 'chat', known: expect.arrayContaining(['tools', 'maxTokens']) },
    })
  })
})

describe('logits and embeddings', () => {
  const prompt = Array.from({ length: 70 }, (_, i) => (i * 7) % 50)

  test('logits of every token, whatever the rows of a step, beside other requests', async () => {
    const whole = await openFake({ maxRows: 128, maxTokensPerStep: 128 }).model.logits(prompt)
    expect(whole.length).toBe(70 * 50)
    const { model, runner } = openFake({ maxSlots: 3, maxRows: 5, maxTokensPerStep: 16 })
    const others = [1, 2, 3, 4].map((t) => model.generate([t, ...prompt], { maxTokens: 25 }).result())
    expect(await model.logits(prompt)).toEqual(whole)
    expect(await model.logits(Int32Array.from(prompt))).toEqual(whole)
    await Promise.all(others)
    expect(Math.max(...runner.seen.map((step) => step.rows))).toBe(5)
    expect(leftovers(model)).toEqual(nothing)
  })

  test('greedy tokens are the best logits', async () => {
    const { model } = openFake()
    const { tokens } = await model.generate(prompt, { maxTokens: 3, temperature: 0 }).result()
    const logits = await model.logits([...prompt, ...tokens])
    for (const [i, token] of tokens.entries()) {
      const row = logits.subarray((prompt.length - 1 + i) * 50, (prompt.length + i) * 50)
      expect(row.indexOf(Math.max(...row))).toBe(token)
    }
  })

  test('embeddings have unit length, come in order and fill no queue', async () => {
    const { model } = openFake({ maxSlots: 2, queueLimit: 0, maxTokensPerStep: 8 })
    const prompts = Array.from({ length: 30 }, (_, i) => prompt.slice(0, 1 + i))
    const vectors = await model.embed(prompts)
    for (const vector of vectors) expect(Math.hypot(...vector)).toBeCloseTo(1, 5)
    expect((await model.embed([prompts[17]!]))[0]).toEqual(vectors[17])
    expect(await model.embed([])).toEqual([])
    const signal = AbortSignal.abort()
    await expect(model.embed(prompts, { signal })).rejects.toMatchObject({ code: 'ABORTED' })
    expect(leftovers(model)).toEqual(nothing)
  })

  test('one failure in a list ends the rest', async () => {
    const { model } = openFake({ maxSlots: 2 })
    await expect(model.embed([[1], [2], [99], [3]])).rejects.toMatchObject({ code: 'TOKEN_OUT_OF_RANGE' })
    await model.generate([1], { maxTokens: 1 }).result()
    expect(leftovers(model)).toEqual(nothing)
  })

  test('a plan without the output is refused', async () => {
    const { model } = openFake({}, { outputs: ['tokens'] })
    await expect(model.embed('x')).rejects.toMatchObject({ code: 'OUTPUT_MISSING', details: { output: 'hidden' } })
    await expect(model.logits([1])).rejects.toBeInstanceOf(ConfigError)
  })
})

describe('bad input', () => {
  const bad: [string, GenerateOptions | object, string][] = [
    ['maxTokens', { maxTokens: -1 }, 'OPTION_INVALID'],
    ['maxTokens', { maxTokens: 1.5 }, 'OPTION_INVALID'],
    ['temperature', { temperature: Number.NaN }, 'OPTION_INVALID'],
    ['temperature', { temperature: 1e300 }, 'OPTION_INVALID'],
    ['topP', { topP: 0 }, 'OPTION_INVALID'],
    ['topP', { topP: 1e-300 }, 'OPTION_INVALID'],
    ['topK', { topK: '5' }, 'OPTION_INVALID'],
    ['minP', { minP: 1.1 }, 'OPTION_INVALID'],
    ['repetitionPenalty', { repetitionPenalty: 0 }, 'OPTION_INVALID'],
    ['repetitionPenalty', { repetitionPenalty: 1e-300 }, 'OPTION_INVALID'],
    ['seed', { seed: 0.5 }, 'OPTION_INVALID'],
    ['stop', { stop: '' }, 'OPTION_INVALID'],
    ['stop', { stop: ['\ud83d'] }, 'OPTION_INVALID'],
    ['logprobs', { logprobs: 21 }, 'OPTION_INVALID'],
    ['logitBias', { logitBias: { x: 1 } }, 'OPTION_INVALID'],
    ['logitBias and stopTokens', { logitBias: { 50: 1 } }, 'OPTION_INVALID'],
    ['signal', { signal: {} }, 'OPTION_INVALID'],
    ['deadlineMs', { deadlineMs: 2 ** 31 }, 'OPTION_INVALID'],
    ['max_tokens', { max_tokens: 5 }, 'OPTION_UNKNOWN'],
  ]
  test.each(bad)('option %s: %j', async (option, options, code) => {
    const { model, runner } = openFake()
    const failure = await model
      .generate([1], options)
      .result()
      .catch((error) => error)
    expect(failure).toBeInstanceOf(ConfigError)
    expect(failure).toMatchObject({ code, details: { option } })
    expect(failure.message).not.toMatch(/\{\w+\}|undefined/)
    expect(runner.seen.length).toBe(0)
  })

  test.each([
    ['PROMPT_EMPTY', []],
    ['PROMPT_TOO_LONG', Array(21).fill(0)],
    ['TOKEN_OUT_OF_RANGE', [1, 50]],
    ['TOKEN_OUT_OF_RANGE', [-1]],
    ['TOKEN_OUT_OF_RANGE', [1.5]],
    ['TOKENIZER_MISSING', 'text'],
    ['OPTION_INVALID', undefined],
  ])('prompt: %s', async (code, prompt) => {
    const { model } = openFake({ contextTokens: 20 })
    await expect(model.generate(prompt as string).result()).rejects.toMatchObject({ code })
    await expect(
      (async () => {
        for await (const _ of model.generate(prompt as string));
      })(),
    ).rejects.toMatchObject({ code })
    await expect(model.logits(prompt as string)).rejects.toMatchObject({ code })
  })

  test('what needs a tokenizer or a template says so', async () => {
    const { model } = openFake()
    await expect(model.tokenize('x')).rejects.toMatchObject({ code: 'TOKENIZER_MISSING' })
    expect(() => model.detokenize([1])).toThrow(expect.objectContaining({ code: 'TOKENIZER_MISSING' }))
    await expect(model.generate([1], { stop: 'x' }).result()).rejects.toMatchObject({ code: 'TOKENIZER_MISSING' })
    await expect(model.chat([{ role: 'user' }]).result()).rejects.toMatchObject({ code: 'CHAT_TEMPLATE_MISSING' })
  })

  test('every method after dispose', async () => {
    const { model } = openText()
    {
      await using scoped = model
      await scoped.generate('a', { maxTokens: 1 }).result()
    }
    const disposed = { code: 'MODEL_DISPOSED' }
    await expect(model.generate('a').result()).rejects.toMatchObject(disposed)
    await expect(model.chat([{ role: 'user', content: 'a' }]).result()).rejects.toMatchObject(disposed)
    await expect(model.embed('a')).rejects.toMatchObject(disposed)
    await expect(model.logits('a')).rejects.toMatchObject(disposed)
    await expect(model.tokenize('a')).rejects.toMatchObject(disposed)
    for (const call of [() => model.detokenize([1]), () => model.stats(), () => model.memory()]) {
      expect(call).toThrow(expect.objectContaining(disposed))
    }
    expect(model.info.hash).toBe('f00d')
  })
})

describe('capacity', () => {
  const plan = fakePlan({ maxContext: 256, blockTokens: 32 })
  const of = (options: object) => capacity(plan, options, 'p')

  test('defaults', () => {
    expect(of({})).toMatchObject({
      contextTokens: 256,
      maxSlots: 16,
      queueLimit: 1024,
      prefixCache: true,
      blocks: 129,
      slots: 17,
      limits: { tokens: 256, sequences: 16, rows: 64, blocksPerSequence: 8 },
    })
  })

  test('blocks from stateBytes', () => {
    const needed = of({}).needs.bytesPerBlock
    expect(of({ stateBytes: needed * 20 }).blocks).toBe(20)
    expect(() => of({ stateBytes: needed })).toThrow(/stateBytes: expected at least/)
    expect(of({ stateBytes: Number.MAX_SAFE_INTEGER }).blocks).toBe(1 + 2 ** 30)
  })

  test.each([
    [{ contextTokens: 257 }, 'OPTION_INVALID', /at most 256/],
    [{ maxSlots: 0 }, 'OPTION_INVALID', /maxSlots/],
    [{ maxTokensPerStep: 8 }, 'OPTION_INVALID', /maxTokensPerStep: expected at least 16/],
    [{ maxRows: 8 }, 'OPTION_INVALID', /maxRows/],
    [{ blocks: 3 }, 'OPTION_INVALID', /blocks: expected at least 9/],
    [{ slots: 3 }, 'OPTION_UNKNOWN', /known options: maxSlots, contextTokens/],
  ])('%j is refused', (options, code, message) => {
    expect(() => of(options)).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }))
  })

  test('states that the engine cannot keep are refused', () => {
    expect(() => capacity(fakePlan({ states: ['ring'] }), {}, 'p')).toThrow(/state-kind/)
  })

  test('a plan without paged state runs, and shares nothing', async () => {
    const plan = fakePlan({ states: [] })
    expect(capacity(plan, {}, 'p')).toMatchObject({ prefixCache: false, limits: { blocksPerSequence: 1 }, blocks: 17 })
    const { model } = openFake({ maxSlots: 2 }, { states: [] })
    expect((await model.generate([1, 2, 3]).result()).usage.completionTokens).toBe(253)
  })
})

test('what the package advises applies unless overridden', async () => {
  const options = { temperature: 1, maxTokens: 10, topK: 40 }
  const { model } = openFake({}, {}, { generation: { eosTokens: [], options } })
  const greedy = await model.generate([1], { temperature: 0, seed: 1 }).result()
  const sampled = await model.generate([1], { seed: 1 }).result()
  expect([greedy.tokens.length, sampled.tokens.length]).toEqual([10, 10])
  expect(sampled.tokens).not.toEqual(greedy.tokens)
  expect((await model.generate([1], { maxTokens: 3, seed: 1 }).result()).tokens).toEqual(sampled.tokens.slice(0, 3))
})
