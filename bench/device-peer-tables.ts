/** What was measured of transformers in the same run: how far logits are from float32, and speeds by turns. */
import type { DevicePeer, PeerLogits, PeerSpeed } from './device-results.ts'
import { markdownTable, number, percent } from './peers/table.ts'

const weightsOf = (quantize: PeerLogits['quantize']) => (quantize === 'none' ? 'bf16' : quantize)

function logitsTable(peers: readonly DevicePeer[]): string {
  const rows = peers.flatMap(({ shape, logits }) =>
    logits.map(({ quantize, deterministic, tokensPerStep, ours, peer, excess, standardError, deviation, pass }) => [
      shape,
      weightsOf(quantize),
      deterministic ? 'deterministic' : 'default',
      String(tokensPerStep),
      ...[ours.kl, ours.most, peer.kl, peer.most].map((kl) => kl.toExponential(2)),
      `${excess.toExponential(1)} ± ${standardError.toExponential(1)}`,
      ...[ours, peer].map(({ maxAbs }) => (maxAbs / deviation).toFixed(3)),
      ...[ours, peer].map(({ top1 }) => percent(top1)),
      pass === undefined ? '' : pass ? 'pass' : '**fail**',
    ]),
  )
  const head = ['shape', 'weights', 'mode', 'tokens a step', 'KL, mean', 'most', "peer's KL, mean", 'most', 'excess']
  return markdownTable([...head, 'largest error', "peer's", 'same best', "peer's", ''], rows)
}

/** Rounds of one side, as a cell; the reason where there are none. */
function cellOf(speeds: readonly PeerSpeed[], side: PeerSpeed['side']): string {
  const own = speeds.filter((each) => each.side === side)
  return own.map(({ spread, reason }) => (spread ? number(spread.median) : (reason ?? ''))).join(', ')
}

/** Ours over the fastest way of the peer, of each round. */
function ratioOf(speeds: readonly PeerSpeed[]): string {
  const rounds = [...new Set(speeds.map(({ round }) => round))]
  const ratios = rounds.map((round) => {
    const of = speeds.filter((each) => each.round === round && each.spread)
    const ours = of.find(({ side }) => side === 'ingot')?.spread?.median
    const theirs = of.filter(({ side }) => side !== 'ingot').map(({ spread }) => spread!.median)
    return ours === undefined || theirs.length === 0 ? '-' : (ours / Math.max(...theirs)).toFixed(2)
  })
  return ratios.join(', ')
}

const titleOf = ({ what, batch, tokens }: PeerSpeed) =>
  what === 'decode'
    ? `decode, ${batch} ${batch === 1 ? 'sequence' : 'sequences'} after ${tokens}`
    : `prefill, 1 prompt of ${tokens}`

function speedTable(peers: readonly DevicePeer[]): string {
  const rows = peers.flatMap(({ shape, speeds }) =>
    [...new Set(speeds.map(titleOf))].map((title) => {
      const cells = speeds.filter((each) => titleOf(each) === title)
      const sides = (['ingot', 'compile', 'graph', 'eager'] as const).map((side) => cellOf(cells, side))
      return [shape, title, ...sides, ratioOf(cells)]
    }),
  )
  const head = ['shape', 'what', 'Ingot', 'torch.compile', 'kernels in a CUDA graph', 'eager', 'ratio']
  return markdownTable(head, rows)
}

/** The section of a report; nothing where no peer ran. */
export function peerSection(peers: readonly DevicePeer[]): string {
  const measured = peers.filter(({ versions }) => versions)
  const failed = peers.filter(({ reason }) => reason).map(({ shape, reason }) => `${shape} failed: ${reason}.`)
  if (peers.length === 0) return ''
  const agreements = measured.flatMap(({ speeds }) => speeds.flatMap(({ agreement = [] }) => agreement))
  const agreement =
    agreements.length > 0
      ? ` At least ${percent(Math.min(...agreements))} of its sequences take the token of a forward pass without a cache.`
      : ''
  const names = new Set(measured.map(({ versions: v }) => `PyTorch ${v!.torch}, transformers ${v!.transformers}`))
  return `
## Beside transformers, in the same run

${[...names].join('; ')}, on the same checkpoints. ${failed.join(' ')}

${logitsTable(measured)}

Divergences are those of the next-token distribution from that of float32 (no TF32, plain attention), in nats, at every 16th token of 4 prompts of 256 random ids; "peer": transformers in bf16 with sdpa; "excess": the mean of ours less the peer's at the same token, and its standard error. Bf16 passes where the excess is at most its standard error. "1 token a step" takes the kernels of decoding. Errors are of one logit, in deviations of all.

${speedTable(measured)}

Tokens a second of every round; sides take turns, Ingot first, default mode, bf16. The peer decodes over a static cache and keeps its tokens on the device, where Ingot gives every step's to JavaScript: compiled (\`reduce-overhead\`), and as transformers' own kernels in a captured graph.${agreement} Ratio: Ingot over the peer's fastest way, by round.
`
}
