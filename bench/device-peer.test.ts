/** Comparison with transformers: the divergences, the rule, the tables. The peer itself needs Python, so a stand-in answers. */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'
import { compile, open } from '../index.ts'
import { divergences } from '../parity/measures.ts'
import { besidePeer, judge, type PeerOptions } from './device-peer.ts'
import { peerSection } from './device-peer-tables.ts'
import type { DevicePeer, PeerSpeed } from './device-results.ts'
import { randomPrompts } from './measure.ts'

const folder = mkdtempSync(join(tmpdir(), 'ingot-device-peer-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe('divergences', () => {
  it('are those of known distributions, a token each', () => {
    const log = (...shares: number[]) => shares.map(Math.log)
    const expected = [...log(0.5, 0.5), ...log(0.9, 0.1), ...log(0.2, 0.8)]
    const actual = [...log(0.5, 0.5).map((z) => z + 7), ...log(0.5, 0.5), ...log(0.8, 0.2)]
    const kls = divergences(actual, expected, 2)
    expect(kls).toHaveLength(3)
    expect(kls[0]).toBeCloseTo(0, 15)
    expect(kls[1]).toBeCloseTo(0.9 * Math.log(0.9 / 0.5) + 0.1 * Math.log(0.1 / 0.5), 15)
    expect(kls[2]).toBeCloseTo(0.6 * Math.log(4), 15)
  })

  it('of small errors are half their variance under the distribution', () => {
    const vocab = 4096
    const logits = Array.from({ length: vocab }, (_, i) => Math.sin(i))
    const errors = Array.from({ length: vocab }, (_, i) => 1e-3 * Math.cos(i * i))
    const total = logits.reduce((sum, z) => sum + Math.exp(z), 0)
    const mean = (of: (i: number) => number) => logits.reduce((sum, z, i) => sum + (Math.exp(z) / total) * of(i), 0)
    const variance = mean((i) => errors[i]! ** 2) - mean((i) => errors[i]!) ** 2
    const [kl] = divergences(
      logits.map((z, i) => z + errors[i]!),
      logits,
      vocab,
    )
    expect(kl! / (variance / 2)).toBeCloseTo(1, 2)
  })
})

describe('the rule', () => {
  const kls = fc.array(fc.double({ min: 1e-6, max: 1, noNaN: true }), { minLength: 2, maxLength: 40 })
  it('holds for what is no larger, and not for what is larger at every token by as much', () => {
    fc.assert(
      fc.property(kls, fc.double({ min: 0.01, max: 1, noNaN: true }), (peers, by) => {
        const shifted = (sign: number) =>
          judge(
            peers.map((kl) => kl + sign * by),
            peers,
          )
        expect(judge(peers, peers)).toEqual({ excess: 0, standardError: 0, pass: true })
        expect(shifted(-1).pass).toBe(true)
        expect(shifted(1).pass).toBe(false)
      }),
    )
  })

  it('allows the standard error of the mean, and no more', () => {
    // Excesses 0 and 2 around a mean of 1, whose standard error is 1.
    expect(judge([1, 3], [1, 1])).toEqual({ excess: 1, standardError: 1, pass: true })
    expect(judge([1.1, 3.1], [1, 1]).pass).toBe(false)
  })

  it('refuses NaN and tokens that one side lacks', () => {
    expect(judge([Number.NaN, 0], [1, 1]).pass).toBe(false)
    expect(judge([0, 0], [1]).pass).toBe(false)
    expect(judge([0], [1, 1]).pass).toBe(false)
  })
})

describe('the peer', () => {
  /** A program in the place of Python: it is given the script as an argument and goes its own way. */
  function standIn(name: string, body: string): string {
    const path = join(folder, name)
    writeFileSync(path, `#!/bin/sh\n${body}\n`)
    chmodSync(path, 0o755)
    return path
  }
  const options = (python: string): PeerOptions => ({
    ...{ python, shape: 'Llama-3.2-1B', checkpoint: folder, packages: [], deterministic: [], rounds: 1 },
    ...{ prefill: [16], compiled: [], say: () => undefined },
    speed: { backend: 'cpu', prompt: 16, generate: 2, batches: [1] },
  })
  const versions = '{"torch": "2", "transformers": "5", "device": "cpu"}'

  it('is missed where it does not start or ends early', async () => {
    await expect(besidePeer(options(join(folder, 'nothing')))).rejects.toThrow(/ENOENT/)
    await expect(besidePeer(options(standIn('ends', 'exit 3')))).rejects.toThrow(/the peer ended/)
  })

  it('says why it has no logits', async () => {
    writeFileSync(join(folder, 'config.json'), '{"vocab_size": 8}')
    const refuses = standIn('refuses', `echo '${versions}'; read line; echo '{"error": "no room"}'; cat > /dev/null`)
    await expect(besidePeer(options(refuses))).rejects.toThrow("the peer's logits: no room")
  })

  it('is compared on the same ids, then takes turns', async () => {
    const { path } = await compile(join(packageRoot(), 'checkpoints', 'storyteller-1m'), {
      out: join(folder, '1m.ingot'),
    })
    await using model = await open(path, { maxSlots: 1, contextTokens: 256, maxRows: 256 })
    const { vocab } = model.info
    const rows: Float32Array[] = []
    for (const ids of randomPrompts(4, 256, vocab, 1)) {
      const logits = await model.logits(ids)
      for (let t = 15; t < 256; t += 16) rows.push(logits.subarray(t * vocab, (t + 1) * vocab))
    }
    const ours = Float32Array.from({ length: rows.length * vocab }, (_, i) => rows[Math.floor(i / vocab)]![i % vocab]!)
    const other = ours.map((z, i) => z + 0.01 * Math.sin(i))
    writeFileSync(join(folder, 'ours'), new Uint8Array(ours.buffer))
    writeFileSync(join(folder, 'other'), new Uint8Array(other.buffer))
    writeFileSync(join(folder, 'config.json'), JSON.stringify({ vocab_size: vocab }))
    const beside = async (exact: string, rounded: string, rounds: number) => {
      const body = `echo '${versions}'; read line; out=$(expr "$line" : '.*"out":"\\([^"]*\\)"')
cp ${join(folder, exact)} $out/float32.f32; cp ${join(folder, rounded)} $out/bfloat16.f32; echo '{}'
while read line; do echo '{"seconds": [0.01, 0.02, 0.04]}'; done`
      const packages = [{ quantize: 'none' as const, path }]
      const run = { packages, deterministic: [true], rounds }
      return besidePeer({ ...options(standIn(`from-${exact}`, body)), ...run })
    }
    const near = await beside('ours', 'other', 1)
    expect(near.logits.map(({ tokensPerStep, pass }) => [tokensPerStep, pass])).toEqual([
      [256, true],
      [1, true],
    ])
    expect(near.logits[0]).toMatchObject({ positions: 64, ours: { kl: 0, most: 0, maxAbs: 0, top1: 1 } })
    expect(near.logits[0]!.peer.maxAbs).toBeCloseTo(0.01, 4)
    const turns = near.speeds.map(({ side, what, spread }) => `${side} ${what} ${spread!.samples}`)
    expect(turns).toEqual(['ingot decode 2', 'ingot prefill 8', 'eager decode 3', 'eager prefill 3'])
    expect(near.speeds.at(-1)!.spread!.median).toBeCloseTo(16 / 0.02, 9)
    expect((await beside('other', 'other', 0)).logits.map(({ pass }) => pass)).toEqual([false, false])
  })
})

describe('the section of a report', () => {
  const speed = (side: PeerSpeed['side'], round: number, median?: number): PeerSpeed => ({
    ...{ what: 'decode', batch: 8, tokens: 512, side, round },
    ...(median ? { spread: { median, low: median, high: median, samples: 9 } } : { reason: 'no memory' }),
  })
  const distance = { kl: 1e-5, most: 2e-5, maxAbs: 0.02, top1: 0.98 }
  const peer: DevicePeer = {
    shape: 'Llama-3.2-1B',
    versions: { torch: '2.11', transformers: '5.17', device: 'H200' },
    logits: [true, false, undefined].map((pass) => ({
      ...{ quantize: pass === undefined ? 'q8' : 'none', deterministic: false, tokensPerStep: 256, positions: 64 },
      ...{ deviation: 0.5, ours: distance, peer: { ...distance, kl: 3e-5 } },
      ...{ excess: -2e-5, standardError: 1e-6, ...(pass !== undefined && { pass }) },
    })),
    speeds: [
      ...[speed('ingot', 1, 6000), speed('graph', 1, 3000), speed('compile', 1, 4000)],
      ...[speed('ingot', 2, 6100), speed('graph', 2, 3050), speed('compile', 2)],
    ],
  }

  it('gives every round, and the ratio to the fastest way', () => {
    const text = peerSection([peer])
    expect(text).toContain(
      '| Llama-3.2-1B | decode, 8 sequences after 512 | 6,000, 6,100 | 4,000, no memory | 3,000, 3,050 |  | 1.50, 2.00 |',
    )
    expect(text).toMatch(/bf16 \| default \| 256 \| 1.00e-5 \| 2.00e-5 \| 3.00e-5 .* 0.040 \| 0.040 .* \| pass \|/)
    expect(text.match(/\*\*fail\*\*/g)).toHaveLength(1)
    expect(text.match(/\| q8 .*\| {2}\|/g)).toHaveLength(1)
    expect(text).not.toMatch(/NaN|undefined/)
  })

  it('is left out where no peer ran, and says what failed', () => {
    expect(peerSection([])).toBe('')
    expect(peerSection([{ shape: 'Llama-3.2-1B', logits: [], speeds: [], reason: 'no torch' }])).toContain(
      'Llama-3.2-1B failed: no torch.',
    )
  })
})
