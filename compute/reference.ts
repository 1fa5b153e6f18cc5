/**
 * The definition of meaning: every opcode as plain TypeScript in float64, and a backend that runs whole plans with them,
 * slowly, from the same step buffer as every other backend. Weights are what is stored, dequantised; activations and
 * states are never rounded. There is no "unsupported" here.
 */
import { opDef } from '../abi/ops/index.ts'
import { fail } from '../errors.ts'
import type { Backend, LinkedPackage } from './device.ts'
import { openReference } from './reference/runner.ts'

export type { Matrix, ReferenceKernel, ReferenceStep, State, Weight } from './reference/kernel.ts'
export { type Observer, openReference, type ReferenceRunner } from './reference/runner.ts'
export { readStep } from './reference/step.ts'
export { type NamedValues, type ReferenceTable, referenceTable, runReference } from './reference/table.ts'

/** Throws PlanError LINK_GAPS naming every instruction newer than its definition here. */
function link({ path, plan }: LinkedPackage): void {
  const gaps = plan.instructions.flatMap(({ op, version, label }) => {
    const known = opDef(op).version
    return version > known ? [`${op} at ${label}: version ${version}, the reference defines ${known}`] : []
  })
  if (gaps.length) throw fail('LINK_GAPS', { backend: 'reference', path, gaps: gaps.join('; ') })
}

export const referenceBackend: Backend = {
  name: 'reference',
  unavailable: () => undefined,
  async open(pkg, options) {
    link(pkg)
    return openReference(pkg, options)
  },
}
