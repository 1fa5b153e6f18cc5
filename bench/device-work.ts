/** What a step of a real shape has to do, from its plan alone: its weights, gigabytes of them, need not be there. */
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { stepShape, work } from '../compute/work.ts'
import { compileCheckpoint } from '../models/compile/index.ts'
import type { Quantization } from '../models/compile/quantize.ts'
import { layoutFile } from '../models/safetensors.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { type ShapeName, shape, tensorShapes } from './peers/shapes.ts'

/** The plan of a shape. The checkpoint that it is compiled from has holes for weights. */
export async function planOf(name: ShapeName, quantize: Quantization): Promise<ExecutionPlan> {
  const folder = await mkdtemp(join(tmpdir(), 'ingot-shape-'))
  try {
    const config = shape(name)
    const { header, bytes } = layoutFile(
      tensorShapes(config).map((tensor) => ({ ...tensor, dtype: 'BF16' as const })),
      { format: 'pt' },
    )
    const path = join(folder, 'model.safetensors')
    await writeFile(path, header)
    await truncate(path, bytes)
    await writeFile(join(folder, 'config.json'), JSON.stringify(config))
    return (await compileCheckpoint(folder, { quantize })).plan
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Instructions that a breakdown shows as one: of an opcode, and of matrices of one size. */
export function kindOf({ instructions, registers, tensors }: ExecutionPlan, index: number): string {
  const { op, weights, outputs } = instructions[index]!
  const weight = tensors[weights[0]!]
  return weight ? `${op} ${weight.cols}->${registers[outputs[0]!]!.width}` : op
}

/** What the instructions of a kind have to do together in a step. */
export interface KindWork {
  readonly calls: number
  /** Of weights and state. */
  readonly bytes: number
  readonly operations: number
}

/** By kind: a step in which `sequences` decode after `context` tokens each. */
export function stepWork(plan: ExecutionPlan, sequences: number, context: number): Record<string, KindWork> {
  const kinds: Record<string, KindWork> = {}
  for (const [i, { weightBytes, stateBytes, operations }] of work(plan, stepShape(sequences, 1, context)).entries()) {
    const kind = kindOf(plan, i)
    const sum = kinds[kind] ?? { calls: 0, bytes: 0, operations: 0 }
    const bytes = sum.bytes + weightBytes + stateBytes
    kinds[kind] = { calls: sum.calls + 1, bytes, operations: sum.operations + operations }
  }
  return kinds
}

/** Of a prompt's first token; a multiply-add is two. */
export const promptOperations = (plan: ExecutionPlan, tokens: number): number =>
  work(plan, stepShape(1, tokens, 0)).reduce((sum, { operations }) => sum + operations, 0)
