/**
 * Whether both sides compute what they are timed on. Their errors are those against the float64 reference, on a model of
 * the same shape with few layers and tokens (the reference runs at a millionth of the speed); the timed files themselves
 * are compared with each other.
 */
import { existsSync } from 'node:fs'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { open } from '../../index.ts'
import { compareLogits, type Difference, lossOf } from '../../parity/measures.ts'
import { randomPrompts } from '../measure.ts'
import type { Format } from './convert.ts'
import { type Artifact, artifactOf, checkpointOf } from './prepare.ts'
import { runTask } from './processes.ts'
import type { Side, Task } from './scenarios.ts'
import type { ShapeName } from './shapes.ts'

const LAYERS = 2
const VOCABULARY = 8192
const prompts = (vocab: number) => randomPrompts(2, 12, vocab)

export interface Setup {
  readonly cache: string
  readonly threads: number
  /** By side: see Task. */
  readonly isa: Readonly<Record<Side, string>>
}

/** Root mean square of the error over the deviation of the logits, and the divergence of the distributions in nats. */
export interface Distance {
  readonly error: number
  readonly kl: number
  readonly top1: number
}

export interface Parity {
  /** Of each side from the reference. */
  readonly ingot: Distance
  readonly peer: Distance
  /** Of the two from each other, on the timed files. */
  readonly timed: Distance
  readonly pass: boolean
}

/**
 * Most that ours may err, in deviations of the logits. bf16 rounds activations to 8 bits; q8 and q4 err by their steps:
 * of 254 levels over the range of a group, and of 16. Beyond the bound something other than rounding is wrong.
 */
const mostError: Readonly<Record<Format, number>> = { bf16: 0.015, q8: 0.05, q4: 0.4 }
/**
 * Ours may err by as much more than the peer's. Our q8 keeps one scale for 256 weights where Q8_0 keeps one for 32, and
 * so takes 8.06 bits a weight instead of 8.5: the largest of 256 normal values is 2.99 deviations and that of 32 is 2.29,
 * hence steps are 1.31 times as wide, here with a tenth of margin. The other formats cost nothing by their definition.
 */
const mostRatio: Readonly<Record<Format, number>> = { bf16: 1.25, q8: 1.31 * 1.1, q4: 1.25 }
/** Two independent errors, grown at most as the root of the depth; logits that have nothing in common are sqrt(2) apart. */
const UNRELATED = 0.9
/** Below this the ratio compares rounding noise. */
const LEAST_ERROR = 0.01

const distance = ({ rms, kl, argmaxAgreement, deviation }: Difference & { deviation: number }): Distance => ({
  error: rms / deviation,
  kl,
  top1: argmaxAgreement,
})

async function logitsOf(side: Side, artifact: Artifact, ids: number[][], setup: Setup): Promise<Float32Array> {
  const out = join(setup.cache, `logits-${side}.f32`)
  const task: Task = {
    path: side === 'ingot' ? artifact.package : artifact.gguf,
    threads: setup.threads,
    isa: setup.isa[side],
    vocab: artifact.config.vocab_size,
    seed: 1,
    seconds: 0,
    logits: { prompts: ids, out },
  }
  await runTask(side, task)
  const { buffer, byteOffset, byteLength } = await readFile(out)
  await rm(out)
  return new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength))
}

/** Logits of the bf16 weights in float64, kept beside the checkpoint. */
async function referenceLogits(artifact: Artifact, folder: string, ids: readonly number[][]): Promise<Float32Array> {
  const path = join(folder, 'reference.f32')
  if (!existsSync(path)) {
    const contextTokens = Math.max(...ids.map((prompt) => prompt.length))
    await using model = await open(artifact.package, { backend: 'reference', maxSlots: 1, contextTokens })
    const parts: Uint8Array[] = []
    for (const prompt of ids) parts.push(new Uint8Array((await model.logits(prompt)).buffer))
    await writeFile(path, Buffer.concat(parts))
  }
  const { buffer, byteOffset, byteLength } = await readFile(path)
  return new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength))
}

/** Parity of one shape in one format; `timed` are the files that are measured. */
export async function checkParity(name: ShapeName, format: Format, timed: Artifact, setup: Setup): Promise<Parity> {
  const checkpoint = await checkpointOf(setup.cache, name, LAYERS, VOCABULARY)
  const exact = await artifactOf(checkpoint.folder, setup.cache, checkpoint.name, 'bf16')
  const small = await artifactOf(checkpoint.folder, setup.cache, checkpoint.name, format)
  const ids = prompts(small.config.vocab_size)
  const expected = await referenceLogits(exact, checkpoint.folder, ids)
  const of = async (side: Side) =>
    distance(compareLogits(await logitsOf(side, small, ids, setup), expected, small.config.vocab_size))
  const [ingot, peer] = [await of('ingot'), await of('peer')]
  const own = prompts(timed.config.vocab_size)
  const [ours, theirs] = [await logitsOf('ingot', timed, own, setup), await logitsOf('peer', timed, own, setup)]
  const between = distance(compareLogits(ours, theirs, timed.config.vocab_size))
  const near = ingot.error <= Math.max(LEAST_ERROR, mostRatio[format] * peer.error)
  const depth = Math.sqrt(timed.config.num_hidden_layers / LAYERS)
  const together = between.error <= Math.min(UNRELATED, Math.SQRT2 * depth * Math.max(ingot.error, peer.error))
  return { ingot, peer, timed: between, pass: near && ingot.error <= mostError[format] && together }
}

/** Mean loss of a trained model on its own texts, by side: what a format costs in quality. */
export async function lossesOf(
  artifact: Artifact,
  texts: readonly (readonly number[])[],
  setup: Setup,
): Promise<Record<Side, number>> {
  const vocab = artifact.config.vocab_size
  const ids = texts.map((text) => [...text])
  const mean = async (side: Side) => {
    const logits = await logitsOf(side, artifact, ids, setup)
    let [total, count, start] = [0, 0, 0]
    for (const text of ids) {
      const own = logits.subarray(start, (start += text.length * vocab))
      total += lossOf(own, text, vocab, []).mean * (text.length - 1)
      count += text.length - 1
    }
    return total / count
  }
  return { ingot: await mean('ingot'), peer: await mean('peer') }
}
