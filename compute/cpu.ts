/** Kernels of the CPU backend. native/gen/cpu_ops.inc is generated from this table and takes the address of each. */
import type { KernelTable } from './table.ts'

const unused = { unsupported: 'no topology uses it yet; run it on the reference backend' } as const
const float = ['f32', 'f16', 'bf16'] as const
const embedded = [...float, 'i8'] as const
const matrix = [...embedded, 'i4'] as const
const without = { e4m3: 'no CPU product of fp8 yet; run it on cuda or reference, or compile with q8' } as const
const operands = { bf16: 'bf16', i8: 'i8', i4: 'i8' } as const

export const cpuTable = {
  embed: { symbol: 'embed', version: 1, weights: embedded },
  gather_rows: { symbol: 'gather_rows', version: 1, weights: [] },
  pool: { symbol: 'pool', version: 1, weights: [] },
  rms_norm: { symbol: 'rms_norm', version: 1, weights: [] },
  layer_norm: unused,
  linear: { symbol: 'linear', version: 1, weights: matrix, without, operands },
  logits: { symbol: 'logits', version: 1, weights: embedded, operands },
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
