/** The op cases of every opcode that there is, whichever backends run it. */
import type { OpName } from '../../abi/ops/index.ts'
import { attentionCases, ropeCases } from './attention-cases.ts'
import type { OpCase } from './case.ts'
import { embedCases, linearCases, logitsCases } from './matrix-cases.ts'
import { moeCases } from './moe-cases.ts'
import { convCases, deltaCases, scanCases } from './recurrent-cases.ts'
import {
  activationCases,
  gatherCases,
  gluCases,
  layerNormCases,
  multiplyCases,
  normCases,
  poolCases,
  residualCases,
} from './row-cases.ts'
import { sampleCases } from './sample-cases.ts'

export const opCases: Readonly<Record<OpName, readonly OpCase[]>> = {
  embed: embedCases,
  gather_rows: gatherCases,
  pool: poolCases,
  rms_norm: normCases,
  layer_norm: layerNormCases,
  linear: linearCases,
  logits: logitsCases,
  rope: ropeCases,
  attention: attentionCases,
  glu: gluCases,
  activation: activationCases,
  residual: residualCases,
  multiply: multiplyCases,
  moe: moeCases,
  conv_state: convCases,
  ssm_scan: scanCases,
  delta_rule: deltaCases,
  sample: sampleCases,
}
