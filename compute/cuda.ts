/** Kernels of the CUDA backend. native/gen/cuda_ops.inc is generated from this table and takes the address of each. */
import type { ExecutionPlan } from '../plans/plan.ts'
import type { KernelTable } from './table.ts'

const unused = { unsupported: 'no CUDA kernel yet; run it on the reference backend' } as const
const float = ['f32', 'f16', 'bf16'] as const
const embedded = [...float, 'i8'] as const
const matrix = [...embedded, 'i4', 'e4m3'] as const
const deterministicOperands = { f16: 'f16', bf16: 'bf16', i8: 'bf16', i4: 'bf16', e4m3: 'bf16' } as const
/** In the default mode, more than a few rows meet e4m3 weights as e4m3, and on Hopper int8 weights as int8. */
const operands = { ...deterministicOperands, i8: 'i8', e4m3: 'e4m3' } as const
const products = { version: 1, operands, deterministicOperands, keepsOperands: true } as const

export const cudaTable = {
  embed: { symbol: 'embed', version: 1, weights: embedded },
  gather_rows: { symbol: 'gather_rows', version: 1, weights: [] },
  pool: { symbol: 'pool', version: 1, weights: [] },
  rms_norm: { symbol: 'rms_norm', version: 1, weights: [] },
  layer_norm: unused,
  linear: { symbol: 'linear', weights: matrix, ...products },
  logits: { symbol: 'logits', weights: embedded, ...products },
  rope: { symbol: 'rope', version: 1, weights: [] },
  attention: { symbol: 'attention', version: 1, weights: [], states: [...float, 'i8'], limits: { head_dim: 512 } },
  glu: { symbol: 'glu', version: 1, weights: [] },
  activation: { symbol: 'activation', version: 1, weights: [] },
  residual: { symbol: 'residual', version: 1, weights: [] },
  multiply: { symbol: 'multiply', version: 1, weights: [] },
  moe: unused,
  conv_state: unused,
  ssm_scan: unused,
  delta_rule: unused,
  sample: { symbol: 'sample', version: 1, weights: [] },
} as const satisfies KernelTable

/** Of the first devices that multiply e4m3. */
const E4M3_CAPABILITY = 8.9

/** What a device of that compute capability lacks for `plan`, whatever kernels there are: reason codes and why. */
export function deviceGaps({ tensors }: Pick<ExecutionPlan, 'tensors'>, name: string, capability: string): string[] {
  const e4m3 = tensors.filter(({ dtype }) => dtype === 'e4m3')
  if (e4m3.length === 0 || Number(capability) >= E4M3_CAPABILITY) return []
  const others = e4m3.length > 1 ? ` and ${e4m3.length - 1} more` : ''
  return [
    `compute_capability_below_sm89: weights of dtype e4m3 (${e4m3[0]!.name}${others}) need compute capability ${E4M3_CAPABILITY}; ${name} has ${capability}; compile with q8`,
  ]
}
