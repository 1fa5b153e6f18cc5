/** Backends with a defect, for tests of the gates: the reference, with what an instruction wrote changed in place. */
import type { StepView } from '../abi/step.ts'
import type { Backend } from '../compute/device.ts'
import { type Matrix, openReference } from '../compute/reference.ts'
import type { ExecutionPlan, Instruction } from '../plans/plan.ts'

export interface Wrote {
  readonly plan: ExecutionPlan
  readonly index: number
  readonly instruction: Instruction
  readonly step: StepView
  readonly outputs: readonly Matrix[]
}

/** The reference under the name `name`, whose outputs `change` may spoil. */
export const defective = (name: string, change: (wrote: Wrote) => void): Backend => ({
  name,
  unavailable: () => undefined,
  async open(pkg, options) {
    const { plan } = pkg
    const runner = await openReference(pkg, options)
    const spoil = (step: StepView) => (index: number, outputs: readonly Matrix[]) =>
      change({ plan, index, instruction: plan.instructions[index]!, step, outputs })
    return {
      info: { ...runner.info, backend: name, description: 'the reference with a defect' },
      step: (step, result) => runner.step(step, result, spoil(step)),
      trace: (step, result) => runner.trace(step, result, spoil(step)),
      memory: () => runner.memory(),
      dispose: () => runner.dispose(),
    }
  },
})
