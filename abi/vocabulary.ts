/**
 * A vocabulary as a package stores it beside a large tokenizer.json: what turns token ids into text, ready to use without
 * parsing megabytes of JSON. Bytes, little endian: magic, tokens n, bytes of the rest, n + 1 offsets into the spellings
 * (u32 each), the rest of tokenizer.json as JSON, the spellings in UTF-8. An id without a token has no bytes.
 */
const MAGIC = 0x31564749 // "IGV1"
const HEADER_WORDS = 3

/** What is left of tokenizer.json without vocabulary and merges. */
export type TokenizerRest = Readonly<Record<string, unknown>> & { readonly model: Readonly<Record<string, unknown>> }

interface AddedToken {
  readonly id: number
  readonly content: string
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** Largest id of a vocabulary; beyond it, a number in the file is a mistake. */
const MAX_ID = 2 ** 24

const isToken = (id: unknown, content: unknown): boolean =>
  typeof content === 'string' && Number.isInteger(id) && (id as number) >= 0 && (id as number) < MAX_ID

/** Spellings by id, or undefined for a model whose vocabulary is stored in a way not known here. */
function spellings(model: Record<string, unknown>, added: readonly AddedToken[]): string[] | undefined {
  const { vocab } = model
  const pairs: [unknown, unknown][] = isRecord(vocab)
    ? Object.entries(vocab)
    : Array.isArray(vocab)
      ? vocab.map((entry, id) => [Array.isArray(entry) ? entry[0] : undefined, id]) // Unigram: token and score
      : []
  const known: string[] = []
  for (const [content, id] of [...pairs, ...added.map(({ content, id }) => [content, id] as const)]) {
    if (!isToken(id, content)) return undefined
    known[id as number] = content as string
  }
  return known.length > 0 ? known : undefined
}

/** Packs the vocabulary of a parsed tokenizer.json; undefined when it has none that is understood. */
export function packVocabulary(tokenizer: unknown): Uint8Array | undefined {
  if (!isRecord(tokenizer) || !isRecord(tokenizer.model)) return undefined
  const added = (Array.isArray(tokenizer.added_tokens) ? tokenizer.added_tokens : []) as AddedToken[]
  const known = spellings(tokenizer.model, added)
  if (!known) return undefined
  const { vocab, merges, ...model } = tokenizer.model
  const rest = Buffer.from(JSON.stringify({ ...tokenizer, model }))
  const texts = Array.from(known, (text) => Buffer.from(text ?? ''))
  const head = new Uint32Array(HEADER_WORDS + known.length + 1)
  head.set([MAGIC, known.length, rest.length])
  for (const [id, text] of texts.entries()) head[HEADER_WORDS + id + 1] = head[HEADER_WORDS + id]! + text.length
  return Buffer.concat([Buffer.from(head.buffer), rest, ...texts])
}

export class Vocabulary {
  /** Ids are below this. */
  readonly size: number
  readonly rest: TokenizerRest
  readonly #offsets: Uint32Array
  readonly #texts: Buffer

  /** Throws an Error for bytes that packVocabulary did not write. */
  constructor(bytes: Uint8Array) {
    // The words need an aligned start.
    const whole = bytes.byteOffset % 4 === 0 ? bytes : Uint8Array.from(bytes)
    const words = new Uint32Array(whole.buffer, whole.byteOffset, Math.floor(whole.length / 4))
    const [magic, size = 0, restBytes = 0] = words
    const begin = (HEADER_WORDS + size + 1) * 4
    if (magic !== MAGIC || begin + restBytes > whole.length) throw new Error('not a vocabulary')
    this.size = size
    this.#offsets = words.subarray(HEADER_WORDS, HEADER_WORDS + size + 1)
    const buffer = Buffer.from(whole.buffer, whole.byteOffset, whole.length)
    this.rest = JSON.parse(buffer.toString('utf8', begin, begin + restBytes))
    this.#texts = buffer.subarray(begin + restBytes)
    if (this.#offsets[size] !== this.#texts.length) throw new Error('a vocabulary of another length')
  }

  tokenOf(id: number): string | undefined {
    const [begin, end] = [this.#offsets[id], this.#offsets[id + 1]]
    if (begin === undefined || end === undefined || end <= begin) return undefined
    return this.#texts.toString('utf8', begin, end)
  }

  /** Compares every spelling: for the few tokens that a configuration names. */
  idOf(token: string): number | undefined {
    const wanted = Buffer.from(token)
    for (let id = 0; wanted.length > 0 && id < this.size; id++) {
      const [begin, end] = [this.#offsets[id]!, this.#offsets[id + 1]!]
      if (end - begin === wanted.length && this.#texts.compare(wanted, 0, wanted.length, begin, end) === 0) return id
    }
    return undefined
  }
}
