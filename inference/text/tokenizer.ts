/** Text to token ids and back, by the checkpoint's tokenizer.json. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { Tokenizer as Implementation } from '@huggingface/tokenizers'
import { packageRoot } from '../../abi/native.ts'
import { Vocabulary } from '../../abi/vocabulary.ts'
import { fail } from '../../errors.ts'
import { Detokenizer } from './detokenizer.ts'

/** A large tokenizer.json: only its vocabulary is held here, the rest in a worker thread while texts are tokenised. */
export interface LargeTokenizer {
  /** Of tokenizer.json. */
  readonly path: string
  /** See abi/vocabulary.ts. */
  readonly vocabulary: Uint8Array
}

/** Contents of the files, as text. */
export interface TokenizerFiles {
  /** tokenizer.json */
  readonly tokenizer: string | LargeTokenizer
  /** tokenizer_config.json */
  readonly config?: string | undefined
  /** chat_template.jinja */
  readonly chatTemplate?: string | undefined
}

export interface EncodeOptions {
  /** Add what the tokenizer's post-processor puts around a text, such as a beginning-of-sequence token. Default true. */
  readonly addSpecialTokens?: boolean | undefined
}
export interface DecodeOptions {
  /** Leave special tokens out. Default true. */
  readonly skipSpecialTokens?: boolean | undefined
}

/** What tokenizer-worker.ts starts from: the text of tokenizer.json or its path, and the text of the configuration. */
export interface WorkerFiles {
  readonly text?: string
  readonly path?: string
  readonly config: string
}
/** What tokenizer.json says of how tokens become text. */
interface Spelling {
  readonly decoder?: { readonly type?: string } | null
  readonly model?: { readonly end_of_word_suffix?: string | null }
}
/** Messages to and from tokenizer-worker.ts. */
export interface EncodeRequest {
  readonly id: number
  readonly text: string
  readonly addSpecialTokens: boolean
}
export type EncodeReply =
  | { readonly id: number; readonly ids: Int32Array }
  | { readonly id: number; readonly error: string }

/**
 * Characters that are tokenised on the event loop between two of its turns, about 2 ms of work; what goes beyond is done
 * in a worker thread, which starts on first use.
 */
const INLINE_CHARACTERS = 2000

/** An idle worker ends after this long: it holds a vocabulary as objects, 100 MB of a large one. */
const IDLE_MS = 60_000

export class Tokenizer {
  /** Parsed tokenizer_config.json. */
  readonly config: Readonly<Record<string, unknown>>
  readonly #files: TokenizerFiles
  /** Of a large tokenizer, it decodes only. */
  readonly #implementation: Implementation
  readonly #vocabulary: Vocabulary | undefined
  readonly #special = new Set<number>()
  readonly #single = new Map<number, string>()
  /** Whether a text is the decoded sum of its tokens' bytes. */
  readonly #bytewise: boolean
  #inline = 0
  #worker: EncodeWorker | undefined

  /** `path` is for messages. Throws PACKAGE_INVALID. */
  constructor(files: TokenizerFiles, path: string) {
    this.#files = files
    this.config = parse(files.config ?? '{}', 'tokenizer_config.json', path)
    const { tokenizer } = files
    const large = typeof tokenizer !== 'string'
    const json = large ? {} : parse(tokenizer, 'tokenizer.json', path)
    try {
      this.#vocabulary = large ? new Vocabulary(tokenizer.vocabulary) : undefined
      this.#implementation = this.#vocabulary
        ? decoderOf(this.#vocabulary, this.config)
        : new Implementation(json, this.config)
    } catch (cause) {
      throw unusable(large ? 'the vocabulary' : 'tokenizer.json', path, cause)
    }
    const { decoder, model } = (this.#vocabulary?.rest ?? json) as Spelling
    this.#bytewise = decoder?.type === 'ByteLevel' && !model?.end_of_word_suffix
    for (const [id, token] of this.#implementation.get_added_tokens_decoder()) if (token.special) this.#special.add(id)
  }

  /**
   * Ids of `text`. Long texts, and all texts of a large tokenizer, are tokenised off the event loop. Rejects with
   * WORKER_FAILED.
   */
  async encode(text: string, { addSpecialTokens = true }: EncodeOptions = {}): Promise<Int32Array> {
    if (!this.#vocabulary && this.#fitsInline(text)) return encode(this.#implementation, text, addSpecialTokens)
    if (this.#worker?.ended !== false) this.#worker = new EncodeWorker(this.#files)
    return this.#worker.encode(text, addSpecialTokens)
  }

  #fitsInline(text: string): boolean {
    if (this.#inline === 0) setImmediate(() => (this.#inline = 0))
    this.#inline += text.length
    return this.#inline <= INLINE_CHARACTERS
  }

  /**
   * Text of `ids`, verbatim: nothing is tidied, so that it equals the streamed text. Ids without a token, which padded
   * vocabularies have, are empty.
   */
  decode(ids: ArrayLike<number>, { skipSpecialTokens = true }: DecodeOptions = {}): string {
    return this.#spell(Array.from(ids).filter((id) => this.#has(id) && !(skipSpecialTokens && this.#special.has(id))))
  }

  /** Decodes a stream of tokens, special ones left out. */
  detokenizer(): Detokenizer {
    const spell = (ids: number[]) => (ids.length === 1 ? this.#spellOne(ids[0]!) : this.#spell(ids))
    const alone = this.#bytewise ? (id: number) => this.#spellOne(id) : undefined
    return new Detokenizer(spell, (id) => this.#special.has(id) || !this.#has(id), alone)
  }

  #has(id: number): boolean {
    return this.tokenOf(id) !== undefined
  }

  /** Text of ids that all have tokens. */
  #spell(ids: number[]): string {
    return ids.length === 0 ? '' : this.#implementation.decode(ids, { clean_up_tokenization_spaces: false })
  }

  /** Most windows of a stream are one token, and few tokens make most of a text. */
  #spellOne(id: number): string {
    const known = this.#single.get(id)
    if (known !== undefined) return known
    const text = this.#spell([id])
    this.#single.set(id, text)
    return text
  }

  /** Id of the token that is spelled `token`. */
  idOf(token: string): number | undefined {
    return this.#vocabulary ? this.#vocabulary.idOf(token) : this.#implementation.token_to_id(token)
  }

  tokenOf(id: number): string | undefined {
    return this.#vocabulary ? this.#vocabulary.tokenOf(id) : (this.#implementation.id_to_token(id) ?? undefined)
  }

  isSpecial(id: number): boolean {
    return this.#special.has(id)
  }

  /** A special token that tokenizer_config.json names ("eos_token"): a string, or an object with its content. */
  named(field: string): string | undefined {
    const value = this.config[field]
    const content = typeof value === 'object' && value !== null ? (value as { content?: unknown }).content : value
    return typeof content === 'string' ? content : undefined
  }

  /** Ends the worker, if there is one. */
  async dispose(): Promise<void> {
    await this.#worker?.end(fail('DISPOSED', {}))
  }
}

/** Ids of `text`; what the vocabulary has no token for is left out, as the Rust implementation does. */
export function encode(tokenizer: Implementation, text: string, addSpecialTokens: boolean): Int32Array {
  const ids: (number | null | undefined)[] = tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids
  return Int32Array.from(ids.filter((id) => id !== undefined && id !== null))
}

/** The library's decoder over a packed vocabulary; it cannot encode. */
function decoderOf(vocabulary: Vocabulary, config: Readonly<Record<string, unknown>>): Implementation {
  const { rest } = vocabulary
  const model = { ...rest.model, type: 'BPE', vocab: {}, merges: [] }
  const encoding = { normalizer: null, pre_tokenizer: null, post_processor: null }
  const implementation = new Implementation({ ...rest, ...encoding, model }, config)
  implementation.model!.vocab = new Proxy([], { get: (_, id) => vocabulary.tokenOf(Number(id)) })
  return implementation
}

/** A thread that tokenises. It keeps the process alive only while texts are under way. */
class EncodeWorker {
  ended = false
  readonly #thread: Worker
  readonly #pending = new Map<number, { resolve: (ids: Int32Array) => void; reject: (error: unknown) => void }>()
  #ids = 0
  #idle: NodeJS.Timeout | undefined

  constructor({ tokenizer, config = '{}' }: TokenizerFiles) {
    const script = join(packageRoot(), 'dist', 'inference', 'text', 'tokenizer-worker.js')
    if (!existsSync(script)) throw fail('WORKER_FAILED', { reason: `${script} is not built; run "npm run build"` })
    const source = typeof tokenizer === 'string' ? { text: tokenizer } : { path: tokenizer.path }
    this.#thread = new Worker(script, { workerData: { ...source, config } satisfies WorkerFiles })
    this.#thread.unref()
    this.#thread.on('message', (reply: EncodeReply) => this.#receive(reply))
    this.#thread.on(
      'error',
      (error) => void this.end(fail('WORKER_FAILED', { reason: (error as Error).message }, error)),
    )
    this.#thread.on('exit', (code) => void this.end(fail('WORKER_FAILED', { reason: `it exited with code ${code}` })))
  }

  encode(text: string, addSpecialTokens: boolean): Promise<Int32Array> {
    return new Promise((resolve, reject) => {
      const id = this.#ids++
      this.#pending.set(id, { resolve, reject })
      clearTimeout(this.#idle)
      this.#thread.ref()
      this.#thread.postMessage({ id, text, addSpecialTokens } satisfies EncodeRequest)
    })
  }

  async end(error: unknown): Promise<void> {
    this.ended = true
    clearTimeout(this.#idle)
    for (const { reject } of this.#pending.values()) reject(error)
    this.#pending.clear()
    await this.#thread.terminate()
  }

  #receive(reply: EncodeReply): void {
    const waiter = this.#pending.get(reply.id)
    this.#pending.delete(reply.id)
    if (this.#pending.size === 0) {
      this.#thread.unref()
      this.#idle = setTimeout(() => void this.end(undefined), IDLE_MS).unref()
    }
    if ('error' in reply) waiter?.reject(fail('WORKER_FAILED', { reason: reply.error }))
    else waiter?.resolve(reply.ids)
  }
}

function parse(text: string, thing: string, path: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text)
    if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Error('not an object')
    return value as Record<string, unknown>
  } catch (cause) {
    throw unusable(thing, path, cause)
  }
}

function unusable(thing: string, path: string, cause: unknown) {
  const got = cause instanceof Error ? cause.message : String(cause)
  return fail('PACKAGE_INVALID', { path, thing, expected: 'a Hugging Face tokenizer that can be read', got }, cause)
}
