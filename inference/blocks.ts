/**
 * Who holds which block of paged state. A block is in one of three conditions: held (a count of holders above 0), idle
 * (no holder, but its contents are kept for reuse) or empty. Idle and empty blocks are free: allocation takes an empty
 * one, else evicts the block that has been idle longest. Block 0 is the dump: it belongs to nobody.
 */
export class BlockPool {
  /** Blocks, the dump included. */
  readonly total: number
  /** Holders of each block. */
  readonly refs: Uint32Array
  /** First block that was never allocated; it and all after it are empty. */
  #fresh = 1
  /** Empty again. */
  readonly #empty: number[] = []
  /** In the order in which they fell idle. */
  readonly #idle = new Set<number>()
  readonly #kept: Uint8Array
  /** Told when the kept contents of a block are given up. */
  onEvict: (block: number) => void = () => {}

  constructor(total: number) {
    this.total = total
    this.refs = new Uint32Array(total)
    this.#kept = new Uint8Array(total)
  }

  get free(): number {
    return this.total - this.#fresh + this.#empty.length + this.#idle.size
  }
  get idle(): number {
    return this.#idle.size
  }
  get used(): number {
    return this.total - 1 - this.free
  }

  /** A block with one holder. The scheduler never asks for more than `free`. */
  allocate(): number {
    const block = this.#empty.pop() ?? (this.#fresh < this.total ? this.#fresh++ : this.#evict())
    this.refs[block] = 1
    return block
  }

  /** Adds a holder, which also wakes an idle block. */
  retain(block: number): void {
    if (this.refs[block]!++ === 0) this.#idle.delete(block)
  }

  release(block: number): void {
    if (this.refs[block] === 0) throw new RangeError(`block ${block} has no holder`)
    if (--this.refs[block]! > 0) return
    if (this.#kept[block]) this.#idle.add(block)
    else this.#empty.push(block)
  }

  /** Keeps the contents of a held block when its last holder leaves. */
  keep(block: number): void {
    this.#kept[block] = 1
  }

  #evict(): number {
    const [block] = this.#idle
    if (block === undefined) throw new RangeError('no block is free')
    this.#idle.delete(block)
    this.#kept[block] = 0
    this.onEvict(block)
    return block
  }
}
