/** Records of fixed-size state, one a running sequence. Slot 0 is the dump. */
export class SlotPool {
  readonly #free: number[] = []

  /** `total` slots, the dump included. */
  constructor(total: number) {
    for (let slot = total - 1; slot > 0; slot--) this.#free.push(slot)
  }

  get free(): number {
    return this.#free.length
  }

  allocate(): number {
    const slot = this.#free.pop()
    if (slot === undefined) throw new RangeError('no slot is free')
    return slot
  }

  release(slot: number): void {
    this.#free.push(slot)
  }
}
