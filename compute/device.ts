/** What the engine sees of a backend: it opens a plan and runs steps. */
import type { Tally } from '../abi/native.ts'
import type { ResultView, StepLimits, StepView } from '../abi/step.ts'
import type { ExecutionPlan } from '../plans/plan.ts'

/** One stored weight of a package: bytes of a file. */
export interface StoredTensor {
  readonly file: string
  readonly offset: number
  readonly bytes: number
}

/** A plan that passed the verifier, with its weights located. */
export interface LinkedPackage {
  /** Path, for messages. */
  readonly path: string
  readonly plan: ExecutionPlan
  readonly planBytes: Uint8Array
  /** By name of the plan's tensors. */
  readonly tensors: ReadonlyMap<string, StoredTensor>
}

export interface RunnerOptions {
  readonly limits: StepLimits
  /** Blocks of every paged state, the dump block included. */
  readonly blocks: number
  /** Slots of every fixed state, the dump slot included. */
  readonly slots: number
  /** 0: as many as the machine has physical cores. */
  readonly threads: number
  /** Instruction set to use; empty: the best available. */
  readonly isa: string
  /** Hold each thread to a core of its own: auto when the threads fill all cores that the process may use. */
  readonly pin?: boolean | 'auto' | undefined
  /** Accept kernels that are launched once a slot instead of once a step. */
  readonly allowPerSlot?: boolean | undefined
}

export interface DeviceInfo {
  readonly backend: string
  /** For people: "AVX-512 VNNI, 2 threads". */
  readonly description: string
  readonly isa: string
  readonly threads: number
  /** Whether each thread is held to a core of its own, and why or why not. */
  readonly pinning?: { readonly pinned: boolean; readonly reason: string }
  /** Whether a request's output is independent of the batch, bit for bit. */
  readonly deterministic: boolean
  /** Set where steps compute on the thread that asks for them, an instruction at a time. */
  readonly onEventLoop?: true
}

export interface MemoryUse {
  readonly weightsBytes: number
  readonly arenaBytes: number
  readonly stateBytes: number
  readonly scratchBytes: number
}

/** A plan ready to run. One step at a time; a rejected step has changed nothing that a later step may rely on. */
export interface Runner {
  readonly info: DeviceInfo
  /**
   * Runs the step; the buffers belong to the runner until it settles. Rejects with DeviceError: then fixed states are as
   * before, and blocks too, but for positions that the step was to write and targets of its copies (ADR 0009).
   */
  step(step: StepView, result: ResultView): Promise<void>
  /** A copy of the bytes of one unit of a state, between steps; what they mean is the backend's own. */
  readState?(state: number, unit: number): Uint8Array
  /** Puts such bytes back, between steps; all zero is what a unit holds before its first use. */
  writeState?(state: number, unit: number, bytes: Uint8Array): void
  memory(): MemoryUse
  /** Starts counting time by instruction at zero, or ends it; between steps. A backend without it keeps no tally. */
  setTally?(on: boolean): void
  /** What was counted since; undefined: off. Between steps. */
  tally?(): Tally | undefined
  /** For tests: the next step fails with STEP_FAILED once that many instructions of the plan have run. */
  failAfter?(instructions: number): void
  dispose(): void
}

export interface Backend {
  readonly name: string
  /** Undefined when it can run here; else why not, with a stable reason code. */
  unavailable(): { readonly code: string; readonly reason: string } | undefined
  /** Links `pkg` (every gap reported at once) and opens it. */
  open(pkg: LinkedPackage, options: RunnerOptions): Promise<Runner>
}
