/** Every backend by name, those that cannot run here included: they say why. */
import { fail } from '../errors.ts'
import { cpuBackend } from './cpu-backend.ts'
import { cudaBackend } from './cuda-backend.ts'
import type { Backend } from './device.ts'
import { nullBackend } from './null.ts'
import { referenceBackend } from './reference.ts'

/** A backend that this build does not contain. */
function notBuilt(name: string, kernels: string): Backend {
  const reason = `this build has no ${kernels} kernels`
  return {
    name,
    unavailable: () => ({ code: 'not_built', reason }),
    open: async () => {
      throw fail('BACKEND_UNAVAILABLE', { backend: name, reason })
    },
  }
}

export const backends = {
  cpu: cpuBackend,
  cuda: cudaBackend,
  triton: notBuilt('triton', 'Triton'),
  tensorrt: notBuilt('tensorrt', 'TensorRT'),
  reference: referenceBackend,
  null: nullBackend,
} as const satisfies Readonly<Record<string, Backend>>

export type BackendName = keyof typeof backends
export const backendNames = Object.keys(backends) as BackendName[]

/** The backend of a name that a user gave; throws BACKEND_UNKNOWN or BACKEND_UNAVAILABLE. */
export function backendOf(name: string): Backend {
  if (!Object.hasOwn(backends, name)) throw fail('BACKEND_UNKNOWN', { backend: name, known: backendNames })
  const backend: Backend = backends[name as BackendName]
  const why = backend.unavailable()
  if (why) throw fail('BACKEND_UNAVAILABLE', { backend: name, reason: `${why.reason} (${why.code})` })
  return backend
}
