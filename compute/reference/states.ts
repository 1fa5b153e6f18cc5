/**
 * States in float64: one array a unit, made when it is first touched. Whatever a state's dtype, nothing is rounded here:
 * an int8 state keeps keys and values themselves, and its scales stay unused.
 */
import { dtypes } from '../../abi/dtypes.ts'
import type { StateDescriptor } from '../../abi/state.ts'
import { copyPair, stepHeader } from '../../abi/step.ts'
import type { ReferenceStep, State } from './kernel.ts'

export interface StateStore extends State {
  readonly descriptor: StateDescriptor
  copy(source: number, target: number): void
  /** Makes the unit read as zero. */
  reset(unit: number): void
  /** A copy of the unit's bytes, and the way back. */
  read(unit: number): Uint8Array
  write(unit: number, bytes: Uint8Array): void
  /** Bytes of all units touched. */
  bytes(): number
}

export function createState(descriptor: StateDescriptor): StateStore {
  const elements = (descriptor.sizeBytes * 8) / dtypes[descriptor.dtype].bits
  const units = new Map<number, Float64Array>()
  const unit = (index: number) => {
    const known = units.get(index)
    if (known) return known
    const made = new Float64Array(elements)
    units.set(index, made)
    return made
  }
  return {
    descriptor,
    blockTokens: descriptor.blockTokens,
    unit,
    copy: (source, target) => unit(target).set(unit(source)),
    reset: (index) => units.delete(index),
    read: (index) => new Uint8Array(unit(index).slice().buffer),
    write: (index, bytes) => new Uint8Array(unit(index).buffer).set(bytes),
    bytes: () => units.size * elements * Float64Array.BYTES_PER_ELEMENT,
  }
}

/** Takes note of every slot of fixed states that a step may write; disposing puts them back, unless they are kept. */
export function savedSlots(states: readonly StateStore[], step: ReferenceStep): Disposable & { keep(): void } {
  const resets = step.resetSlots.subarray(0, step.header[stepHeader.word.resets])
  const slots = new Set([...step.sequenceSlot.subarray(0, step.sequences), ...resets])
  let saved = states
    .filter(({ descriptor }) => descriptor.kind === 'fixed')
    .flatMap((state) => [...slots].map((slot) => ({ state, slot, bytes: state.read(slot) })))
  return {
    keep: () => {
      saved = []
    },
    [Symbol.dispose]: () => {
      for (const { state, slot, bytes } of saved) state.write(slot, bytes)
    },
  }
}

/** The copies and resets of a step, before its first instruction. */
export function prepareStates(states: readonly StateStore[], step: ReferenceStep): void {
  const paged = states.filter(({ descriptor }) => descriptor.kind !== 'fixed')
  const fixed = states.filter(({ descriptor }) => descriptor.kind === 'fixed')
  for (let i = 0; i < step.header[stepHeader.word.copies]!; i++) {
    const at = (i * copyPair.bytes) / 4
    const [source, target] = [step.copyPairs[at + copyPair.word.source]!, step.copyPairs[at + copyPair.word.target]!]
    for (const state of paged) state.copy(source, target)
  }
  for (const slot of step.resetSlots.subarray(0, step.header[stepHeader.word.resets]))
    for (const state of fixed) state.reset(slot)
}
