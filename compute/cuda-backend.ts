/** The CUDA backend: the executor of libingot_cuda.so, which the addon loads from beside itself. */
import { dirname, join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { addon, addonPath, type ChoiceUse, type CudaStatus, type NativeChoice } from '../abi/native.ts'
import type { ResultView, StepView } from '../abi/step.ts'
import { fail } from '../errors.ts'
import { errorOf, NativeRunner, weightFiles } from './cpu-backend.ts'
import { cudaTable, deviceGaps } from './cuda.ts'
import type { Backend, DeviceInfo, KernelIdentity, LinkedPackage, Runner, RunnerOptions, TuningInfo } from './device.ts'
import { link } from './link.ts'
import { choicesFor } from './tuning.ts'

function status(): Pick<CudaStatus, 'code' | 'reason'> & Partial<CudaStatus> {
  try {
    return addon().cuda()
  } catch (error) {
    return { code: 'addon_missing', reason: (error as Error).message }
  }
}

const driverOf = ({ driver = 0 }: Partial<CudaStatus>) => `CUDA ${Math.floor(driver / 1000)}.${(driver % 1000) / 10}`

function infoOf(isa: string, deterministic: boolean, tuning: TuningInfo): DeviceInfo {
  const found = status()
  const description = `${found.name}, ${isa}, ${deterministic ? 'deterministic' : 'outputs may depend on the batch'}`
  return { backend: 'cuda', description, isa, driver: driverOf(found), threads: 1, deterministic, tuning }
}

function identity(): KernelIdentity {
  const found = status()
  const { name: device = '', capability = '' } = found
  return { backend: 'cuda', device, capability, driver: driverOf(found), kernels: addon().cudaKernels() }
}

/**
 * Longest step that is polled for, in milliseconds. An event loop that sleeps takes a tenth of a millisecond to wake up,
 * while the device waits; one that has something to do at once does not sleep.
 */
const POLLED_MS = 8

export class CudaRunner extends NativeRunner {
  /** Milliseconds that the last step took. */
  private last = 0
  private flying = 0

  override async step(step: StepView, result: ResultView): Promise<void> {
    // While another runs, the device has work whenever the event loop wakes up.
    if (this.flying++ > 0) return super.step(step, result).finally(() => this.flying--)
    const start = performance.now()
    let running = true
    const done = super.step(step, result).finally(() => {
      running = false
      this.flying--
    })
    done.catch(() => {}) // handled below, once polling ends
    while (running && this.last < POLLED_MS && performance.now() - start < POLLED_MS) await setImmediate()
    await done
    this.last = performance.now() - start
  }

  choiceUse(): ChoiceUse {
    return this.model.choiceUse()
  }

  choices(instruction: number, rows: number, decode: boolean): readonly string[] {
    return this.model.choices(instruction, rows, decode)
  }

  async compare(step: StepView, result: ResultView, sets: readonly (readonly NativeChoice[])[], rounds: number) {
    const times = new Float64Array(rounds * sets.length)
    const fault = await this.model.compare(step.buffer, result.buffer, times.buffer, sets)
    if (fault) throw errorOf(fault, this.path)
    return sets.map((_, set) => Array.from({ length: rounds }, (_, round) => times[round * sets.length + set]!))
  }
}

/** Kernels are those of the device: there is nothing to choose. */
function assertDevice(isa: string): void {
  const { code, capability = '' } = status()
  const own = `sm_${capability.replace('.', '')}`
  if (code === 'available' && isa !== '' && isa !== own) throw fail('ISA_UNAVAILABLE', { isa, available: own })
}

async function open(pkg: LinkedPackage, options: RunnerOptions): Promise<Runner> {
  const { code, name = '', capability = '' } = status()
  link('cuda', cudaTable, pkg, options, code === 'available' ? deviceGaps(pkg.plan, name, capability) : [])
  const { limits, blocks, slots, deterministic = false, pipelined = true, isa, compare = false } = options
  assertDevice(isa)
  const weights = await weightFiles(pkg)
  const shared = { isa: '', threads: 1, pin: 'never', limits, blocks, slots }
  const { file, reason, entries } = options.tuning ?? { reason: 'none was asked for', entries: [] }
  const choices = choicesFor(pkg.plan, entries, limits)
  const own = { plan: pkg.planBytes, weights, deterministic, compare, choices }
  const opened = addon().openModel({ ...shared, ...own, backend: 'cuda' })
  if ('code' in opened) throw errorOf(opened, pkg.path)
  const { given, taken } = opened.choiceUse()
  const source = file === undefined ? 'rules' : 'file'
  const why = { ...(file !== undefined && { file }), ...(reason !== undefined && { reason }) }
  const tuning: TuningInfo = { source, ...why, entries: choices.length, refused: given - taken }
  return new CudaRunner(opened, pkg, infoOf(opened.isa, deterministic, tuning), pipelined)
}

export const cudaBackend: Backend = {
  name: 'cuda',
  table: cudaTable,
  identity,
  kernelFiles: () => [addonPath(), join(dirname(addonPath()), 'libingot_cuda.so')],
  unavailable() {
    const { code, reason } = status()
    return code === 'available' ? undefined : { code, reason }
  },
  open,
}
