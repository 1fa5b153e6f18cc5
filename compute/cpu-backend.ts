/** The CPU backend: the addon's executor with the kernels of one instruction set. */
import { stat } from 'node:fs/promises'
import {
  type Addon,
  addon,
  addonPath,
  type NativeFault,
  type NativeModel,
  type NativeWeightFile,
  type Tally,
} from '../abi/native.ts'
import type { ResultView, StepView } from '../abi/step.ts'
import { type ErrorCode, type ErrorDetails, errors, fail, type IngotError } from '../errors.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { cpuTable } from './cpu.ts'
import type { Backend, DeviceInfo, LinkedPackage, MemoryUse, Runner, RunnerOptions, Trace } from './device.ts'
import { link } from './link.ts'
import { joinTrace, readOutputs, traceBytes, traceUnits } from './trace.ts'

const MAX_THREADS = 1024

const pins = { auto: 'automatic', true: 'always', false: 'never' } as const

/** Names of instruction sets for people. */
const isaNames: Readonly<Record<string, string>> = {
  portable: 'portable C++',
  avx2: 'AVX2',
  avx2_vnni: 'AVX2 with VNNI',
  avx512: 'AVX-512',
  avx512_vnni: 'AVX-512 VNNI',
  amx: 'AMX',
}

/** The typed error of a native fault. Faults of the plan name the package, which native code does not know. */
export function errorOf({ code, details }: NativeFault, path: string): IngotError {
  if (!(code in errors)) return fail('STEP_FAILED', { where: 'native code', reason: code })
  const named = code.startsWith('PLAN_') || code === 'LINK_GAPS' ? { ...details, path } : details
  return fail(code as ErrorCode, named as ErrorDetails<ErrorCode>)
}

/** The plan's tensors by file, with the size of each file. */
export async function weightFiles({ path, plan, tensors }: LinkedPackage): Promise<NativeWeightFile[]> {
  const files = new Map<string, NativeWeightFile['tensors'][number][]>()
  for (const [tensor, { name, rows, cols }] of plan.tensors.entries()) {
    const stored = tensors.get(name)
    if (!stored) throw fail('TENSOR_MISSING', { path, tensor: name, expected: `[${rows}, ${cols}]` })
    const entry = { tensor, offset: stored.offset, bytes: stored.bytes }
    const others = files.get(stored.file)
    if (others) others.push(entry)
    else files.set(stored.file, [entry])
  }
  return Promise.all(
    [...files].map(async ([file, entries]) => ({ path: file, bytes: await fileBytes(file), tensors: entries })),
  )
}

async function fileBytes(path: string): Promise<number> {
  try {
    return (await stat(path)).size
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT') throw fail('FILE_MISSING', { path, expected: 'the weights of the package' }, cause)
    throw fail('FILE_UNREADABLE', { path, reason: message }, cause)
  }
}

function traceBuffer(bytes: number): ArrayBuffer {
  try {
    return new ArrayBuffer(bytes)
  } catch (cause) {
    throw fail('OUT_OF_MEMORY', { thing: 'the trace of this step', needed: bytes, available: 'fewer' }, cause)
  }
}

/** A model in native code, on whatever device. */
export class NativeRunner implements Runner {
  readonly info: DeviceInfo
  readonly depth: 1 | 2
  protected readonly model: NativeModel
  protected readonly path: string
  private readonly plan: ExecutionPlan
  private disposed = false

  constructor(model: NativeModel, { path, plan }: LinkedPackage, info: DeviceInfo, pipelined: boolean) {
    this.model = model
    this.depth = pipelined ? 2 : 1
    this.path = path
    this.plan = plan
    this.info = info
  }

  async step(step: StepView, result: ResultView): Promise<void> {
    if (this.disposed) throw fail('MODEL_DISPOSED', { package: this.path })
    const fault = await this.model.step(step.buffer, result.buffer)
    if (fault) throw errorOf(fault, this.path)
  }

  async trace(step: StepView, result: ResultView): Promise<Trace> {
    if (this.disposed) throw fail('MODEL_DISPOSED', { package: this.path })
    const buffer = traceBuffer(traceBytes(this.plan, step))
    const fault = await this.model.step(step.buffer, result.buffer, buffer)
    if (fault) throw errorOf(fault, this.path)
    const units = traceUnits(this.plan, step, (state, unit) => this.readState(state, unit))
    return { instructions: joinTrace(readOutputs(this.plan, step, buffer), units) }
  }

  readState(state: number, unit: number): Uint8Array {
    return this.typed(() => this.model.readState(state, unit))
  }

  writeState(state: number, unit: number, bytes: Uint8Array): void {
    this.typed(() => this.model.writeState(state, unit, bytes))
  }

  private typed<T>(work: () => T): T {
    try {
      return work()
    } catch (cause) {
      const fault = cause as NativeFault
      throw fault.code in errors ? errorOf(fault, this.path) : cause
    }
  }

  memory(): MemoryUse {
    const { captures, ...bytes } = this.model.memory()
    return { ...bytes, ...(captures.count > 0 && { captures }) }
  }

  setTally(on: boolean): void {
    this.model.setTally(on)
  }

  tally(): Tally | undefined {
    return this.model.tally() ?? undefined
  }

  failAfter(instructions: number): void {
    this.model.failAfter(instructions)
  }

  dispose(): void {
    this.disposed = true
    this.model.dispose()
  }
}

/** Of executors on the CPU alone (native/core/guard.cc). */
class CpuRunner extends NativeRunner {
  sentinels(): readonly string[] {
    return this.model.sentinels() ?? []
  }
}

function infoOf({ isa, threads, pinning }: NativeModel): DeviceInfo {
  const description = `${isaNames[isa] ?? isa}, ${threads} ${threads === 1 ? 'thread' : 'threads'}`
  return { backend: 'cpu', description, isa, threads, pinning, deterministic: true }
}

async function open(native: Addon, pkg: LinkedPackage, options: RunnerOptions): Promise<Runner> {
  link('cpu', cpuTable, pkg, options)
  const { threads, isa, limits, blocks, slots, guard = false, pipelined = false } = options
  const pin = pins[String(options.pin ?? 'auto') as keyof typeof pins]
  if (!Number.isInteger(threads) || threads < 0 || threads > MAX_THREADS)
    throw fail('OPTION_INVALID', { option: 'threads', expected: `an integer from 0 to ${MAX_THREADS}`, got: threads })
  const weights = await weightFiles(pkg)
  const opened = native.openModel({ plan: pkg.planBytes, weights, isa, threads, pin, limits, blocks, slots, guard })
  if ('code' in opened) throw errorOf(opened, pkg.path)
  return new CpuRunner(opened, pkg, infoOf(opened), pipelined)
}

/** The CPU backend of the addon that `load` answers. */
export const cpuBackendOf = (load: () => Addon): Backend => ({
  name: 'cpu',
  table: cpuTable,
  kernelFiles: () => [addonPath()],
  unavailable() {
    try {
      load()
      return undefined
    } catch (error) {
      return { code: 'addon_missing', reason: (error as Error).message }
    }
  },
  open: async (pkg, options) => open(load(), pkg, options),
})

export const cpuBackend = cpuBackendOf(addon)
