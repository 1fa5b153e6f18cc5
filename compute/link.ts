/** Linking: does a kernel table have all that a plan needs? Every gap is reported at once. */
import type { DType } from '../abi/dtypes.ts'
import { opDef } from '../abi/ops/index.ts'
import { fail } from '../errors.ts'
import type { ExecutionPlan, Instruction } from '../plans/plan.ts'
import type { Kernel, KernelTable } from './table.ts'

const missing = (what: string, got: DType, known: readonly DType[] = [], why?: string) =>
  known.includes(got)
    ? []
    : [`${what} of dtype ${got}; the kernel reads ${known.join(', ') || 'none'}${why ? `: ${why}` : ''}`]

function* weightsOf({ op, weights }: Instruction) {
  for (const [i, [name, { form }]] of Object.entries(opDef(op).weights).entries()) {
    // Scales come with the integer weight beside them: the verifier holds their dtype.
    const tensor = name.endsWith('scales') || form === 'row' ? undefined : weights[i]
    if (tensor !== undefined) yield { name, tensor }
  }
}

export interface LinkOptions {
  /** Accept kernels that are launched once a slot. */
  readonly allowPerSlot?: boolean | undefined
}

/** What `kernel` lacks for one instruction. */
function kernelGaps(plan: ExecutionPlan, instruction: Instruction, kernel: Kernel, options: LinkOptions): string[] {
  const { version, params, states } = instruction
  const gaps = version > kernel.version ? [`version ${version}; the kernel implements ${kernel.version}`] : []
  if (kernel.perSlot && !options.allowPerSlot)
    gaps.push(`launched once a slot: ${kernel.perSlot}; open with allowPerSlot to accept it`)
  for (const { name, tensor } of weightsOf(instruction)) {
    const { dtype } = plan.tensors[tensor]!
    gaps.push(...missing(`weight ${name}`, dtype, kernel.weights, kernel.without?.[dtype]))
  }
  for (const use of states) if (use) gaps.push(...missing('state', plan.states[use.state]!.dtype, kernel.states))
  for (const [name, limit] of Object.entries(kernel.limits ?? {}))
    if ((params[name] ?? 0) > limit) gaps.push(`${name} ${params[name]}; the kernel takes at most ${limit}`)
  return gaps
}

/** All that `table` lacks to run `plan`, one line a gap and opcode; empty when it can run. */
export function linkGaps(plan: ExecutionPlan, table: KernelTable, options: LinkOptions = {}): string[] {
  const labels = new Map<string, string[]>()
  for (const instruction of plan.instructions) {
    const entry = table[instruction.op]
    const gaps = 'unsupported' in entry ? [entry.unsupported] : kernelGaps(plan, instruction, entry, options)
    for (const gap of gaps) {
      const text = `${instruction.op}: ${gap}`
      labels.set(text, [...(labels.get(text) ?? []), instruction.label])
    }
  }
  return [...labels].map(([gap, [first, ...others]]) =>
    others.length ? `${gap} (${first} and ${others.length} more)` : `${gap} (${first})`,
  )
}

/**
 * Throws PlanError LINK_GAPS, naming every gap, unless `table` can run `plan` and the device leaves none; `path` is for the
 * message.
 */
export function link(
  backend: string,
  table: KernelTable,
  { path, plan }: { readonly path: string; readonly plan: ExecutionPlan },
  options: LinkOptions = {},
  ofDevice: readonly string[] = [],
): void {
  const gaps = [...linkGaps(plan, table, options), ...ofDevice]
  if (gaps.length) throw fail('LINK_GAPS', { backend, path, gaps: gaps.join('; ') })
}
