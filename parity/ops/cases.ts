/** The op cases of every opcode that a backend beside the reference runs. */
import type { OpName } from '../../abi/ops/index.ts'
import { attentionCases, ropeCases } from './attention-cases.ts'
import type { OpCase } from './case.ts'
import { embedCases, linearCases, logitsCases } from './matrix-cases.ts'
import {
  activationCases,
  gatherCases,
  gluCases,
  multiplyCases,
  normCases,
  poolCases,
  residualCases,
} from './row-cases.ts'
import { sampleCases } from './sample-cases.ts'

export const opCases: Readonly<Partial<Record<OpName, readonly OpCase[]>>> = {
  embed: embedCases,
  gather_rows: gatherCases,
  pool: poolCases,
  rms_norm: normCases,
  linear: linearCases,
  logits: logitsCases,
  rope: ropeCases,
  attention: attentionCases,
  glu: gluCases,
  activation: activationCases,
  residual: residualCases,
  multiply: multiplyCases,
  sample: sampleCases,
}
