/**
 * Turns a growing sequence of tokens into text, piece by piece, never emitting half a character.
 *
 * Decoders are not per token: bytes of one character are spread over tokens, and a space may depend on what stands
 * before. So each step decodes a short window that begins at a point where the text was whole, and emits what is new.
 * Where a token that is whole by itself reads the same behind any whole text, it is not decoded again.
 * A trailing U+FFFD may be a character whose bytes are not all there, and is held back until it is settled.
 */
const REPLACEMENT = '\uFFFD'
/** A window of unsettled tokens longer than this is cut to its last half: UTF-8 is in step again after four bytes. */
const WINDOW = 32

export class Detokenizer {
  readonly #decode: (tokens: number[]) => string
  readonly #skip: (token: number) => boolean
  readonly #alone: ((token: number) => string) | undefined
  #window: number[] = []
  /** Tokens of the window that were there when the text was last whole. */
  #whole = 0
  /** Characters of the window's text that are emitted. */
  #emitted = 0

  /**
   * `decode` gives the text of any token sequence, of which it leaves out the tokens that `skip` names. `alone`, the text
   * of one token, is given where that of a sequence is the decoded sum of its tokens' bytes.
   */
  constructor(
    decode: (tokens: number[]) => string,
    skip: (token: number) => boolean,
    alone?: (token: number) => string,
  ) {
    this.#decode = decode
    this.#skip = skip
    this.#alone = alone
  }

  push(token: number): string {
    if (this.#skip(token)) return ''
    if (this.#alone && this.#whole === this.#window.length) {
      const text = this.#alone(token)
      if (!text.includes(REPLACEMENT)) return text
    }
    this.#window.push(token)
    const text = this.#decode(this.#window)
    const whole = !text.endsWith(REPLACEMENT)
    const settled = whole ? text.length : text.length - 1
    const piece = text.slice(this.#emitted, settled)
    this.#emitted = Math.max(this.#emitted, settled)
    if (whole && piece !== '') {
      this.#drop(this.#whole)
      this.#whole = this.#window.length
    } else if (this.#window.length > WINDOW) {
      this.#drop(this.#window.length - WINDOW / 2)
    }
    return piece
  }

  /** What is held back, when no token follows. */
  flush(): string {
    const text = this.#decode(this.#window).slice(this.#emitted)
    this.#emitted += text.length
    return text
  }

  /** Drops the first `count` tokens of the window; what is left is context for the next. */
  #drop(count: number): void {
    this.#window.splice(0, count)
    this.#whole = Math.max(0, this.#whole - count)
    const text = this.#decode(this.#window)
    this.#emitted = text.endsWith(REPLACEMENT) ? text.length - 1 : text.length
  }
}
