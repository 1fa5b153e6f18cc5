/**
 * The edge to the native addon: its interface, and the one place that loads it. No V8 value is held past a call, except
 * the buffers of a step, or of a packing, while that runs.
 */

import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { fail } from '../errors.ts'

/** Why the verifier refuses a plan. `rule` is a stable name; `where` names instruction, register or byte. */
export interface PlanFault {
  readonly rule: string
  readonly where: string
  readonly reason: string
  /** Set when the plan needs a newer runtime than this one. */
  readonly minRuntime?: number
}

export interface Machine {
  readonly arch: string
  readonly cpu: string
  /** Cores that the process may use; fewer where its control groups allow less time. */
  readonly physicalCores: number
  /** Processors' worth of time that the control groups allow; 0: no limit. */
  readonly quota: number
  /** Whether threads by default are each held to a core, and why. */
  readonly pinning: string
  readonly features: readonly string[]
  /** Instruction sets that this build has and this machine can run, best first. */
  readonly available: readonly string[]
  /** Instruction sets of the build that are left out, with the reason. */
  readonly unavailable: readonly { readonly isa: string; readonly reason: string }[]
}

export interface NativeWeightFile {
  readonly path: string
  readonly bytes: number
  /** Index of the plan's tensor, byte offset in the file, bytes. */
  readonly tensors: readonly { readonly tensor: number; readonly offset: number; readonly bytes: number }[]
}

export interface NativeModelOptions {
  readonly plan: Uint8Array
  readonly weights: readonly NativeWeightFile[]
  /** Instruction set; the best available when empty. */
  readonly isa: string
  readonly threads: number
  /** always, never, or what pinning() of native/core/processors.h decides: automatic. */
  readonly pin: string
  readonly limits: {
    readonly tokens: number
    readonly rows: number
    readonly sequences: number
    readonly blocksPerSequence: number
  }
  /** Blocks of every paged state, dump block included. */
  readonly blocks: number
  /** Slots of every fixed state, dump slot included. */
  readonly slots: number
  /** For checks: sentinels around registers and states, NaN in what nothing has written. */
  readonly guard?: boolean
  /** The library that runs it; absent: the CPU. */
  readonly backend?: 'cuda'
  /** Whether no bit of a request's output may depend on the batch. The CPU's never do. */
  readonly deterministic?: boolean
  /** Kernels, where the backend has several; one that cannot serve is not taken. */
  readonly choices?: readonly NativeChoice[]
  /** With memory for every choice, so that they can be compared. */
  readonly compare?: boolean
}

/** The kernel that instructions take in launches of at most `rows` rows, and more than half as many. */
export interface NativeChoice {
  readonly instructions: readonly number[]
  readonly rows: number
  readonly kernel: string
}

/** Choices given at open and those that could be taken; launches that one decided, and others that had something to choose. */
export interface ChoiceUse {
  readonly given: number
  readonly taken: number
  readonly hits: number
  readonly misses: number
}

/** Steps that were captured to be replayed: how many, bytes that they hold on the device, and what capturing took. */
export interface Captures {
  readonly count: number
  readonly bytes: number
  readonly milliseconds: number
}

/** The CUDA library and its device. */
export interface CudaStatus {
  /** available, or why no model can be opened: stable codes of native/addon/device_library.cc and native/cuda/device.cc. */
  readonly code: string
  readonly reason: string
  readonly name: string
  /** Compute capability: 9.0. */
  readonly capability: string
  /** Versions of CUDA that the driver supports and that the library was built with: 13000 is 13.0; 0: none. */
  readonly driver: number
  readonly runtime: number
  readonly memoryBytes: number
  readonly availableBytes: number
}

/** Native failures carry a stable code of errors.ts and its details; compute/ turns them into typed errors. */
export interface NativeFault {
  readonly code: string
  readonly details: Readonly<Record<string, string | number>>
}

/** Sums over the steps of one phase. Times are in nanoseconds. */
export interface StepTally {
  readonly steps: number
  readonly tokens: number
  readonly rows: number
  readonly sequences: number
  /** Positions known after a step, summed over its sequences: what attention reads of the state. */
  readonly positions: number
  /** Positions up to its own, summed over the tokens: what each attends to. */
  readonly attended: number
  /** Of whole steps in native code; preparing states, and writing results, in them. */
  readonly nanoseconds: number
  readonly states: number
  readonly results: number
  /** By instruction of the plan: how often it ran, and for how long. */
  readonly instructionCalls: Float64Array
  readonly instructionNanoseconds: Float64Array
}

/** `decode`: steps in which every sequence computes one token; `prefill`: the others. */
export interface Tally {
  readonly prefill: StepTally
  readonly decode: StepTally
}

export interface NativeModel {
  /**
   * Runs one step on the model's own thread, after those that were asked for before; two may be on their way. The buffers
   * must not change until it settles; null is success.
   */
  step(step: ArrayBuffer, result: ArrayBuffer): Promise<NativeFault | null>
  /**
   * As step(step, result), with a third buffer that receives the rows of every instruction's outputs, packed in the plan's
   * order; exactly as large as those, or empty.
   */
  step(step: ArrayBuffer, result: ArrayBuffer, trace: ArrayBuffer): Promise<NativeFault | null>
  /** Copies the bytes of one unit (block or slot) of a state out of, or into, the device. Throw an Error with a fault's fields. */
  readState(state: number, unit: number): Uint8Array
  writeState(state: number, unit: number, bytes: Uint8Array): void
  /** For tests: the next step fails once that many instructions of the plan have run. */
  failAfter(instructions: number): void
  /** Starts a tally at zero, or ends it. This and `tally` throw while a step runs. */
  setTally(on: boolean): void
  /** What was counted since; null: off. */
  tally(): Tally | null
  /** What the last step wrote and was not to write; null: opened without `guard`. Throws while a step runs. */
  sentinels(): string[] | null
  memory(): {
    readonly weightsBytes: number
    readonly arenaBytes: number
    readonly stateBytes: number
    readonly scratchBytes: number
    readonly captures: Captures
  }
  /**
   * Kernels that can serve launches of `rows` rows of an instruction, that of the rules first; empty: nothing to choose.
   * Throws while a step runs, as does the next.
   */
  choices(instruction: number, rows: number, decode: boolean): string[]
  /**
   * Of a model opened with `compare`: runs a step with each of `sets` of choices in turns, as often as `microseconds`, f64
   * (rounds, sets), has room for. Writes states and results as the step does.
   */
  compare(
    step: ArrayBuffer,
    result: ArrayBuffer,
    microseconds: ArrayBuffer,
    sets: readonly (readonly NativeChoice[])[],
  ): Promise<NativeFault | null>
  choiceUse(): ChoiceUse
  readonly isa: string
  readonly threads: number
  readonly pinning: { readonly pinned: boolean; readonly reason: string }
  /** Waits for the steps on their way, then frees everything at once. Idempotent. */
  dispose(): void
}

export interface NativeProbeOptions {
  /** Instruction set; the best available when empty. */
  readonly isa: string
  /** 0: as many as the machine has physical cores. */
  readonly threads: number
  /** Of the buffer that is read, at most; 2^28 to 2^30. */
  readonly readBytes: number
}

/** Ceilings of one instruction set, measured on the shared pool. */
export interface NativeCeilings {
  readonly isa: string
  readonly threads: number
  /** Bytes of the buffer that was read. */
  readonly bytes: number
  /**
   * One value a window: GB/s (10^9) of `read` and `read_far` (two prefetched streams a thread) and `read_plain`; GOP/s
   * (10^9, a multiply-add is two) of f32, i8, bf16 (vectors) and i8_tile, bf16_tile (AMX), where the instruction set has
   * them.
   */
  readonly measurements: readonly { readonly name: string; readonly samples: readonly number[] }[]
}

export interface NativePacking {
  /** Rows as they are, or quantised: models/compile/tiles.ts says how. */
  readonly format: 'plain' | 'q8' | 'q4' | 'fp8'
  /** Ids of the rows' dtype and of the tiles' layout. */
  readonly dtype: number
  readonly layout: number
  readonly cols: number
  /** Whole rows, at any alignment. */
  readonly rows: readonly Uint8Array[]
  /** Outputs, each of exactly the bytes that these rows need. */
  readonly tiles: Uint8Array
  readonly scales: Uint8Array
  readonly subScales: Uint8Array
  /** Instruction set; the best available when empty. */
  readonly isa: string
  /** 0: as many as the machine has physical cores. */
  readonly threads: number
}

export interface Addon {
  machine(): Machine
  /** Null: the plan is sound. Never throws on any bytes. */
  verifyPlan(plan: Uint8Array): PlanFault | null
  /** Private, lazily read mapping of a whole file; freed with the buffer. Writes to it stay private. */
  mapFile(path: string): ArrayBuffer
  openModel(options: NativeModelOptions): NativeModel | NativeFault
  /** Loads the CUDA library when first asked. */
  cuda(): CudaStatus
  /** What measurements of CUDA kernels are of: a digest of their sources, and what they call; empty: there is no library. */
  cudaKernels(): string
  /** Measures for about a second, off the event loop; steps of open models take turns with it. */
  probe(options: NativeProbeOptions): Promise<NativeCeilings | NativeFault>
  /**
   * Packs rows of a weight into tiles, off the event loop. The buffers must not change until it settles, to the index of
   * the first row that the format cannot hold, or -1.
   */
  pack(packing: NativePacking): Promise<number>
}

let loaded: Addon | undefined

/** Folder that holds package.json: the sources' root, or the parent of dist/. */
export function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder)
  return folder
}

/** Version of Ingot, as package.json says. */
export const packageVersion = (): string =>
  (JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as { version: string }).version

export const addonPath = () => join(packageRoot(), 'build', 'Release', 'ingot.node')

/** Loads the addon once; throws DeviceError ADDON_MISSING with the loader's reason. */
export function addon(): Addon {
  if (loaded) return loaded
  try {
    loaded = createRequire(import.meta.url)(addonPath()) as Addon
    return loaded
  } catch (cause) {
    throw fail('ADDON_MISSING', { reason: (cause as Error).message.split('\n')[0] }, cause)
  }
}
