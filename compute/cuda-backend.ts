/** The CUDA backend: the executor of libingot_cuda.so, which the addon loads from beside itself. */
import { dirname, join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { addon, addonPath, type CudaStatus } from '../abi/native.ts'
import type { ResultView, StepView } from '../abi/step.ts'
import { fail } from '../errors.ts'
import { errorOf, NativeRunner, weightFiles } from './cpu-backend.ts'
import { cudaTable } from './cuda.ts'
import type { Backend, DeviceInfo, LinkedPackage, Runner, RunnerOptions } from './device.ts'
import { link } from './link.ts'

function status(): Pick<CudaStatus, 'code' | 'reason'> & Partial<CudaStatus> {
  try {
    return addon().cuda()
  } catch (error) {
    return { code: 'addon_missing', reason: (error as Error).message }
  }
}

function infoOf(isa: string, deterministic: boolean): DeviceInfo {
  const { name, driver = 0 } = status()
  const description = `${name}, ${isa}, ${deterministic ? 'deterministic' : 'outputs may depend on the batch'}`
  const supports = `CUDA ${Math.floor(driver / 1000)}.${(driver % 1000) / 10}`
  return { backend: 'cuda', description, isa, driver: supports, threads: 1, deterministic }
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
}

/** Kernels are those of the device: there is nothing to choose. */
function assertDevice(isa: string): void {
  const { code, capability = '' } = status()
  const own = `sm_${capability.replace('.', '')}`
  if (code === 'available' && isa !== '' && isa !== own) throw fail('ISA_UNAVAILABLE', { isa, available: own })
}

async function open(pkg: LinkedPackage, options: RunnerOptions): Promise<Runner> {
  link('cuda', cudaTable, pkg, options)
  const { limits, blocks, slots, deterministic = false, pipelined = false, isa } = options
  assertDevice(isa)
  const weights = await weightFiles(pkg)
  const shared = { isa: '', threads: 1, pin: 'never', limits, blocks, slots }
  const opened = addon().openModel({ ...shared, backend: 'cuda', plan: pkg.planBytes, weights, deterministic })
  if ('code' in opened) throw errorOf(opened, pkg.path)
  return new CudaRunner(opened, pkg, infoOf(opened.isa, deterministic), pipelined)
}

export const cudaBackend: Backend = {
  name: 'cuda',
  table: cudaTable,
  kernelFiles: () => [addonPath(), join(dirname(addonPath()), 'libingot_cuda.so')],
  unavailable() {
    const { code, reason } = status()
    return code === 'available' ? undefined : { code, reason }
  },
  open,
}
