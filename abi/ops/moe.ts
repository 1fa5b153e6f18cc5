import { blocks, defaulted, f32, op, u32 } from './define.ts'

/** How router logits become scores. */
export const routers = { softmax: 0, sigmoid: 1 } as const

/**
 * Mixture of experts (Shazeer et al., 2017): scores = router(router_logits); the `top_k` highest experts are taken
 * (ties to the lower index), their scores divided by their sum when `normalize`, times `scale`;
 * out = sum of score_e * down_e(activation(gate_e(x)) * up_e(x)).
 * Expert e holds rows [e * ff, (e + 1) * ff) of gate and up and rows [e * width, (e + 1) * width) of down.
 */
export const moe = op({
  id: 14,
  name: 'moe',
  version: 1,
  paramVersion: [1, 0],
  inputs: { x: { space: 'any', width: ['width'] }, router_logits: { space: 'any', width: ['experts'] } },
  outputs: { out: { space: 'any', width: ['width'] } },
  weights: {
    gate: { shape: [['experts', 'ff'], ['width']], form: 'tiled' },
    up: { shape: [['experts', 'ff'], ['width']], form: 'tiled' },
    down: { shape: [['experts', 'width'], ['ff']], form: 'tiled' },
    gate_scales: { shape: [['experts', 'ff'], [blocks('width')]], form: 'tiled', optional: true },
    up_scales: { shape: [['experts', 'ff'], [blocks('width')]], form: 'tiled', optional: true },
    down_scales: { shape: [['experts', 'width'], [blocks('ff')]], form: 'tiled', optional: true },
  },
  states: {},
  params: {
    width: u32,
    ff: u32,
    experts: u32,
    top_k: u32,
    activation: u32,
    router: defaulted(u32, 0),
    normalize: defaulted(u32, 0),
    scale: defaulted(f32, 1),
  },
})
