import { activations } from '../../abi/ops/define.ts'
import type { Ops } from '../../abi/ops/index.ts'
import { routers } from '../../abi/ops/moe.ts'
import { dot, type ReferenceKernel, row } from './kernel.ts'
import { dequantized } from './linear.ts'
import { activate } from './pointwise.ts'

/** Scores of all experts from their router logits. */
function scoresOf(logits: Float64Array, router: number): Float64Array {
  if (router === routers.sigmoid) return logits.map(activate(activations.sigmoid))
  const best = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
  const powers = logits.map((z) => Math.exp(z - best))
  const sum = powers.reduce((a, b) => a + b, 0)
  return powers.map((p) => p / sum)
}

export const moe: ReferenceKernel<Ops['moe']> = ({ params, inputs, weights, outputs }) => {
  const { width, ff, experts, top_k } = params
  const f = activate(params.activation)
  const gate = dequantized(weights.gate, weights.gate_scales).data
  const up = dequantized(weights.up, weights.up_scales).data
  const down = dequantized(weights.down, weights.down_scales).data
  const inner = new Float64Array(ff)
  for (let r = 0; r < outputs.out.rows; r++) {
    const [out, x] = [row(outputs.out, r), row(inputs.x, r)]
    const scores = scoresOf(row(inputs.router_logits, r), params.router)
    const chosen = Array.from({ length: experts }, (_, e) => e)
      .sort((a, b) => scores[b]! - scores[a]! || a - b)
      .slice(0, top_k)
    const total = params.normalize ? chosen.reduce((sum, e) => sum + scores[e]!, 0) : 1
    for (const e of chosen) {
      const share = (scores[e]! / total) * params.scale
      for (let i = 0; i < ff; i++) {
        const at = (e * ff + i) * width
        inner[i] = f(dot(x, 0, gate, at, width)) * dot(x, 0, up, at, width)
      }
      for (let c = 0; c < width; c++) out[c]! += share * dot(inner, 0, down, (e * width + c) * ff, ff)
    }
  }
}
