import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { Tokenizer as Implementation } from '@huggingface/tokenizers'
import fc from 'fast-check'
import { beforeAll, describe, expect, test, vi } from 'vitest'
import { packageRoot } from '../../abi/native.ts'
import { packVocabulary } from '../../abi/vocabulary.ts'
import { PlanError } from '../../errors.ts'
import { ChatTemplate } from './chat-template.ts'
import { StopMatcher } from './stop.ts'
import { Tokenizer, type TokenizerFiles } from './tokenizer.ts'

const folder = join(packageRoot(), 'checkpoints', 'storyteller-7m')
const read = (name: string) => readFileSync(join(folder, name), 'utf8')
const byteLevel: TokenizerFiles = {
  tokenizer: read('tokenizer.json'),
  config: read('tokenizer_config.json'),
  chatTemplate: read('chat_template.jinja'),
}

/** A tokenizer in the manner of SentencePiece: spaces as U+2581, bytes for what has no token, a leading space removed. */
function sentencePiece(): TokenizerFiles {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`)
  const pieces = [
    '<unk>',
    '<s>',
    '</s>',
    ...bytes,
    '\u2581',
    '\u2581the',
    '\u2581a',
    'b',
    'é',
    '\u2581\u2581',
    '😀',
    'ing',
    '.',
  ]
  return {
    tokenizer: JSON.stringify({
      added_tokens: pieces.slice(0, 3).map((content, id) => ({ id, content, special: true, normalized: false })),
      normalizer: null,
      pre_tokenizer: null,
      post_processor: null,
      decoder: {
        type: 'Sequence',
        decoders: [
          { type: 'Replace', pattern: { String: '\u2581' }, content: ' ' },
          { type: 'ByteFallback' },
          { type: 'Fuse' },
          { type: 'Strip', content: ' ', start: 1, stop: 0 },
        ],
      },
      model: {
        type: 'BPE',
        byte_fallback: true,
        unk_token: '<unk>',
        vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
        merges: [],
      },
    }),
  }
}

/** The tokenizer with every fifth token added: such are not spelled in bytes, and part those around them. */
function withAdded(): TokenizerFiles {
  const json = JSON.parse(byteLevel.tokenizer as string)
  for (const [content, id] of Object.entries(json.model.vocab))
    if (Number(id) % 5 === 4) json.added_tokens.push({ id, content, special: false, normalized: false })
  return { ...byteLevel, tokenizer: JSON.stringify(json) }
}

const stream = (tokenizer: Tokenizer, tokens: number[]) => {
  const detokenizer = tokenizer.detokenizer()
  return [...tokens.map((token) => detokenizer.push(token)), detokenizer.flush()]
}

describe('detokenizer', () => {
  const families: Record<string, { files: TokenizerFiles; vocab: number }> = {
    'byte-level BPE': { files: byteLevel, vocab: 4096 },
    SentencePiece: { files: sentencePiece(), vocab: 268 },
  }
  for (const [name, { files, vocab }] of Object.entries(families)) {
    const tokenizer = new Tokenizer(files, 'test')
    const anything = fc.integer({ min: 0, max: vocab + 3 })
    // Single bytes, whole characters of several tokens, and any token: broken and unbroken sequences alike.
    const byteIds = Array.from({ length: vocab }, (_, id) => id).filter((id) =>
      tokenizer.decode([id]).includes('\uFFFD'),
    )
    const token = fc.oneof(anything, fc.constantFrom(...byteIds))

    test(`${name}: pieces add up to the whole, whatever the tokens`, () => {
      expect(byteIds.length).toBeGreaterThan(100)
      fc.assert(
        fc.property(fc.array(token, { maxLength: 100 }), (tokens) => {
          const pieces = stream(tokenizer, tokens)
          expect(pieces.join('')).toBe(tokenizer.decode(tokens))
          for (const piece of pieces) expect(piece).not.toMatch(/\p{Surrogate}/u)
        }),
        { numRuns: 400 },
      )
    })

    test(`${name}: a character appears when it is complete and never as U+FFFD`, async () => {
      const bytesOf = new Map<number, number>()
      for (const id of byteIds) {
        const spelled = tokenizer.tokenOf(id)!
        if (/^<0x..>$/.test(spelled)) bytesOf.set(Number.parseInt(spelled.slice(3, 5), 16), id)
      }
      const encodeText = (text: string) =>
        bytesOf.size > 0 ? [...Buffer.from(text)].map((byte) => bytesOf.get(byte) ?? byte + 3) : undefined
      let checked = 0
      await fc.assert(
        fc.asyncProperty(fc.string({ unit: 'grapheme', minLength: 1, maxLength: 30 }), async (text) => {
          const tokens = encodeText(text) ?? [...(await tokenizer.encode(text))]
          if (tokenizer.decode(tokens).includes('\uFFFD')) return
          for (const piece of stream(tokenizer, tokens)) expect(piece).not.toMatch(/\uFFFD|\p{Surrogate}/u)
          checked++
        }),
      )
      expect(checked).toBeGreaterThan(50)
    })
  }

  test('added tokens part the bytes around them', () => {
    const tokenizer = new Tokenizer(withAdded(), 'test')
    const bytes = Array.from({ length: 4096 }, (_, id) => id).filter((id) => tokenizer.decode([id]).includes('\uFFFD'))
    const token = fc.oneof(fc.nat(4095), fc.constantFrom(...bytes))
    fc.assert(
      fc.property(fc.array(token, { maxLength: 60 }), (tokens) => {
        expect(stream(tokenizer, tokens).join('')).toBe(tokenizer.decode(tokens))
      }),
    )
  })

  test('runs of broken bytes of any length leave what follows whole', async () => {
    const levels = new Tokenizer(byteLevel, 'test')
    const pieces = new Tokenizer(sentencePiece(), 'test')
    const emoji = [...(await levels.encode('😀'))]
    const cases = [
      { tokenizer: levels, emoji, broken: emoji.at(-1)! },
      { tokenizer: pieces, emoji: [...Buffer.from('😀')].map((byte) => byte + 3), broken: 0x80 + 3 },
    ]
    for (const { tokenizer, emoji, broken } of cases) {
      expect(emoji).toHaveLength(4)
      for (let count = 0; count < 120; count++) {
        const tokens = [...Array(count).fill(broken), ...emoji, ...emoji]
        expect(stream(tokenizer, tokens).join('')).toBe(tokenizer.decode(tokens))
      }
    }
  })

  test('holds the bytes of an emoji until the last', async () => {
    const tokenizer = new Tokenizer(byteLevel, 'test')
    const tokens = [...(await tokenizer.encode('a😀b'))]
    const pieces = stream(tokenizer, tokens)
    expect(pieces.filter((piece) => piece !== '')).toEqual(['a', '😀', 'b'])
  })
})

describe('stop strings', () => {
  test('equal the first occurrence in the whole text, however it is cut', () => {
    const text = fc.string({ unit: fc.constantFrom('a', 'b', '<', '>'), maxLength: 40 })
    const stop = fc.string({ unit: fc.constantFrom('a', 'b', '<', '>'), minLength: 1, maxLength: 5 })
    fc.assert(
      fc.property(
        fc.array(text, { maxLength: 12 }),
        fc.array(stop, { minLength: 1, maxLength: 3 }),
        (pieces, stops) => {
          const matcher = new StopMatcher(stops)
          let emitted = ''
          let hit: string | undefined
          for (const piece of pieces) {
            const { text, stop } = matcher.push(piece)
            emitted += text
            if ((hit = stop) !== undefined) break
          }
          const whole = pieces.join('')
          if (hit === undefined) emitted += matcher.flush()
          const first = Math.min(
            ...stops.map((s) => whole.indexOf(s)).map((at) => (at < 0 ? Number.POSITIVE_INFINITY : at)),
          )
          expect(hit !== undefined).toBe(Number.isFinite(first))
          for (const s of stops) expect(emitted.includes(s)).toBe(false)
          expect(whole.startsWith(emitted)).toBe(true)
          if (hit === undefined) expect(emitted).toBe(whole)
          else expect(whole.slice(emitted.length).startsWith(hit)).toBe(true)
        },
      ),
      { numRuns: 1000 },
    )
  })

  test('text that may begin a stop string waits until it is decided', () => {
    const matcher = new StopMatcher(['END', 'EMPTY'])
    expect(matcher.push('a E')).toEqual({ text: 'a ', stop: undefined })
    expect(matcher.push('N')).toEqual({ text: '', stop: undefined })
    expect(matcher.push('E')).toEqual({ text: 'EN', stop: undefined })
    expect(matcher.push('ND!')).toEqual({ text: '', stop: 'END' })
  })
})

describe('tokenizer', () => {
  const tokenizer = new Tokenizer(byteLevel, 'test')

  test('round trips, special tokens included', async () => {
    const text = '<|im_start|>user\nWhat is  29 + 31 ? naïve 😀<|im_end|>'
    const ids = await tokenizer.encode(text)
    expect(ids[0]).toBe(1)
    expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(text)
    expect(tokenizer.decode(ids)).toBe('user\nWhat is  29 + 31 ? naïve 😀')
    expect(tokenizer.decode([])).toBe('')
    expect(tokenizer.decode([9_999_999])).toBe('')
    expect(await tokenizer.encode('')).toEqual(new Int32Array())
  })

  test('refuses files that are no tokenizer', () => {
    for (const files of [{ tokenizer: '{' }, { tokenizer: '[]' }, { tokenizer: '{"model":{"type":"Magic"}}' }]) {
      expect(() => new Tokenizer(files, 'x.ingot')).toThrow(PlanError)
      expect(() => new Tokenizer(files, 'x.ingot')).toThrow(/x\.ingot: tokenizer\.json/)
    }
  })

  describe('long texts', () => {
    const words = Array.from({ length: 40_000 }, (_, i) => ['once', 'upon', 'a', 'time', `n${i % 977}`][i % 5])
    const text = words.join(' ')
    let ids: Int32Array
    beforeAll(async () => {
      ids = await tokenizer.encode(text)
    })

    test('are tokenised in a worker, as they are here', async () => {
      const parts: number[] = []
      for (let at = 0; at < 6000; ) {
        const end = text.indexOf(' ', at + 1500)
        parts.push(...(await tokenizer.encode(text.slice(at, end))))
        await new Promise((resolve) => setImmediate(resolve))
        at = end
      }
      expect([...ids.subarray(0, parts.length)]).toEqual(parts)
      expect(tokenizer.decode(ids.subarray(0, 20_000))).toBe(
        text.slice(0, tokenizer.decode(ids.subarray(0, 20_000)).length),
      )
    })

    /** Characters that this thread tokenises while `work` runs. */
    async function inline(work: () => Promise<unknown>): Promise<number> {
      const encode = vi.spyOn(Implementation.prototype, 'encode')
      try {
        await work()
        return encode.mock.calls.reduce((sum: number, [given]: string[]) => sum + given!.length, 0)
      } finally {
        encode.mockRestore()
      }
    }

    test('leave the event loop to others', async () => {
      const seen = await inline(async () => {
        for (const other of await Promise.all(Array.from({ length: 4 }, () => tokenizer.encode(text))))
          expect(other).toEqual(ids)
      })
      expect(seen).toBe(0)
    })

    test('many short ones at once are as good as a long one, and one after the other they are not', async () => {
      const short = text.slice(0, 1000)
      const atOnce = () => Promise.all(Array.from({ length: 400 }, () => tokenizer.encode(short)))
      expect(await inline(async () => expect(new Set((await atOnce()).map(String)).size).toBe(1))).toBe(
        2 * short.length,
      )
      const inTurns = async () => {
        for (let i = 0; i < 5; i++) {
          await tokenizer.encode(short)
          await new Promise((resolve) => setImmediate(resolve))
        }
      }
      expect(await inline(inTurns)).toBe(5 * short.length)
    })

    test('a disposed tokenizer rejects what was under way', async () => {
      const other = new Tokenizer(byteLevel, 'test')
      const pending = other.encode(text)
      const outcome = expect(pending).rejects.toMatchObject({ code: 'DISPOSED' })
      await other.dispose()
      await outcome
    })
  })
})

describe('a large tokenizer', () => {
  const vocabulary = packVocabulary(JSON.parse(byteLevel.tokenizer as string))!
  const whole = new Tokenizer(byteLevel, 'test')
  const large = new Tokenizer({ ...byteLevel, tokenizer: { path: join(folder, 'tokenizer.json'), vocabulary } }, 'test')

  test('decodes as the whole one does', () => {
    const ids = fc.array(fc.integer({ min: 0, max: 4200 }), { maxLength: 40 })
    fc.assert(
      fc.property(ids, (tokens) => {
        expect(large.decode(tokens)).toBe(whole.decode(tokens))
        expect(large.decode(tokens, { skipSpecialTokens: false })).toBe(
          whole.decode(tokens, { skipSpecialTokens: false }),
        )
        expect(stream(large, tokens)).toEqual(stream(whole, tokens))
      }),
    )
    for (const token of ['<|im_end|>', 'the', 'no such token']) expect(large.idOf(token)).toBe(whole.idOf(token))
    expect(large.isSpecial(1)).toBe(true)
  })

  test('encodes as the whole one does, in a worker', async () => {
    for (const text of ['Once upon a time', '', 'naïve 😀<|im_end|>'])
      expect(await large.encode(text)).toEqual(await whole.encode(text))
    await large.dispose()
  })

  test('ends its worker when nothing is tokenised for a minute, and starts another', async () => {
    const terminate = vi.spyOn(Worker.prototype, 'terminate')
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    try {
      const ids = await large.encode('Once')
      vi.advanceTimersByTime(59_000)
      expect(await large.encode('Once')).toEqual(ids)
      vi.advanceTimersByTime(59_000)
      expect(terminate).not.toHaveBeenCalled()
      vi.advanceTimersByTime(2_000)
      expect(terminate).toHaveBeenCalled()
      expect(await large.encode('Once')).toEqual(ids)
    } finally {
      vi.useRealTimers()
      terminate.mockRestore()
    }
    await large.dispose()
  })

  test('refuses a vocabulary that is none', () => {
    const tokenizer = { path: 'x', vocabulary: vocabulary.subarray(1) }
    expect(() => new Tokenizer({ tokenizer }, 'x.ingot')).toThrow(/x\.ingot: the vocabulary/)
  })

  test('that is gone when it is needed fails the call alone', async () => {
    const gone = new Tokenizer({ tokenizer: { path: join(folder, 'no.json'), vocabulary } }, 'test')
    await expect(gone.encode('a')).rejects.toMatchObject({ code: 'WORKER_FAILED' })
    expect(gone.decode([5, 6])).toBe(whole.decode([5, 6]))
  })
})

describe('chat template', () => {
  const tokenizer = new Tokenizer(byteLevel, 'test')
  const messages = [{ role: 'user', content: 'What is 29 + 31?' }]

  test('renders the template of the checkpoint', () => {
    const template = ChatTemplate.of(tokenizer, byteLevel.chatTemplate, 'test')!
    expect(template.render(messages)).toBe('<|im_start|>user\nWhat is 29 + 31?<|im_end|>\n<|im_start|>assistant\n')
    expect(template.render(messages, { addGenerationPrompt: false })).toBe(
      '<|im_start|>user\nWhat is 29 + 31?<|im_end|>\n',
    )
  })

  const configured = (chat_template: unknown) =>
    ChatTemplate.of(
      new Tokenizer(
        { ...byteLevel, config: JSON.stringify({ bos_token: { content: '<B>' }, eos_token: '<E>', chat_template }) },
        'p',
      ),
      undefined,
      'p',
    )

  test('takes the config as well: a string, or named templates', () => {
    expect(configured('{{ bos_token }}{{ messages[0].content }}{{ eos_token }}')!.render(messages)).toBe(
      '<B>What is 29 + 31?<E>',
    )
    const named = configured([
      { name: 'default', template: 'plain' },
      { name: 'tool_use', template: '{% for t in tools %}{{ t | tojson }}{% endfor %}{{ mood }}' },
    ])!
    expect(named.render(messages)).toBe('plain')
    expect(named.render(messages, { tools: [{ a: 1 }], variables: { mood: '!' } })).toBe('{"a": 1}!')
    expect(configured(undefined)).toBeUndefined()
  })

  test('reports what a template raises, and one that is broken', () => {
    const raising = configured("{{ raise_exception('roles must alternate') }}")!
    expect(() => raising.render(messages)).toThrow(/p refused these messages: .*roles must alternate/)
    expect(() => configured('{% for %}')!.render(messages)).toThrow(
      expect.objectContaining({ code: 'CHAT_TEMPLATE_FAILED' }),
    )
  })
})
