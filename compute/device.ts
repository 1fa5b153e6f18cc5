/** What the engine sees of a backend: it opens a plan and runs steps. */
import type { Captures, ChoiceUse, NativeChoice, Tally } from '../abi/native.ts'
import type { ResultView, StepLimits, StepView } from '../abi/step.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import type { KernelTable } from './table.ts'

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

/** A measured choice: the kernel of instructions of one opcode, dtype and shape (tuning.ts), in launches of so many rows. */
export interface KernelChoice {
  readonly opcode: string
  readonly dtype: string
  readonly shape: string
  /** A power of two: launches of at most so many rows, and more than half of them. */
  readonly rows: number
  readonly chosen: string
}

/** Choices for the mode that a package is opened in; none, and why. */
export interface RunnerTuning {
  readonly file?: string | undefined
  readonly reason?: string | undefined
  readonly entries: readonly KernelChoice[]
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
  /** No bit of a request's output may depend on the batch. A backend whose outputs never do ignores it. */
  readonly deterministic?: boolean | undefined
  /** Take a step while another is in flight; default: as is faster on the backend. One that cannot ignores it. */
  readonly pipelined?: boolean | undefined
  /** Accept kernels that are launched once a slot instead of once a step. */
  readonly allowPerSlot?: boolean | undefined
  /** Which kernels to take where there are several; default: by rules. A backend without `identity` ignores it. */
  readonly tuning?: RunnerTuning | undefined
  /** Opened to compare choices of kernels: `Runner.compare`. */
  readonly compare?: boolean | undefined
  /** For checks: sentinels around registers and states, NaN in what nothing has written. A step then costs a pass over both. */
  readonly guard?: boolean | undefined
}

/** Where choices of kernels come from. */
export interface TuningInfo {
  readonly source: 'file' | 'rules'
  /** In the package's tuning/. */
  readonly file?: string
  /** Why no file counts. */
  readonly reason?: string
  /** Of the file, those that are of an instruction of the plan and of launches that there can be. */
  readonly entries: number
  /** Of those, any whose kernel cannot serve here: the rules choose. */
  readonly refused: number
}

export interface DeviceInfo {
  readonly backend: string
  /** For people: "AVX-512 VNNI, 2 threads". */
  readonly description: string
  readonly isa: string
  /** Version of the device's driver, where it has one. */
  readonly driver?: string
  readonly threads: number
  /** Whether each thread is held to a core of its own, and why or why not. */
  readonly pinning?: { readonly pinned: boolean; readonly reason: string }
  /** Whether a request's output is independent of the batch, bit for bit. */
  readonly deterministic: boolean
  /** Where there are kernels to choose from. */
  readonly tuning?: TuningInfo
  /** Set where steps compute on the thread that asks for them, an instruction at a time. */
  readonly onEventLoop?: true
}

export interface MemoryUse {
  readonly weightsBytes: number
  readonly arenaBytes: number
  readonly stateBytes: number
  readonly scratchBytes: number
  /** Steps that a device captured once to replay them; their bytes are part of `scratchBytes`. */
  readonly captures?: Captures
}

/** One output of an instruction: (rows, width), row after row; as many rows as its space has in the step. */
export interface TracedOutput {
  readonly register: number
  readonly rows: number
  readonly width: number
  readonly values: Float32Array | Float64Array | Int32Array
}

/** A unit (block or slot) of a state as a step left it. Its bytes mean something to one backend only. */
export interface StateUnit {
  readonly state: number
  readonly unit: number
  readonly sha256: string
}

/** What one instruction wrote. One that had nothing to do has outputs of no rows. */
export interface InstructionTrace {
  readonly outputs: readonly TracedOutput[]
  /** The units of the states it writes that the step reaches. */
  readonly units: readonly StateUnit[]
}

/** What each instruction of a step wrote, by instruction of the plan. */
export interface Trace {
  readonly instructions: readonly InstructionTrace[]
}

/** A plan ready to run. Steps run one after the other; a rejected one has changed nothing that a later step may rely on. */
export interface Runner {
  readonly info: DeviceInfo
  /**
   * Steps that may be asked for before the first has settled; absent: 1. Where 2, they run and settle in the order asked
   * for; one that follows (abi/step.ts) may name tokens of the one before it, and is rejected, having changed nothing at
   * all, where that one was.
   */
  readonly depth?: 1 | 2
  /**
   * Runs the step; the buffers belong to the runner until it settles. Rejects with DeviceError: then fixed states are as
   * before, and blocks too, but for positions that the step was to write and targets of its copies (ADR 0009).
   */
  step(step: StepView, result: ResultView): Promise<void>
  /**
   * As step(), and copies out what each instruction wrote: 4 bytes an element of every output, so for small steps. A
   * backend without it cannot show what its instructions write. Besides, OUT_OF_MEMORY.
   */
  trace?(step: StepView, result: ResultView): Promise<Trace>
  /** A copy of the bytes of one unit of a state, between steps; what they mean is the backend's own. */
  readState?(state: number, unit: number): Uint8Array
  /** Puts such bytes back, between steps; all zero is what a unit holds before its first use. */
  writeState?(state: number, unit: number, bytes: Uint8Array): void
  memory(): MemoryUse
  /** Starts counting time by instruction at zero, or ends it; between steps. A backend without it keeps no tally. */
  setTally?(on: boolean): void
  /** What was counted since; undefined: off. Between steps. */
  tally?(): Tally | undefined
  /** Where `info.tuning` is: launches that a measured choice decided, and those that went by the rules. */
  choiceUse?(): ChoiceUse
  /**
   * Kernels that can serve launches of `rows` rows of an instruction, that of the rules first; empty: nothing to choose.
   * `decode`: of steps in which every sequence has one token. Between steps.
   */
  choices?(instruction: number, rows: number, decode: boolean): readonly string[]
  /**
   * Opened with `compare`: microseconds of the step with each set of choices, run in turns: (sets, rounds). Rejects as
   * step() does; no results are written.
   */
  compare?(
    step: StepView,
    result: ResultView,
    sets: readonly (readonly NativeChoice[])[],
    rounds: number,
  ): Promise<readonly (readonly number[])[]>
  /** Opened with `guard`: what the last step wrote and was not to write. A backend without it watches nothing. */
  sentinels?(): readonly string[]
  /** For tests: the next step fails with STEP_FAILED once that many instructions of the plan have run. */
  failAfter?(instructions: number): void
  dispose(): void
}

/** What measurements of a backend's kernels hold for, as text. */
export interface KernelIdentity {
  readonly backend: string
  /** Name of the device, and its compute capability. */
  readonly device: string
  readonly capability: string
  readonly driver: string
  /** Digest of the kernels' sources, and how they were compiled. */
  readonly kernels: string
}

export interface Backend {
  readonly name: string
  /** What it says that it runs; absent: every opcode. */
  readonly table?: KernelTable
  /** Files that hold its code, as it runs here: what a certificate names. A backend without it cannot have one. */
  kernelFiles?(): readonly string[] | Promise<readonly string[]>
  /** Of a backend with kernels to choose from, that can run here. */
  identity?(): KernelIdentity
  /** Undefined when it can run here; else why not, with a stable reason code. */
  unavailable(): { readonly code: string; readonly reason: string } | undefined
  /** Links `pkg` (every gap reported at once) and opens it. */
  open(pkg: LinkedPackage, options: RunnerOptions): Promise<Runner>
}
