/**
 * What bench/device.ts prints, and the file in bench/results that several such documents are kept in: those of one device,
 * each with the version of the code that ran.
 */
import { z } from 'zod'
import { invalid, parseConfig } from '../models/config.ts'
import { readJson } from '../models/files.ts'
import { planOf, promptOperations, stepWork } from './device-work.ts'
import { type ShapeName, shapeNames } from './peers/shapes.ts'

const spread = z.object({ median: z.number(), low: z.number(), high: z.number(), samples: z.number() })
const rate = { tokensPerSecond: z.number(), batch: z.number(), spread }
const report = z.object({
  launchesPerStep: z.number(),
  loadMs: z.number(),
  /** `operations`: of a prompt. Kept with results, so that they can be drawn when plans have changed. */
  prefill: z.array(z.object({ ...rate, tokens: z.number(), operations: z.number().optional() })),
  decode: z.array(z.object({ ...rate, context: z.number(), msPerStep: z.number(), bytesPerStep: z.number() })),
})
/** A decode step: microseconds as it runs, on the host between steps, and by opcode, one kernel after the other. */
const step = z.object({
  batch: z.number(),
  wall: z.number(),
  host: z.number(),
  opcodes: z.record(z.string(), z.number()),
  /** What each has to do; kept with results. */
  work: z.record(z.string(), z.object({ calls: z.number(), bytes: z.number(), operations: z.number() })).optional(),
  /** Bytes of device memory that opening took, and that the model accounts for. */
  taken: z.number().optional(),
  planned: z.number().optional(),
})
const row = z.object({
  shape: z.enum(shapeNames as [ShapeName, ...ShapeName[]]),
  quantize: z.enum(['none', 'q8', 'q4', 'fp8']),
  deterministic: z.boolean(),
  report: report.optional(),
  steps: z.array(step).optional(),
  reason: z.string().optional(),
})
const check = z.object({ name: z.string().optional(), quantize: z.string().optional(), pass: z.boolean() })
/** Distance of logits from float32: divergences in nats, and the largest difference of one logit. */
const distance = z.object({ kl: z.number(), most: z.number(), maxAbs: z.number(), top1: z.number() })
const peerLogits = z.object({
  quantize: row.shape.quantize,
  deterministic: z.boolean(),
  tokensPerStep: z.number(),
  positions: z.number(),
  /** Of the float32 logits. */
  deviation: z.number(),
  ours: distance,
  peer: distance,
  /** Mean of our divergences less the peer's at the same tokens, and the standard error of that mean. */
  excess: z.number(),
  standardError: z.number(),
  /** Absent where weights are not those of the peer. */
  pass: z.boolean().optional(),
})
const peerSpeed = z.object({
  what: z.enum(['decode', 'prefill']),
  batch: z.number(),
  /** Of each prompt. */
  tokens: z.number(),
  side: z.enum(['ingot', 'graph', 'compile', 'eager']),
  round: z.number(),
  /** Of the peer's sequences, the share whose token is that of a forward pass without a cache. */
  agreement: z.number().optional(),
  /** Tokens a second; else the reason why there are none. */
  spread: spread.optional(),
  reason: z.string().optional(),
})
/** Transformers beside this build, in its run. */
const peer = z.object({
  shape: row.shape.shape,
  versions: z.object({ torch: z.string(), transformers: z.string(), device: z.string() }).optional(),
  logits: z.array(peerLogits),
  speeds: z.array(peerSpeed),
  reason: z.string().optional(),
})
const document = z.object({
  device: z.object({ name: z.string(), capability: z.string(), driver: z.number(), runtime: z.number() }),
  goldens: z.array(check),
  tasks: z.array(z.object({ ...check.shape, correct: z.number(), total: z.number() })),
  invariance: z.array(check),
  choices: z.array(check).default([]),
  faults: z.array(check).default([]),
  bench: z.array(row),
  peers: z.array(peer).default([]),
})
const results = z.strictObject({
  format: z.literal('ingot device results'),
  /** Measured on this class of device: GB/s of reading, and GOP/s of bf16 products. */
  ceilings: z.object({ read: z.number(), bf16: z.number() }),
  /** In order: of a cell that several have, the last one stands. */
  runs: z.array(document.extend({ version: z.string(), date: z.string() })),
})

export type DeviceDocument = z.output<typeof document>
export type DeviceRow = z.output<typeof row>
export type PeerLogits = z.output<typeof peerLogits>
export type PeerSpeed = z.output<typeof peerSpeed>
export type DevicePeer = z.output<typeof peer>
export type DeviceStep = z.output<typeof step>
export type DeviceRun = z.output<typeof results>['runs'][number]
export type DeviceResults = z.output<typeof results>

/** The document with what its prompts and steps had to do. Throws CONFIG_INVALID for a breakdown of another plan. */
export async function withWork(path: string, found: DeviceDocument): Promise<DeviceDocument> {
  const bench: DeviceRow[] = []
  for (const row of found.bench) {
    const plan = await planOf(row.shape, row.quantize)
    const { report, steps = [] } = row
    const prefill = report?.prefill.map((cell) => ({ ...cell, operations: promptOperations(plan, cell.tokens) }))
    const measured = steps.map((step) => {
      const context = report?.decode.find(({ batch }) => batch === step.batch)?.context ?? 0
      const work = stepWork(plan, step.batch, context)
      const [expected, got] = [Object.keys(work), Object.keys(step.opcodes)].map((kinds) => kinds.sort().join(', '))
      if (expected !== got) throw invalid(path, `opcodes of ${row.shape}`, expected!, got)
      return { ...step, work }
    })
    bench.push({
      ...row,
      ...(report && { report: { ...report, prefill: prefill! } }),
      ...(row.steps && { steps: measured }),
    })
  }
  return { ...found, bench }
}

const read = async <T extends z.ZodType>(schema: T, path: string, expected: string): Promise<z.output<T>> =>
  parseConfig(schema, await readJson(path, expected), path)

/** Throws FILE_MISSING, FILE_UNREADABLE, JSON_INVALID, CONFIG_INVALID. */
export const readDocument = (path: string) => read(document, path, 'what bench/device.ts printed')
export const readResults = (path: string) => read(results, path, 'results of a device')
