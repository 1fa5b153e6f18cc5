/**
 * Transformers beside this build on one device, in one run: logits against its float32, and speeds in turns. The peer is one
 * process (bench/peers/pytorch.py) that keeps its model between turns, and computes only when it is asked.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { packageRoot } from '../abi/native.ts'
import { open } from '../index.ts'
import { compareLogits, divergences } from '../parity/measures.ts'
import type { DevicePeer, PeerLogits, PeerSpeed } from './device-results.ts'
import { randomPrompts, spread } from './measure.ts'
import type { ModelConfig, ShapeName } from './peers/shapes.ts'
import { type BenchOptions, bench } from './step.ts'

/** Prompts whose logits are compared, their tokens, and how far apart the tokens are that are looked at. */
const [PROMPTS, TOKENS, STRIDE] = [4, 256, 16]
const positions = Array.from({ length: TOKENS / STRIDE }, (_, i) => STRIDE * (i + 1) - 1)
const PREFILL_REPEATS = 8

export interface PeerOptions {
  /** The Python that has PyTorch and transformers. */
  readonly python: string
  readonly shape: ShapeName
  readonly checkpoint: string
  readonly packages: readonly { readonly quantize: PeerLogits['quantize']; readonly path: string }[]
  readonly deterministic: readonly boolean[]
  readonly rounds: number
  /** Prompts of so many tokens are computed in one step. */
  readonly prefill: readonly number[]
  /** Sequences at which the peer's step is also compiled, which takes it half a minute. */
  readonly compiled: readonly number[]
  readonly speed: Pick<BenchOptions, 'backend' | 'pipelined' | 'prompt' | 'generate' | 'batches'>
  readonly say: (line: string) => void
}

interface Answer {
  readonly error?: string
  readonly seconds?: readonly number[]
  readonly agreement?: number
}

/** The peer's process. */
class Peer {
  readonly #child: ChildProcess
  readonly #answers: AsyncIterator<string>
  readonly #failed: Promise<never>

  constructor(python: string, checkpoint: string, device: string) {
    const script = join(packageRoot(), 'bench', 'peers', 'pytorch.py')
    const args = [script, '--checkpoint', checkpoint, '--device', device]
    this.#child = spawn(python, args, { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#failed = once(this.#child, 'error').then(([error]) => Promise.reject(error))
    this.#failed.catch(() => undefined)
    this.#child.stdin!.on('error', () => undefined) // it ended: the answer says so
    this.#answers = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]()
  }

  /** The next line of its answers. Rejects when it ends before. */
  async answer<T>(): Promise<T> {
    const { value, done } = await Promise.race([this.#answers.next(), this.#failed])
    if (done) throw new Error('the peer ended: see what it printed')
    return JSON.parse(value) as T
  }

  async ask(request: object): Promise<Answer> {
    this.#child.stdin!.write(`${JSON.stringify(request)}\n`)
    return this.answer<Answer>()
  }

  [Symbol.dispose](): void {
    this.#child.kill()
  }
}

/** Of each prompt the rows of `positions`, (prompts, positions, vocabulary), computed `step` tokens at a time. */
async function ownLogits(
  path: string,
  prompts: readonly number[][],
  step: number,
  options: { readonly backend: string; readonly deterministic: boolean },
): Promise<Float32Array> {
  const limits = { maxSlots: 1, contextTokens: TOKENS, maxTokensPerStep: step, maxRows: step, prefixCache: false }
  await using model = await open(path, { ...options, ...limits })
  const { vocab } = model.info
  const rows = new Float32Array(prompts.length * positions.length * vocab)
  let at = 0
  for (const ids of prompts) {
    const all = await model.logits(ids)
    for (const position of positions) {
      rows.set(all.subarray(position * vocab, (position + 1) * vocab), at)
      at += vocab
    }
  }
  return rows
}

/**
 * Whether divergences are no larger than the peer's at the same tokens: their difference is in the mean at most its own
 * standard error. Nothing is added to that, and a NaN fails.
 */
export function judge(ours: readonly number[], peers: readonly number[]) {
  const excess = ours.map((kl, i) => kl - (peers[i] ?? Number.NaN))
  const count = Math.max(ours.length, peers.length)
  const mean = excess.reduce((sum, each) => sum + each, 0) / count
  const error = Math.sqrt(excess.reduce((sum, each) => sum + (each - mean) ** 2, 0) / (count - 1) / count)
  return { excess: mean, standardError: error, pass: ours.length === count && mean <= error }
}

/** How far logits are from `exact`. */
function distanceOf(logits: Float32Array, exact: Float32Array, vocab: number) {
  const kls = divergences(logits, exact, vocab)
  const { kl, maxAbs, argmaxAgreement: top1, deviation } = compareLogits(logits, exact, vocab)
  return { kls, deviation, distance: { kl, most: Math.max(...kls), maxAbs, top1 } }
}

async function floatsOf(path: string): Promise<Float32Array> {
  const { buffer, byteOffset, byteLength } = await readFile(path)
  return new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength))
}

async function compareWith(peer: Peer, options: PeerOptions): Promise<PeerLogits[]> {
  const { shape: name, packages, deterministic, say } = options
  const { vocab_size: vocab } = JSON.parse(
    await readFile(join(options.checkpoint, 'config.json'), 'utf8'),
  ) as ModelConfig
  const ids = randomPrompts(PROMPTS, TOKENS, vocab, 1)
  const out = await mkdtemp(join(tmpdir(), 'ingot-peer-'))
  try {
    const { error } = await peer.ask({ logits: { ids, positions, out } })
    if (error) throw new Error(`the peer's logits: ${error}`)
    const [exact, rounded] = [await floatsOf(join(out, 'float32.f32')), await floatsOf(join(out, 'bfloat16.f32'))]
    const theirs = distanceOf(rounded, exact, vocab)
    const rows: PeerLogits[] = []
    // One token at a time takes the kernels of decoding.
    for (const { quantize, path } of packages)
      for (const mode of deterministic)
        for (const tokens of quantize === 'none' ? [TOKENS, 1] : [TOKENS]) {
          const { backend } = options.speed
          const logits = await ownLogits(path, ids, tokens, { backend, deterministic: mode })
          const { kls, deviation, distance } = distanceOf(logits, exact, vocab)
          const { pass, ...rest } = judge(kls, theirs.kls)
          const judged = quantize === 'none' ? { pass } : {}
          const compared = { quantize, deterministic: mode, tokensPerStep: tokens, positions: kls.length, deviation }
          rows.push({ ...compared, ours: distance, peer: theirs.distance, ...rest, ...judged })
          const verdict = quantize === 'none' ? (pass ? 'pass ' : 'FAIL ') : ''
          const title = `${name} ${quantize}${mode ? ' deterministic' : ''}, ${tokens} a step`
          say(
            `${verdict}${title}: KL of float32 to ours ${distance.kl.toExponential(3)}, to bf16 transformers ${theirs.distance.kl.toExponential(3)}`,
          )
        }
    return rows
  } finally {
    await rm(out, { recursive: true, force: true })
  }
}

/** One turn of this build: 16-bit weights, the default mode. */
async function ownTurn(path: string, { speed, prefill }: PeerOptions, round: number): Promise<PeerSpeed[]> {
  const shared = { ...speed, deterministic: false }
  const side = 'ingot' as const
  const { decode } = await bench(path, { ...shared, repeats: 1, stepTokens: 2048 })
  const speeds: PeerSpeed[] = decode.map(({ batch, spread }) => {
    return { what: 'decode', batch, tokens: speed.prompt, side, round, spread }
  })
  for (const tokens of prefill) {
    const prompt = { batches: [1], prompt: tokens, generate: 2, repeats: PREFILL_REPEATS, stepTokens: tokens }
    const { spread } = (await bench(path, { ...shared, ...prompt })).prefill[0]!
    speeds.push({ what: 'prefill', batch: 1, tokens, side, round, spread })
  }
  return speeds
}

/** One turn of the peer: steps captured by hand, those asked for compiled, prompts as they come. */
async function peerTurn(
  peer: Peer,
  { speed, prefill, compiled }: PeerOptions,
  round: number,
  device: string,
): Promise<PeerSpeed[]> {
  const { prompt, generate, batches } = speed
  const speeds: PeerSpeed[] = []
  const add = async (cell: Pick<PeerSpeed, 'what' | 'batch' | 'tokens' | 'side'>, request: object, tokens: number) => {
    const { seconds, agreement, error = 'no times' } = await peer.ask(request)
    const measured = seconds ? { spread: spread(seconds.map((each) => tokens / each)) } : { reason: error }
    speeds.push({ ...cell, round, ...(agreement !== undefined && { agreement }), ...measured })
  }
  for (const batch of batches)
    for (const side of device === 'cpu' ? (['eager'] as const) : (['graph', 'compile'] as const)) {
      if (side === 'compile' && !compiled.includes(batch)) continue
      const decode = { batch, prompt, steps: generate, how: side }
      await add({ what: 'decode', batch, tokens: prompt, side }, { decode }, batch)
    }
  for (const tokens of prefill)
    await add(
      { what: 'prefill', batch: 1, tokens, side: 'eager' },
      { prefill: { tokens, repeats: PREFILL_REPEATS } },
      tokens,
    )
  return speeds
}

function sayTurn(say: PeerOptions['say'], name: ShapeName, speeds: readonly PeerSpeed[]) {
  for (const { what, batch, tokens, side, round, spread: found, reason } of speeds)
    say(`${name} round ${round}, ${what} x ${batch} at ${tokens}, ${side}: ${found?.median.toFixed(0) ?? reason} tok/s`)
}

/** Logits, then rounds of speed in turns: ours, theirs, ours, theirs. Rejects where the peer does not start. */
export async function besidePeer(options: PeerOptions): Promise<DevicePeer> {
  const { python, shape: name, checkpoint, packages, rounds, say } = options
  const device = options.speed.backend === 'cpu' ? 'cpu' : 'cuda'
  using peer = new Peer(python, checkpoint, device)
  const versions = await peer.answer<NonNullable<DevicePeer['versions']>>()
  const logits = await compareWith(peer, options)
  const plain = packages.find(({ quantize }) => quantize === 'none')
  const speeds: PeerSpeed[] = []
  for (let round = 1; plain && round <= rounds; round++)
    for (const turn of [() => ownTurn(plain.path, options, round), () => peerTurn(peer, options, round, device)]) {
      const measured = await turn()
      sayTurn(say, name, measured)
      speeds.push(...measured)
    }
  return { shape: name, versions, logits, speeds }
}
