/**
 * Prompt lookup: what followed the last few tokens when they occurred before is a guess at what follows now. Exact for
 * whatever a text repeats, and free: no model runs (Saxena, "Prompt Lookup Decoding", 2023).
 */

/** Longest run of tokens that is looked up; shorter ones are tried when it never occurred. */
const LONGEST = 3

/**
 * An index of one growing sequence: each token that was added costs constant time, whatever the length. The most recent
 * occurrence wins, and the longest run before the recency of shorter ones.
 */
export class Lookup {
  /** By the run's length less one: from a run of tokens to the position after its latest occurrence but the last. */
  readonly #after = Array.from({ length: LONGEST }, () => new Map<string, number>())
  /** Runs that end before this position are in the index. */
  #indexed = 0

  /** Takes in the first `length` of `tokens`. Between calls the sequence grows, and what it holds stays. */
  index(tokens: Int32Array, length: number): void {
    for (; this.#indexed < length; this.#indexed++) this.#add(tokens, this.#indexed + 1)
  }

  /**
   * Guesses at most `most` tokens after the first `length` of `tokens`, written behind them; returns how many.
   */
  propose(tokens: Int32Array, length: number, most: number): number {
    // A run that ends at the last token would find itself.
    this.index(tokens, length - 1)
    for (let run = Math.min(LONGEST, length); run > 0; run--) {
      const after = this.#after[run - 1]!.get(key(tokens, length, run))
      if (after === undefined) continue
      // Where the occurrence reaches into the end, the guess goes on with itself.
      for (let i = 0; i < most; i++) tokens[length + i] = tokens[after + i]!
      return most
    }
    return 0
  }

  #add(tokens: Int32Array, end: number): void {
    for (let run = 1; run <= Math.min(LONGEST, end); run++) this.#after[run - 1]!.set(key(tokens, end, run), end)
  }
}

/** The `run` tokens before `end`. */
function key(tokens: Int32Array, end: number, run: number): string {
  return tokens.subarray(end - run, end).join()
}
