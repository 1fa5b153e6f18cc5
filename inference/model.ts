/** An open model: what `open()` returns. */
import { z } from 'zod'
import type { Captures, Tally } from '../abi/native.ts'
import type { DeviceInfo, MemoryUse, Runner, TuningInfo } from '../compute/device.ts'
import { type ErrorDetails, fail, type IngotError } from '../errors.ts'
import type { ExecutionPlan, OutputName } from '../plans/plan.ts'
import type { Capacity } from './capacity.ts'
import type { EngineStats } from './counters.ts'
import { Draft } from './draft.ts'
import { Engine } from './engine.ts'
import { type Lifetime, within } from './lifetime.ts'
import { invalid, parseOptions } from './options.ts'
import type { Output } from './request.ts'
import { type GenerateOptions, type GenerationDefaults, generateShape, requestShape, sampling } from './sampling.ts'
import { Shadow, type ShadowParts } from './shadow.ts'
import { Guesses, guessCost, type Speculation } from './speculate.ts'
import { Generation, type Prepared } from './stream.ts'
import { type ChatMessage, ChatTemplate, type ChatTemplateOptions } from './text/chat-template.ts'
import { type DecodeOptions, type EncodeOptions, Tokenizer, type TokenizerFiles } from './text/tokenizer.ts'

/** Text, or token ids. */
export type Prompt = string | ArrayLike<number>

export interface RequestOptions {
  /** Ends the request within one step. */
  signal?: AbortSignal | undefined
  /** Milliseconds from now after which the request fails with DEADLINE_EXCEEDED. */
  deadlineMs?: number | undefined
}

export interface ChatOptions extends GenerateOptions, ChatTemplateOptions {}

/** What a model is made of. */
export interface ModelParts {
  /** Opened with `capacity`. */
  readonly runner: Runner
  readonly plan: ExecutionPlan
  /** Content hash of the plan. */
  readonly hash: string
  /** Path of the package, for messages. */
  readonly path: string
  /** How the bytes of the weights were checked. */
  readonly integrity: ModelInfo['integrity']
  readonly certificate?: ModelInfo['certificate'] | undefined
  /** Why something that was asked for is not so; default: none. */
  readonly warnings?: readonly IngotError[] | undefined
  /** Of this plan; see capacity(). */
  readonly capacity: Capacity
  /** Where the capacity speculates by a draft; opened with its own capacity, see draftCapacity(). */
  readonly draft?: DraftParts | undefined
  /** Where some steps are compared; opened with its own capacity, see shadowCapacity(). */
  readonly shadow?: ShadowParts | undefined
  readonly tokenizer?: TokenizerFiles | undefined
  readonly generation: GenerationDefaults
}

export interface DraftParts {
  readonly runner: Runner
  readonly plan: ExecutionPlan
  readonly capacity: Capacity
}

export interface ModelInfo {
  readonly path: string
  readonly hash: string
  /** The bytes of the weights: hashed now; hashed before and unchanged since (a receipt); or trusted. */
  readonly integrity: 'hashed' | 'receipt' | 'structure'
  /** The certificate that counts for it, where `open` was asked to look for one. */
  readonly certificate?: {
    readonly path: string
    /** Keys that were trusted and signed it. */
    readonly keyIds: readonly string[]
    readonly predicate: { readonly issued: string; readonly expires: string; readonly reference: string }
  }
  /** Model family. */
  readonly model: string
  readonly vocab: number
  readonly hidden: number
  /** Longest sequence here, and of the model. */
  readonly contextTokens: number
  readonly maxContext: number
  readonly maxSlots: number
  readonly stateBytesPerToken: number
  readonly hasTokenizer: boolean
  readonly hasChatTemplate: boolean
}

const requestSchema = z.strictObject(requestShape)
const chatShape = {
  addGenerationPrompt: z.boolean().optional().describe('a boolean'),
  tools: z.array(z.unknown()).optional().describe('an array of tools'),
  variables: z.record(z.string(), z.unknown()).optional().describe('an object'),
}
const chatSchema = z.strictObject({ ...generateShape, ...chatShape })
const messagesSchema = z.array(z.looseObject({ role: z.string() })).min(1)

export class Model {
  readonly info: ModelInfo
  readonly device: DeviceInfo
  readonly plan: ExecutionPlan
  /** What `open` was told to warn of instead of refusing. */
  readonly warnings: readonly IngotError[]
  readonly #runner: Runner
  /** Of the draft and of the shadow. */
  readonly #others: readonly Runner[]
  readonly #path: string
  readonly #engine: Engine
  readonly #shadow: Shadow | undefined
  readonly #speculation: Speculation | undefined
  /** Of the shadow's runner, once the live path is demoted. */
  #trusted: Engine | undefined
  readonly #defaults: GenerationDefaults
  readonly #eosTokens: ReadonlySet<number>
  readonly #tokenizer: Tokenizer | undefined
  readonly #template: ChatTemplate | undefined
  #disposal: Promise<void> | undefined

  /** Throws PACKAGE_INVALID for tokenizer files that cannot be read; the runner is then the caller's to dispose. */
  constructor({ runner, plan, hash, path, capacity, draft, shadow, tokenizer, generation, ...parts }: ModelParts) {
    this.#runner = runner
    this.#others = [draft, shadow].flatMap((part) => (part ? [part.runner] : []))
    this.plan = plan
    this.warnings = parts.warnings ?? []
    this.#path = path
    this.#defaults = generation
    this.#tokenizer = tokenizer && new Tokenizer(tokenizer, path)
    this.#template = this.#tokenizer && ChatTemplate.of(this.#tokenizer, tokenizer?.chatTemplate, path)
    this.#eosTokens = new Set(generation.eosTokens.length > 0 ? generation.eosTokens : this.#tokenizerEos())
    const { speculation } = capacity
    this.#speculation = speculation && { ...speculation, cost: speculation.cost ?? guessCost(plan, draft?.plan) }
    this.#shadow = shadow && new Shadow(shadow, capacity.limits.rows, plan)
    const other = { draft: draft && new Draft(draft.runner, draft.capacity), shadow: this.#shadow }
    this.#engine = new Engine(runner, capacity, plan, other)
    this.device = runner.info
    this.info = {
      path,
      hash,
      integrity: parts.integrity,
      ...(parts.certificate && { certificate: parts.certificate }),
      model: plan.model,
      vocab: plan.vocab,
      hidden: plan.hidden,
      contextTokens: capacity.contextTokens,
      maxContext: plan.maxContext,
      maxSlots: capacity.maxSlots,
      stateBytesPerToken: capacity.needs.bytesPerToken,
      hasTokenizer: this.#tokenizer !== undefined,
      hasChatTemplate: this.#template !== undefined,
    }
  }

  /**
   * Generates from text (special tokens added as the tokenizer does) or token ids. Errors arrive where the generation is
   * awaited: OPTION_UNKNOWN, OPTION_INVALID, PROMPT_EMPTY, PROMPT_TOO_LONG, TOKEN_OUT_OF_RANGE, TOKENIZER_MISSING,
   * QUEUE_FULL, MODEL_DISPOSED, ABORTED, DEADLINE_EXCEEDED, DISPOSED, and the backend's DeviceError. A generation stops
   * when prompt and output fill the context, with finishReason 'length'.
   */
  generate(prompt: Prompt, options?: GenerateOptions): Generation {
    return new Generation(() => this.#prepare(prompt, options, 'generate'))
  }

  /** Generates the next turn of a conversation; besides, CHAT_TEMPLATE_MISSING and CHAT_TEMPLATE_FAILED. */
  chat(messages: readonly ChatMessage[], options: ChatOptions = {}): Generation {
    return new Generation(async () => {
      this.#assertOpen()
      const { addGenerationPrompt, tools, variables } = parseOptions(chatSchema, 'chat', options)
      const rest = Object.entries(options ?? {}).filter(([name]) => !(name in chatShape))
      const prompt = this.renderChat(messages, { addGenerationPrompt, tools, variables })
      return this.#prepare(prompt, Object.fromEntries(rest), 'chat', { addSpecialTokens: false })
    })
  }

  /** The prompt that chat() generates from. */
  renderChat(messages: readonly ChatMessage[], options?: ChatTemplateOptions): string {
    this.#assertOpen()
    if (!this.#template) throw fail('CHAT_TEMPLATE_MISSING', { package: this.#path })
    if (!messagesSchema.safeParse(messages).success) {
      throw invalid('messages', 'a non-empty array of objects with a role', messages)
    }
    return this.#template.render(messages, options)
  }

  /**
   * One unit-length vector per text: the hidden state of its last token. The deadline is that of the whole list. Throws
   * OUTPUT_MISSING and as generate() does.
   */
  async embed(texts: string | readonly Prompt[], options?: RequestOptions): Promise<Float32Array[]> {
    this.#assertOpen()
    this.#assertOutput('hidden', 'embed')
    const { signal, deadlineMs } = parseOptions(requestSchema, 'embed', options)
    const prompts = typeof texts === 'string' ? [texts] : texts
    if (!Array.isArray(prompts)) throw invalid('texts', 'a string or an array of prompts', texts)
    const vectors: Float32Array[] = new Array(prompts.length)
    const failure = new AbortController()
    const either = signal ? AbortSignal.any([signal, failure.signal]) : failure.signal
    const lifetime = { signal: either, deadlineMs, since: performance.now() }
    let next = 0
    // As many at a time as can run: a long list must not fill the queue.
    const work = async () => {
      for (let index = next++; index < prompts.length; index = next++) {
        const prompt = await this.#encode(prompts[index]!, lifetime)
        const vector = new Float32Array(this.plan.hidden)
        await this.#collect(prompt, 'hidden', lifetime, vector)
        vectors[index] = normalize(vector)
      }
    }
    try {
      await Promise.all(Array.from({ length: this.info.maxSlots }, work))
    } catch (error) {
      failure.abort(error)
      throw error
    }
    return vectors
  }

  /** Logits of every token of the prompt, (tokens, vocab) in f32. Throws as generate() does, and OUT_OF_MEMORY. */
  async logits(prompt: Prompt, options?: RequestOptions): Promise<Float32Array> {
    this.#assertOpen()
    this.#assertOutput('logits', 'logits')
    const lifetime = { ...parseOptions(requestSchema, 'logits', options), since: performance.now() }
    const ids = await this.#encode(prompt, lifetime)
    const logits = allocate(ids.length * this.plan.vocab)
    await this.#collect(ids, 'logits', lifetime, logits)
    return logits
  }

  /** Token ids of `text`. Rejects with TOKENIZER_MISSING. */
  async tokenize(text: string, options?: EncodeOptions): Promise<Int32Array> {
    this.#assertOpen()
    return this.#requireTokenizer().encode(text, options)
  }

  /** Text of token ids. Throws TOKENIZER_MISSING. */
  detokenize(tokens: ArrayLike<number>, options?: DecodeOptions): string {
    this.#assertOpen()
    return this.#requireTokenizer().decode(tokens, options)
  }

  stats(): EngineStats {
    this.#assertOpen()
    return { ...this.#engine.stats(), ...(this.#trusted && { trusted: this.#trusted.stats() }) }
  }

  /** Of the model, and of its draft and its shadow where it has them. */
  memory(): MemoryUse {
    this.#assertOpen()
    return this.#others.reduce((sum, runner) => {
      const { weightsBytes, arenaBytes, stateBytes, scratchBytes, captures } = runner.memory()
      return {
        weightsBytes: sum.weightsBytes + weightsBytes,
        arenaBytes: sum.arenaBytes + arenaBytes,
        stateBytes: sum.stateBytes + stateBytes,
        scratchBytes: sum.scratchBytes + scratchBytes,
        ...((captures || sum.captures) && { captures: together(captures, sum.captures) }),
      }
    }, this.#runner.memory())
  }

  /**
   * Where the choices of kernels come from, and how many launches so far a measured one decided (`hits`) or, where there
   * was something to choose, the rules (`misses`). Undefined on a backend without choices.
   */
  tuning(): (TuningInfo & { readonly hits: number; readonly misses: number }) | undefined {
    this.#assertOpen()
    const use = this.#runner.choiceUse?.()
    const { tuning } = this.device
    return tuning && use && { ...tuning, hits: use.hits, misses: use.misses }
  }

  /**
   * Starts counting at zero where steps spend their time, or ends it, once no request is left. Throws TALLY_MISSING on a
   * backend that does not count.
   */
  async setTally(on: boolean): Promise<void> {
    this.#assertOpen()
    await this.#engine.idle()
    if (!this.#runner.setTally) throw fail('TALLY_MISSING', { backend: this.device.backend })
    this.#runner.setTally(on)
  }

  /** What was counted since setTally(true), once no request is left; undefined: off. */
  async tally(): Promise<Tally | undefined> {
    this.#assertOpen()
    await this.#engine.idle()
    return this.#runner.tally?.()
  }

  /** Fails what is under way with DISPOSED, waits for the running step and frees everything. Idempotent. */
  dispose(): Promise<void> {
    this.#disposal ??= this.#dispose()
    return this.#disposal
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose()
  }

  async #dispose(): Promise<void> {
    const engines = [this.#engine.dispose(), this.#trusted?.dispose(), this.#shadow?.close()]
    await Promise.all([...engines, this.#tokenizer?.dispose()])
    for (const runner of [this.#runner, ...this.#others]) runner.dispose()
  }

  async #prepare(prompt: Prompt, options: unknown, where: string, encoding?: EncodeOptions): Promise<Prepared> {
    this.#assertOpen()
    const since = performance.now()
    const choice = sampling(options, this.#defaults, this.plan.vocab, where)
    this.#assertOutput('tokens', where)
    if (choice.stop.length > 0) this.#requireTokenizer()
    const speculation = this.#speculation
    if (choice.speculative && !speculation)
      throw invalid('speculative', 'a model that was opened with speculative', choice.speculative)
    const { signal, deadlineMs } = choice
    const ids = await this.#encode(prompt, { signal, deadlineMs, since }, encoding)
    return {
      prompt: ids,
      sampling: choice,
      maxTokens: Math.min(choice.maxTokens, this.info.contextTokens - ids.length),
      eosTokens: this.#eosTokens,
      tokenizer: this.#tokenizer,
      guesses: speculation && choice.speculative !== false ? new Guesses(speculation) : undefined,
      engine: this.#serving(),
    }
  }

  /** Token ids of a prompt, checked. */
  async #encode(prompt: Prompt, lifetime: Lifetime, options?: EncodeOptions): Promise<Int32Array> {
    const encoding = typeof prompt === 'string' && this.#requireTokenizer().encode(prompt, options)
    const ids = encoding ? await within(lifetime, encoding) : (prompt as ArrayLike<number>)
    const { vocab, contextTokens } = this.info
    if (!(Number.isInteger(ids?.length) && ids.length >= 0))
      throw invalid('prompt', 'a string or an array of token ids', prompt)
    if (ids.length === 0) throw fail('PROMPT_EMPTY', {})
    if (ids.length > contextTokens) throw fail('PROMPT_TOO_LONG', { tokens: ids.length, limit: contextTokens })
    for (let index = 0; index < ids.length; index++) {
      const token: unknown = ids[index]
      const inside = Number.isInteger(token) && (token as number) >= 0 && (token as number) < vocab
      if (!inside) throw fail('TOKEN_OUT_OF_RANGE', { token, index, vocabulary: vocab })
    }
    return Int32Array.from(ids)
  }

  /** Runs `prompt` and copies the rows of one output into `target`, which has room for all that are wanted. */
  #collect(prompt: Int32Array, output: Exclude<Output, 'token'>, lifetime: Lifetime, target: Float32Array) {
    const last = prompt.length - 1
    const engine = this.#serving()
    return new Promise<void>((resolve, reject) => {
      const row: Parameters<Engine['submit']>[0]['sink']['row'] = (result, at, position) => {
        const source = result[output]
        const width = source.length / engine.capacity.limits.rows
        const offset = output === 'logits' ? position * width : 0
        target.set(source.subarray(at * width, (at + 1) * width), offset)
        if (position === last) resolve()
        return position === last
      }
      engine.submit({ prompt, output, maxTokens: 0, ...lifetime, sink: { row, failed: reject } })
    })
  }

  /** What runs a new request. Throws SHADOW_DEMOTED. */
  #serving(): Engine {
    if (!this.#shadow?.demoted) return this.#engine
    this.#shadow.assertServes(this.#path)
    if (this.#trusted) return this.#trusted
    const { runner, capacity } = this.#shadow.takeOver()
    this.#trusted = new Engine(runner, capacity, this.plan)
    return this.#trusted
  }

  #tokenizerEos(): number[] {
    const id = this.#tokenizer?.idOf(this.#tokenizer.named('eos_token') ?? '')
    return id === undefined ? [] : [id]
  }

  #requireTokenizer(): Tokenizer {
    if (!this.#tokenizer) throw fail('TOKENIZER_MISSING', { package: this.#path })
    return this.#tokenizer
  }

  #assertOutput(output: OutputName, method: string): void {
    if (this.plan.outputs[output] !== undefined) return
    throw fail('OUTPUT_MISSING', { package: this.#path, output, method: `${method}()` })
  }

  #assertOpen(): void {
    if (this.#disposal) throw fail('MODEL_DISPOSED', { package: this.#path })
  }
}

function together(a?: Captures, b?: Captures): Captures {
  const sum = (field: keyof Captures) => (a?.[field] ?? 0) + (b?.[field] ?? 0)
  return { count: sum('count'), bytes: sum('bytes'), milliseconds: sum('milliseconds') }
}

function allocate(elements: number): Float32Array {
  try {
    return new Float32Array(elements)
  } catch (cause) {
    const details: ErrorDetails<'OUT_OF_MEMORY'> = {
      thing: 'the logits of this prompt',
      needed: elements * 4,
      available: 'less',
    }
    throw fail('OUT_OF_MEMORY', details, cause)
  }
}

/** Scales to unit length, in place. */
function normalize(vector: Float32Array): Float32Array {
  const length = Math.hypot(...vector)
  if (length > 0) for (let i = 0; i < vector.length; i++) vector[i]! /= length
  return vector
}
