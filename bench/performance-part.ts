/** Results of `npm run bench:peers` (bench/results) as bars of a report. */
import { z } from 'zod'
import { fail, wrongField } from '../errors.ts'
import { readJson } from '../models/files.ts'
import type { PerformancePart } from '../parity/report-data.ts'

const range = z.object({ median: z.number(), least: z.number(), most: z.number() })
const side = z.object({ value: range })
const results = z.object({
  date: z.string(),
  cpu: z.string(),
  threads: z.number(),
  peer: z.string(),
  rows: z
    .array(
      z.object({
        model: z.string(),
        format: z.string(),
        scenario: z.string(),
        ingot: side,
        peer: side,
        rounds: z.number(),
      }),
    )
    .min(1),
})

/** One group of bars a row; throws FILE_MISSING, FILE_UNREADABLE, JSON_INVALID or CONFIG_INVALID. */
export async function readPerformance(path: string): Promise<PerformancePart> {
  const json = await readJson(path, 'results of bench:peers')
  const parsed = results.safeParse(json)
  if (!parsed.success) {
    const { thing, expected, got } = wrongField(parsed.error, json, 'the results')
    throw fail('CONFIG_INVALID', { path, field: thing, expected: `${expected}, as bench:peers writes it`, got })
  }
  const { date, cpu, threads, peer, rows } = parsed.data
  const bar = (name: string, { value }: z.output<typeof side>, own: boolean) => ({
    name,
    value: value.median,
    spread: [value.least, value.most] as const,
    own,
  })
  return {
    machine: `${cpu}, ${threads} threads, ${date}; medians of ${rows[0]!.rounds} rounds taken in turns, and the extremes`,
    groups: rows.map((row) => {
      const start = row.scenario === 'start'
      return {
        name: `${row.model} ${row.format}, ${start ? 'start to first token' : row.scenario}`,
        unit: start ? 'ms' : 'tok/s',
        lowerIsBetter: start,
        bars: [bar('Ingot', row.ingot, true), bar(`node-llama-cpp ${peer}`, row.peer, false)],
      }
    }),
  }
}
