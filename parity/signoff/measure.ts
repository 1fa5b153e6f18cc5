/** Measures what a phase is judged by: the parity matrix and op conformance; bench/matrix.ts measures speed. */
import { randomUUID } from 'node:crypto'
import { rename, rm, writeFile } from 'node:fs/promises'
import { backendOf } from '../../compute/backends.ts'
import { kernelDigest } from '../../compute/kernels.ts'
import { fail } from '../../errors.ts'
import type { Package } from '../../models/package.ts'
import type { ExecutionPlan } from '../../plans/plan.ts'
import { codeDigest } from '../code.ts'
import { type ConformanceOptions, type ConformanceReport, conformance } from '../conformance.ts'
import { parityMatrix } from '../matrix.ts'
import type { MatrixReport } from '../matrix-report.ts'
import type { BackendRow } from '../steps.ts'
import { weightsClass } from '../tolerances.ts'
import { CONFORMANCE_FORMAT, EVIDENCE_VERSION, rowOf } from './evidence.ts'
import type { Phase } from './phase.ts'

type Progress = NonNullable<ConformanceOptions['onProgress']>

/** Throws BACKEND_UNKNOWN or BACKEND_UNAVAILABLE. */
function backendRow(name: string): BackendRow {
  const { backend, ...rest } = rowOf(name)
  return { name, backend: backendOf(backend), ...rest }
}

/** "bf16", or "q8, i8 state" where keys and values are kept in another dtype than the weights suggest. */
function precisionName(plan: ExecutionPlan): string {
  const weights = weightsClass(plan)
  return plan.states.some(({ dtype }) => dtype === 'i8') ? `${weights}, q8 state` : weights
}

export function measureParity(
  { record: { parity } }: Phase,
  packages: ReadonlyMap<string, Package>,
  onProgress: Progress,
): Promise<MatrixReport> {
  const rows = [parity.reference, ...parity.rows].map(backendRow)
  const models = [...packages].map(([name, pkg]) => ({ name, precision: precisionName(pkg.plan), pkg }))
  return parityMatrix(rows, models, { onProgress })
}

/** What evidence.ts reads of it, and all else that the suite reports. */
export async function measureConformance({ record }: Phase, onProgress: Progress) {
  const reports: ({ readonly row: string; readonly kernels: string } & ConformanceReport)[] = []
  for (const name of record.parity.rows) {
    const row = backendRow(name)
    const kernels = await kernelDigest(row.backend)
    reports.push({ row: name, kernels, ...(await conformance(row, { slice: record.conformance, onProgress })) })
  }
  return { format: CONFORMANCE_FORMAT, version: EVIDENCE_VERSION, code: await codeDigest(), reports } as const
}

/** Writes a file of evidence: all of it or nothing. Throws OUTPUT_UNWRITABLE. */
export async function writeEvidence(path: string, content: object): Promise<void> {
  const temporary = `${path}.${randomUUID()}.tmp`
  try {
    await writeFile(temporary, `${JSON.stringify(content, undefined, 1)}\n`, { flag: 'wx' })
    await rename(temporary, path)
  } catch (cause) {
    throw fail('OUTPUT_UNWRITABLE', { path, reason: (cause as Error).message }, cause)
  } finally {
    await rm(temporary, { force: true })
  }
}
