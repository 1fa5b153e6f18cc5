/** Compiles a graph over made-up weights into a package that every backend can open. */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { dtypes, numberToBf16, numberToF16 } from '../../abi/dtypes.ts'
import type { LinkedPackage, StoredTensor } from '../../compute/device.ts'
import { packWeights } from '../../models/compile/layout.ts'
import { lower } from '../../models/compile/lower.ts'
import { Pacer } from '../../models/compile/pacer.ts'
import { quantize } from '../../models/compile/quantize.ts'
import { type Graph, GraphBuilder } from '../../models/graph.ts'
import type { TensorEntry } from '../../models/safetensors.ts'
import type { ModelShape } from '../../models/topology.ts'
import { writePlan } from '../../plans/write.ts'
import { random } from '../random.ts'
import { type CaseTensor, type FloatDType, INPUT, type OpCase } from './case.ts'
import { POISON } from './sentinels.ts'

const elements = (shape: readonly number[]) => shape.reduce((product, size) => product * size, 1)

/** Values in [-1, 1), seeded by the name, and what the tensor's fill makes of them. */
function values({ name, shape, fill }: CaseTensor): Float64Array {
  const next = random([...name].reduce((seed, char) => Math.imul(seed, 31) + char.charCodeAt(0), 1))
  const made = new Float64Array(elements(shape))
  for (let i = 0; i < made.length; i++) made[i] = 2 * next() - 1
  const width = shape.at(-1)!
  if (fill) for (let i = 0; i < made.length; i++) made[i] = fill(made[i]!, Math.floor(i / width), i % width, width)
  return made
}

function encode(dtype: FloatDType, exact: Float64Array): Uint8Array {
  const encoded = {
    f32: () => Float32Array.from(exact),
    f16: () => Uint16Array.from(exact, numberToF16),
    bf16: () => Uint16Array.from(exact, numberToBf16),
  }[dtype]()
  return new Uint8Array(encoded.buffer)
}

/** A checkpoint in memory. */
export interface MadeUp {
  readonly entries: ReadonlyMap<string, TensorEntry>
  readonly read: (name: string) => Uint8Array
}

function madeUp(tensors: readonly CaseTensor[]): MadeUp {
  const bytes = new Map(tensors.map((t) => [t.name, encode(t.dtype, values(t))]))
  const entry = ({ name, shape, dtype }: CaseTensor): TensorEntry => ({
    name,
    shape,
    dtype: dtypes[dtype].safetensors,
    file: 'memory',
    offset: 0,
    bytes: bytes.get(name)!.length,
  })
  return {
    entries: new Map(tensors.map((tensor) => [tensor.name, entry(tensor)])),
    read: (name) => bytes.get(name)!,
  }
}

const ALIGN = 64
/** NaN before, between and behind the tensors of a weights file: whatever reads past one shows. */
const BAND = new Uint8Array(new Uint32Array(1024).fill(POISON).buffer)

/** Lowers `graph`, packs its weights into one file of `folder` and locates them there. */
export async function packageGraph(
  graph: Graph,
  read: MadeUp['read'],
  shape: ModelShape,
  folder: string,
  name: string,
): Promise<LinkedPackage> {
  const { plan, weights } = lower(graph, name, shape)
  const chunks = weights.map((): Uint8Array[] => [])
  for await (const { index, bytes } of packWeights(weights, read, new Pacer())) chunks[index]!.push(bytes.slice())
  const file = join(folder, `${name.replace(/[^\w.-]+/g, '_')}.weights`)
  const tensors = new Map<string, StoredTensor>()
  const parts: Uint8Array[] = [BAND]
  let end = BAND.length
  for (const [index, { tensor }] of weights.entries()) {
    tensors.set(tensor.name, { file, offset: end, bytes: tensor.bytes })
    const padding = BAND.subarray(0, BAND.length - (tensor.bytes % ALIGN))
    parts.push(...chunks[index]!, padding)
    end += tensor.bytes + padding.length
  }
  await writeFile(file, Buffer.concat(parts))
  return { path: name, plan, planBytes: writePlan(plan), tensors }
}

const MAX_CONTEXT = 2048

/** The package of an op case. */
export function packageCase(opCase: OpCase, folder: string): Promise<LinkedPackage> {
  const { entries, read } = madeUp(opCase.tensors)
  const builder = new GraphBuilder(entries, opCase.name)
  opCase.build(builder)
  const { graph: plain } = builder.finish()
  const quantized = quantize(plain, opCase.quantize ?? 'none')
  // The input stays exact: values that are integers already would hide what quantising activations costs.
  const nodes = quantized.nodes.map((node, i) => (node.label === INPUT ? plain.nodes[i]! : node))
  const graph = { ...quantized, nodes }
  const hidden = graph.outputs.hidden === undefined ? 1 : graph.registers[graph.outputs.hidden]!.width
  const shape = { vocab: opCase.vocab, hidden, maxContext: MAX_CONTEXT }
  return packageGraph(graph, read, shape, folder, `${opCase.op} ${opCase.name}`)
}
