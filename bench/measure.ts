/** Numbers and how they spread. Benchmarks print; nothing here passes or fails on a time. */
import { random } from '../parity/random.ts'

export interface Spread {
  readonly median: number
  readonly low: number
  readonly high: number
  readonly samples: number
}

/** The value below which `share` of the samples lie (nearest rank); NaN without samples. */
export function quantile(samples: readonly number[], share: number): number {
  const sorted = [...samples].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))] ?? Number.NaN
}

/** Means of `count` samples in a row, from every one on that as many follow; of fewer samples, the mean of all. */
export function means(samples: readonly number[], count: number): number[] {
  const width = Math.min(count, samples.length)
  const starts = samples.slice(0, samples.length - width + 1)
  return starts.map((_, start) => samples.slice(start, start + width).reduce((sum, x) => sum + x, 0) / width)
}

/** Median with the 10th and 90th percentile: these machines lose time to others, so the mean says little. */
export function spread(samples: readonly number[]): Spread {
  return {
    median: quantile(samples, 0.5),
    low: quantile(samples, 0.1),
    high: quantile(samples, 0.9),
    samples: samples.length,
  }
}

/** `count` prompts of `tokens` random ids below `vocabulary`. */
export function randomPrompts(count: number, tokens: number, vocabulary: number, seed = 1): number[][] {
  const next = random(seed)
  return Array.from({ length: count }, () => Array.from({ length: tokens }, () => Math.floor(next() * vocabulary)))
}
