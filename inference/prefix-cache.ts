/**
 * Finds blocks that already hold the state of a prompt's beginning.
 *
 * A full block is known by a SHA-256 chain over its tokens and everything before it. A hit counts only when the tokens
 * and the parent entry are the same too, so that a collision costs a miss and never a wrong answer. Where a sequence
 * computes a block that is already here, it adopts the one that is here: whoever holds a block then holds its parents,
 * so blocks fall idle children first and an evicted block never leaves unreachable ones behind.
 */
import { createHash } from 'node:crypto'
import type { BlockPool } from './blocks.ts'
import type { Request } from './request.ts'

export interface CachedBlock {
  readonly block: number
  readonly parent: CachedBlock | undefined
  readonly key: string
  readonly tokens: Int32Array
}

export class PrefixCache {
  readonly #entries = new Map<string, CachedBlock>()
  readonly #byBlock: (CachedBlock | undefined)[] = []
  readonly #pool: BlockPool
  readonly #blockTokens: number
  /** Changes whenever what a lookup finds may have changed. */
  version = 0

  constructor(pool: BlockPool, blockTokens: number) {
    this.#pool = pool
    this.#blockTokens = blockTokens
    pool.onEvict = (block) => this.#forget(block)
  }

  get size(): number {
    return this.#entries.size
  }

  /** Looks up, for a request in the queue, the cached blocks that it would start from. */
  seek(request: Request): void {
    if (request.allRows || request.matchedAt === this.version) return
    const entries = this.match(request.tokens.subarray(0, request.known), request.keys)
    const tokens = entries.length * this.#blockTokens
    request.matchedAt = this.version
    request.blocks = entries.map((entry) => entry.block)
    // The last token is computed again whatever is cached: its row is wanted.
    request.computed = Math.min(tokens, request.known - 1)
    request.copy = request.computed < tokens
    request.registered = Math.floor(request.computed / this.#blockTokens)
    request.entry = entries[request.registered - 1]
  }

  /** Makes newly full blocks of a request known, or has it adopt the blocks that already hold the same. */
  register(request: Request): void {
    if (request.allRows) return
    while ((request.registered + 1) * this.#blockTokens <= request.computed) {
      const index = request.registered
      const block = request.blocks[index]!
      const broken = index > 0 && !request.entry
      const entry = broken ? undefined : this.insert(request.tokens, request.keys, index, request.entry, block)
      if (entry && entry.block !== block) {
        this.#pool.retain(entry.block)
        this.#pool.release(block)
        request.blocks[index] = entry.block
      }
      request.entry = entry
      request.registered++
    }
  }

  /** Entries of the longest cached chain of full blocks at the start of `tokens`; `keys` remembers the hashes. */
  match(tokens: Int32Array, keys: string[]): CachedBlock[] {
    const found: CachedBlock[] = []
    const full = Math.floor(tokens.length / this.#blockTokens)
    for (let index = 0; index < full; index++) {
      const slice = this.#slice(tokens, index)
      keys[index] ??= this.#key(keys[index - 1], slice)
      const entry = this.#entries.get(keys[index]!)
      if (!entry || entry.parent !== found[index - 1] || !equal(entry.tokens, slice)) break
      found.push(entry)
    }
    return found
  }

  /**
   * Registers the full block `index` of `tokens` under `parent` (undefined for the first) and returns its entry: a
   * present one with another block when the same content is cached already, undefined when the hash collides.
   */
  insert(
    tokens: Int32Array,
    keys: string[],
    index: number,
    parent: CachedBlock | undefined,
    block: number,
  ): CachedBlock | undefined {
    const slice = this.#slice(tokens, index)
    const key = (keys[index] ??= this.#key(keys[index - 1], slice))
    const present = this.#entries.get(key)
    if (present) return present.parent === parent && equal(present.tokens, slice) ? present : undefined
    const entry = { block, parent, key, tokens: slice.slice() }
    this.#entries.set(key, entry)
    this.#byBlock[block] = entry
    this.#pool.keep(block)
    this.version++
    return entry
  }

  #forget(block: number): void {
    const entry = this.#byBlock[block]
    if (!entry) return
    this.#byBlock[block] = undefined
    this.#entries.delete(entry.key)
    this.version++
  }

  #slice(tokens: Int32Array, index: number): Int32Array {
    return tokens.subarray(index * this.#blockTokens, (index + 1) * this.#blockTokens)
  }

  #key(parent: string | undefined, tokens: Int32Array): string {
    const bytes = new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength)
    return createHash('sha256')
      .update(parent ?? '', 'latin1')
      .update(bytes)
      .digest('binary')
  }
}

function equal(a: Int32Array, b: Int32Array): boolean {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}
