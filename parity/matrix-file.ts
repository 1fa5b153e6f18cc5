/** Reads the file of a matrix: all of its fields, and no other. */
import { z } from 'zod'
import { fail, wrongField } from '../errors.ts'
import { readBytes } from '../models/files.ts'
import { sha256 } from '../plans/hash.ts'
import { shapeNames } from './corpus.ts'
import { MATRIX_FORMAT, MATRIX_VERSION, type MatrixCell, type MatrixReport } from './matrix-report.ts'

/** JSON has neither NaN nor infinity and writes null for both: no number passes a bound then. */
const figure = z.union([z.number(), z.null().transform(() => Number.NaN)])
const count = z.int().min(0)
const text = z.string()
const bounded = z.strictObject({ value: figure, allowed: figure })
const kind = z.enum(['text', 'random'])

const statistics = z.strictObject({
  name: text,
  rows: count,
  width: count,
  min: figure,
  max: figure,
  mean: figure,
  rms: figure,
  nans: count,
  infinities: count,
  largest: z.strictObject({ difference: figure, row: count, column: count }).nullable(),
})

const divergence = z.strictObject({
  judged: text,
  instruction: count,
  op: text,
  label: text,
  found: z.enum(['bits', 'alone', 'largest']),
  error: bounded,
  step: count,
  row: z.int().min(-1),
  position: count.nullable(),
  inputs: z.array(statistics),
  outputs: z.array(statistics),
  states: z.array(text),
})

const metrics = z.strictObject({
  tokens: count,
  maxAbs: bounded,
  maxRel: figure,
  rms: bounded,
  kl: bounded,
  mismatchRatio: bounded,
  argmaxAgreement: figure,
  argmaxOutsideTies: bounded,
  greedy: z.strictObject({ matched: count, total: count, ties: count, outsideTies: bounded }),
})

const layer = z.strictObject({ label: text, instruction: count, mean: figure, worst: bounded })

const cell = z.strictObject({
  model: text,
  precision: text,
  shape: text,
  expected: text,
  actual: text,
  verdict: z.enum(['pass', 'fail', 'skipped']),
  reason: text.optional(),
  sameBits: z.boolean().optional(),
  metrics: metrics.optional(),
  layers: z.array(layer).optional(),
  failures: z.array(text),
  divergence: divergence.optional(),
  divergenceReason: text.optional(),
})

const schema = z.strictObject({
  format: z.literal(MATRIX_FORMAT),
  version: z.literal(MATRIX_VERSION),
  pass: z.boolean(),
  created: z.iso.datetime(),
  seconds: z.number(),
  code: sha256,
  corpus: sha256,
  seed: z.number(),
  machine: z.strictObject({ cpu: text, arch: text, node: text, ingot: text }),
  rows: z
    .array(
      z.strictObject({
        name: text,
        backend: text,
        isa: text,
        description: text,
        driver: text.optional(),
        deterministic: z.boolean(),
        kernels: sha256,
      }),
    )
    .min(2),
  models: z
    .array(
      z.strictObject({
        name: text,
        precision: text,
        weights: z.enum(['f32', 'f16', 'bf16', 'q8', 'q4', 'fp8']),
        state: text,
        layers: count,
        vocab: count,
        planSha256: sha256,
        weightsSha256: sha256,
      }),
    )
    .min(1),
  shapes: z
    .array(
      z.strictObject({
        name: text,
        kind,
        prompts: z.array(count),
        batch: count,
        chunk: count,
        generate: count,
        judged: z.boolean(),
      }),
    )
    .min(1),
  cells: z.array(cell).min(1),
  operations: z.array(
    z.strictObject({
      row: text,
      model: text,
      precision: text,
      kind,
      op: text,
      errors: z.array(figure),
      allowed: figure,
    }),
  ),
  reasons: z.record(text, text),
})

/** Reads the file of a matrix. Throws FILE_MISSING, FILE_UNREADABLE or MATRIX_INVALID. */
export async function readMatrix(path: string): Promise<MatrixReport> {
  return parseMatrix((await readBytes(path, 'a parity matrix')).toString('utf8'), path)
}

/** Throws MATRIX_INVALID on any other text, also where the verdict is not that of the cells; `path` is for the message. */
export function parseMatrix(source: string, path: string): MatrixReport {
  const invalid = (field: string, reason: string, cause?: unknown) =>
    fail('MATRIX_INVALID', { path, field, reason }, cause)
  let json: unknown
  try {
    json = JSON.parse(source)
  } catch (cause) {
    throw invalid('the file', (cause as Error).message, cause)
  }
  const parsed = schema.safeParse(json)
  if (!parsed.success) {
    const { thing, expected, got } = wrongField(parsed.error, json, 'the file')
    throw invalid(thing, `expected ${expected}, got ${got}`)
  }
  const report = parsed.data as MatrixReport
  if (report.pass !== passes(report.cells)) throw invalid('pass', `${report.pass}, and the cells say otherwise`)
  return report
}

/** No cell fails, and one at least passes. */
export const passes = (cells: readonly MatrixCell[]): boolean =>
  cells.every(({ verdict, failures }) => verdict !== 'fail' && failures.length === 0) &&
  cells.some(({ verdict }) => verdict === 'pass')

type Place = Pick<MatrixCell, 'model' | 'precision' | 'shape' | 'expected' | 'actual'>
const placeOf = ({ model, precision, shape, expected, actual }: Place) =>
  [model, precision, shape, expected, actual].join(' / ')

/**
 * Cells that a whole matrix has and this one lacks, in words: one for each pair of rows, in their order, on every model and
 * shape; shapes of text where the model can read text, which it can where one cell of text stands.
 */
export function missingCells({ rows, models, cells }: MatrixReport): string[] {
  const known = new Set(cells.map(placeOf))
  const reads = new Set(cells.filter(({ shape }) => shape.startsWith('text')).map(({ model }) => model))
  const places = models.flatMap(({ name: model, precision }) =>
    [...(reads.has(model) ? shapeNames('text') : []), ...shapeNames('random')].flatMap((shape) =>
      rows.flatMap(({ name: expected }, i) =>
        rows.slice(i + 1).map(({ name: actual }) => placeOf({ model, precision, shape, expected, actual })),
      ),
    ),
  )
  return places.filter((place) => !known.has(place))
}
