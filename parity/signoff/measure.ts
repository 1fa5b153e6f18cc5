import { kernelDigest } from '../../compute/kernels.ts'
import { replaceFile } from '../../models/files.ts'
import type { Package } from '../../models/package.ts'
import type { ExecutionPlan } from '../../plans/plan.ts'
import { codeDigest } from '../code.ts'
import { type ConformanceOptions, type ConformanceReport, conformance } from '../conformance.ts'
import { parityMatrix } from '../matrix.ts'
import type { MatrixReport } from '../matrix-report.ts'
import { type BackendRow, backendRow } from '../steps.ts'
import { weightsClass } from '../tolerances.ts'
import { CONFORMANCE_FORMAT, EVIDENCE_VERSION } from './evidence.ts'
import type { Phase } from './phase.ts'

type Progress = NonNullable<ConformanceOptions['onProgress']>

/** A row by the very name that the record gives it. Throws BACKEND_UNKNOWN or BACKEND_UNAVAILABLE. */
const rowNamed = (name: string): BackendRow => ({ ...backendRow(name), name })

/** "bf16", or "bf16, q8 state" where keys and values are kept in another dtype than the weights suggest. */
function precisionName(plan: ExecutionPlan): string {
  const weights = weightsClass(plan)
  return plan.states.some(({ dtype }) => dtype === 'i8') ? `${weights}, q8 state` : weights
}

export function measureParity(
  { record: { parity } }: Phase,
  packages: ReadonlyMap<string, Package>,
  onProgress: Progress,
): Promise<MatrixReport> {
  const rows = [parity.reference, ...parity.rows].map(rowNamed)
  const models = [...packages].map(([name, pkg]) => ({ name, precision: precisionName(pkg.plan), pkg }))
  return parityMatrix(rows, models, { onProgress })
}

/** What evidence.ts reads of it, and all else that the suite reports. */
export async function measureConformance({ record }: Phase, onProgress: Progress) {
  const reports: ({ readonly row: string; readonly kernels: string } & ConformanceReport)[] = []
  for (const name of record.parity.rows) {
    const row = rowNamed(name)
    const kernels = await kernelDigest(row.backend)
    reports.push({ row: name, kernels, ...(await conformance(row, { slice: record.conformance, onProgress })) })
  }
  return { format: CONFORMANCE_FORMAT, version: EVIDENCE_VERSION, code: await codeDigest(), reports } as const
}

/** Writes a file of evidence: all of it or nothing. Throws OUTPUT_UNWRITABLE. */
export const writeEvidence = (path: string, content: object): Promise<void> =>
  replaceFile(path, `${JSON.stringify(content, undefined, 1)}\n`)
