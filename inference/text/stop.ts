/** Finds stop strings in streamed text without ever letting a part of one through. */
export class StopMatcher {
  readonly #stops: readonly string[]
  #held = ''

  constructor(stops: readonly string[]) {
    this.#stops = stops
  }

  /** Text that is safe to emit, and the stop string that was hit: the earliest, and the longest of those. */
  push(text: string): { readonly text: string; readonly stop: string | undefined } {
    this.#held += text
    const hit = this.#find()
    const end = hit ? hit.at : this.#held.length - this.#pending()
    const safe = this.#held.slice(0, end)
    this.#held = hit ? '' : this.#held.slice(end)
    return { text: safe, stop: hit?.stop }
  }

  /** What was held back, when nothing can complete it any more. */
  flush(): string {
    const text = this.#held
    this.#held = ''
    return text
  }

  #find(): { readonly at: number; readonly stop: string } | undefined {
    let best: { at: number; stop: string } | undefined
    for (const stop of this.#stops) {
      const at = this.#held.indexOf(stop)
      if (at < 0) continue
      if (!best || at < best.at || (at === best.at && stop.length > best.stop.length)) best = { at, stop }
    }
    return best
  }

  /** Length of the longest end of the held text with which some stop string begins. */
  #pending(): number {
    let longest = 0
    for (const stop of this.#stops) {
      const most = Math.min(stop.length - 1, this.#held.length)
      for (let length = most; length > longest; length--) {
        if (this.#held.endsWith(stop.slice(0, length))) longest = length
      }
    }
    return longest
  }
}
