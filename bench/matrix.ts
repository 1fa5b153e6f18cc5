/** Cells of a performance matrix (parity/signoff/evidence.ts): ratios to the ceilings, or to the peers, of the same run. */
import { cpus } from 'node:os'
import { z } from 'zod'
import { backendOf } from '../compute/backends.ts'
import { kernelDigest } from '../compute/kernels.ts'
import { fail, wrongField } from '../errors.ts'
import { readJson } from '../models/files.ts'
import type { Package } from '../models/package.ts'
import { codeDigest } from '../parity/code.ts'
import {
  EVIDENCE_VERSION,
  PERFORMANCE_FORMAT,
  type PerformanceMatrix,
  type PerformanceMatrixCell,
} from '../parity/signoff/evidence.ts'
import type { Phase } from '../parity/signoff/phase.ts'
import { rowOf } from '../parity/steps.ts'
import { type BenchOptions, type BenchReport, bench } from './step.ts'

/**
 * Benches every package of a phase on every row, with the sizes of its record, and joins the run beside peers at `peers`,
 * if any. Throws as bench() and peerCells() do.
 */
export async function performanceMatrix(
  { record: { performance, parity } }: Phase,
  packages: ReadonlyMap<string, Package>,
  { peers, onProgress }: { readonly peers?: string } & Pick<BenchOptions, 'onProgress'>,
): Promise<PerformanceMatrix> {
  const { prompt, generate, sequences: batches, repeats } = performance
  const code = await codeDigest()
  const cells: PerformanceMatrixCell[] = []
  for (const [name, pkg] of packages)
    for (const row of parity.rows) {
      const { backend, isa } = rowOf(row)
      const sizes = {
        backend,
        prompt,
        generate,
        batches,
        repeats,
        ...(isa && { isa }),
        ...(onProgress && { onProgress }),
      }
      const subject = { package: name, planSha256: pkg.planHash, row, kernels: await kernelDigest(backendOf(backend)) }
      cells.push(...benchCells(subject, await bench(pkg.path, sizes)))
    }
  if (peers !== undefined) cells.push(...(await peerCells(peers, code)))
  const [{ model } = { model: 'unknown' }] = cpus()
  const created = new Date().toISOString()
  return { format: PERFORMANCE_FORMAT, version: EVIDENCE_VERSION, code, created, machine: model, cells }
}

/** Whom a cell is about. */
export type CellSubject = Pick<PerformanceMatrixCell, 'package' | 'planSha256' | 'row' | 'kernels'>

/** "story cpu decode 1 of read" and "story cpu prefill 1 of peak": shares of what the machine can do at most. */
export function benchCells(subject: CellSubject, { prefill, decode, ceilings }: BenchReport): PerformanceMatrixCell[] {
  const cell = (
    what: string,
    ratio: number | undefined,
    tokensPerSecond: number,
    spread: { low: number; high: number },
  ) => {
    if (!ceilings || ratio === undefined) return []
    const { low, high } = spread
    const name = `${subject.package} ${subject.row} ${what}`
    const compared = tokensPerSecond / ratio
    return [{ ...subject, name, ratio, measured: tokensPerSecond, compared, unit: 'tokens/s', low, high }]
  }
  return [
    ...prefill.flatMap((p) => cell(`prefill ${p.batch} of peak`, p.peakShare, p.tokensPerSecond, p.spread)),
    ...decode.flatMap((d) => cell(`decode ${d.batch} of read`, d.readShare, d.tokensPerSecond, d.spread)),
  ]
}

const range = z.object({ median: z.number(), least: z.number(), most: z.number() })
const peersSchema = z.object({
  code: z.string(),
  kernels: z.string(),
  peer: z.string(),
  rows: z.array(
    z.object({
      model: z.string(),
      format: z.string(),
      scenario: z.string(),
      ingot: z.object({ value: range }),
      peer: z.object({ value: range }),
      ratio: range,
    }),
  ),
})

/**
 * Cells of a run beside the peer, as `npm run bench:peers` wrote it: "Llama-3.2-1B q4 decode of node-llama-cpp". Throws
 * FILE_UNREADABLE, JSON_INVALID, SIGNOFF_FILE_INVALID, and SIGNOFF_STALE where it measured another code than `code`.
 */
export async function peerCells(path: string, code: string): Promise<PerformanceMatrixCell[]> {
  const json = await readJson(path, 'a run of bench:peers')
  const result = peersSchema.safeParse(json)
  if (!result.success)
    throw fail('SIGNOFF_FILE_INVALID', { path, ...wrongField(result.error, json, 'a run of bench:peers') })
  const { rows, kernels, ...run } = result.data
  if (run.code !== code) throw fail('SIGNOFF_STALE', { path, thing: 'code', expected: run.code, got: code })
  return rows.map(({ model, format, scenario, ingot, peer, ratio }) => ({
    name: `${model} ${format} ${scenario} of node-llama-cpp`,
    package: null,
    planSha256: null,
    row: 'cpu',
    kernels,
    ratio: ratio.median,
    measured: ingot.value.median,
    compared: peer.value.median,
    unit: scenario === 'start' ? 'ms' : 'tokens/s',
    low: ingot.value.least,
    high: ingot.value.most,
  }))
}
