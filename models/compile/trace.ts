/** Trace: runs a topology over a checkpoint's directory, and accounts for every tensor in it. */
import { fail } from '../../errors.ts'
import type { Checkpoint } from '../checkpoint.ts'
import { type Graph, GraphBuilder } from '../graph.ts'
import type { Topology } from '../topology.ts'
import type { Pacer } from './pacer.ts'

const COMPARE_BYTES = 2 ** 20

async function sameBytes(checkpoint: Checkpoint, a: string, b: string, pacer: Pacer): Promise<boolean> {
  const [left, right] = [checkpoint.tensors.get(a)!, checkpoint.tensors.get(b)!]
  if (left.dtype !== right.dtype || left.shape.join() !== right.shape.join()) return false
  const [x, y] = [checkpoint.data(a), checkpoint.data(b)]
  for (let at = 0; at < x.length; at += COMPARE_BYTES) {
    if (Buffer.compare(x.subarray(at, at + COMPARE_BYTES), y.subarray(at, at + COMPARE_BYTES))) return false
    if (pacer.due) await pacer.rest()
  }
  return true
}

/**
 * The unfused graph of `topology`. Throws TENSOR_MISSING, TENSOR_SHAPE, DTYPE_UNSUPPORTED, and TENSOR_EXTRA for a tensor
 * that the architecture neither reads nor knows as derived from others.
 */
export async function trace<C>(topology: Topology<C>, config: C, checkpoint: Checkpoint, pacer: Pacer): Promise<Graph> {
  const builder = new GraphBuilder(checkpoint.tensors, checkpoint.path)
  topology.build(builder, config)
  const { graph, used } = builder.finish()
  const aliases = new Map(topology.aliases?.(config) ?? [])
  for (const [tensor, { file }] of checkpoint.tensors) {
    if (used.has(tensor) || topology.ignored?.some((pattern) => pattern.test(tensor))) continue
    const original = aliases.get(tensor)
    if (original !== undefined && (await sameBytes(checkpoint, tensor, original, pacer))) continue
    throw fail('TENSOR_EXTRA', { path: file, tensor, architecture: topology.architectures[0] })
  }
  return graph
}
