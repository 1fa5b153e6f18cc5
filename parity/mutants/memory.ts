/**
 * Memory that knows of every word who wrote it: a read of what nobody wrote, or of what another has overwritten, is a
 * breach at the very access, whatever the values are.
 */

export type BreachKind =
  | 'unreadable'
  | 'index'
  | 'range'
  | 'undefined'
  | 'overwritten'
  | 'in-place'
  | 'type'
  | 'alignment'
  | 'access'
  | 'capability'
  | 'kernel'
  | 'unjudged'

/** What a plan did that no plan may. */
export class Breach extends Error {
  readonly kind: BreachKind
  constructor(kind: BreachKind, reason: string) {
    super(reason)
    this.kind = kind
  }
}

/** Elements behind an array that is none: each access is a decision. */
export interface Access {
  read(index: number): number
  write(index: number, value: number): void
}

/** What of a Float64Array the reference kernels use, over `length` elements of an Access from `start`. */
class Words {
  readonly length: number
  readonly #access: Access
  readonly #start: number

  constructor(access: Access, start: number, length: number) {
    this.#access = access
    this.#start = start
    this.length = length
  }
  read(index: number): number {
    if (!(index >= 0 && index < this.length)) throw new Breach('range', `element ${index} of ${this.length}`)
    return this.#access.read(this.#start + index)
  }
  write(index: number, value: number): void {
    if (!(index >= 0 && index < this.length)) throw new Breach('range', `element ${index} of ${this.length}`)
    this.#access.write(this.#start + index, value)
  }
  subarray(from: number, to = this.length): Float64Array {
    const [start, end] = [Math.min(from, this.length), Math.min(to, this.length)]
    return words(this.#access, Math.max(0, end - start), this.#start + start)
  }
  slice(from = 0, to = this.length): Float64Array {
    return Float64Array.from({ length: Math.max(0, to - from) }, (_, i) => this.read(from + i))
  }
  set(values: ArrayLike<number>, at = 0): void {
    const copy = Float64Array.from(values)
    for (const [i, value] of copy.entries()) this.write(at + i, value)
  }
  copyWithin(target: number, from: number): void {
    this.set(this.slice(from), target)
  }
  fill(value: number): Float64Array {
    for (let i = 0; i < this.length; i++) this.write(i, value)
    return this.subarray(0)
  }
  map(f: (value: number, index: number) => number): Float64Array {
    return this.slice().map(f)
  }
  reduce(f: (a: number, b: number) => number, first: number): number {
    return this.slice().reduce(f, first)
  }
  keys() {
    return this.slice().keys()
  }
  entries() {
    return this.slice().entries()
  }
  [Symbol.iterator]() {
    return this.slice()[Symbol.iterator]()
  }
}

const isIndex = (key: string | symbol): key is string => typeof key === 'string' && /^-?\d|NaN/.test(key)

const handler: ProxyHandler<Words> = {
  get(target, key) {
    if (isIndex(key)) return target.read(Number(key))
    const value = Reflect.get(target, key, target)
    if (value === undefined) throw new TypeError(`no ${String(key)} in watched memory`)
    return typeof value === 'function' ? value.bind(target) : value
  },
  set(target, key, value) {
    target.write(Number(key as string), value)
    return true
  },
}

/** `length` elements of `access` as a kernel sees them. */
export const words = (access: Access, length: number, start = 0): Float64Array =>
  new Proxy(new Words(access, start, length), handler) as unknown as Float64Array

/** The value of a word, and who wrote it as what. */
export interface Cell {
  value: number
  /** Register, or instruction where the memory is a state's. */
  owner: number
  /** Row of the register. */
  row: number
  /** Instruction that wrote it. */
  writer: number
  dtype: string
}

/** Words by address; those that are absent are poison. */
export class Cells {
  readonly #cells = new Map<number, Cell>()

  get(address: number): Cell | undefined {
    return this.#cells.get(address)
  }
  set(address: number, cell: Cell): void {
    this.#cells.set(address, cell)
  }
  /** Poisons words [from, to). */
  poison(from: number, to: number): void {
    if (to - from < this.#cells.size) for (let at = from; at < to; at++) this.#cells.delete(at)
    else for (const at of this.#cells.keys()) if (at >= from && at < to) this.#cells.delete(at)
  }
  clear(): void {
    this.#cells.clear()
  }
  copy(): Cells {
    const copied = new Cells()
    for (const [at, cell] of this.#cells) copied.set(at, { ...cell })
    return copied
  }
}

/** A number in (-0.5, 0.5) that depends on both arguments only: a murmur3 finaliser (Appleby, 2011). */
export function noise(a: number, b: number): number {
  let z = (Math.imul(a, 0x9e3779b1) ^ Math.imul(b + 1, 0x85ebca77)) | 0
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b)
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35)
  return ((z ^ (z >>> 16)) >>> 0) / 2 ** 32 - 0.5
}
