/**
 * Philox4x32-10 (Salmon, Moraes, Dror and Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011): a counter-based
 * generator, four 32-bit words that depend on nothing but the counter and the key.
 */
type Words = readonly [number, number, number, number]

const MULTIPLIERS = [0xd2511f53n, 0xcd9e8d57n] as const
const WEYL = [0x9e3779b9, 0xbb67ae85] as const

export function philox(counter: Words, key: readonly [number, number]): Words {
  let [x0, x1, x2, x3] = counter
  let [k0, k1] = key
  for (let round = 0; round < 10; round++) {
    const p0 = MULTIPLIERS[0] * BigInt(x0)
    const p1 = MULTIPLIERS[1] * BigInt(x2)
    const [high0, low0] = [Number(p0 >> 32n), Number(p0 & 0xffffffffn)]
    const [high1, low1] = [Number(p1 >> 32n), Number(p1 & 0xffffffffn)]
    ;[x0, x1, x2, x3] = [(high1 ^ x1 ^ k0) >>> 0, low1, (high0 ^ x3 ^ k1) >>> 0, low0]
    k0 = (k0 + WEYL[0]) >>> 0
    k1 = (k1 + WEYL[1]) >>> 0
  }
  return [x0, x1, x2, x3]
}

/** The uniform number in [0, 1) that chooses the token at `position`: 53 bits of the first two words. */
export function uniform(seedLow: number, seedHigh: number, position: number): number {
  const [x0, x1] = philox([position, 0, 0, 0], [seedLow, seedHigh])
  return (x0 * 2 ** 21 + (x1 >>> 11)) * 2 ** -53
}
