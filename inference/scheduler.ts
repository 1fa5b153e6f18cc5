/**
 * Chooses what the next step computes: a pure function of plain data.
 *
 * There are no prefill and decode phases. Every request has `computed` tokens chasing `known` tokens; a step gives each
 * running sequence some of the distance, and one that arrives gets its next token sampled.
 *
 * Policy. Sequences one token behind (decodes) come first, then longer distances (prefills), then admissions from the
 * queue; each by arrival. So a long prefill never delays a decode: the token budget is at least the number of slots, and
 * what decodes leave over goes to the earliest prefill. Blocks go to the earliest arrival: when none is free it preempts
 * the latest arrived sequence, which returns to the queue at its place of arrival and recomputes its tokens later.
 *
 * Guesses (speculate.ts) come last: they get what tokens, rows and free blocks are left, by arrival, and preempt nobody.
 *
 * Nobody starves: the earliest running sequence is never preempted and advances in every step (one sequence always
 * fits in the pool), the queue is served strictly in order, and every sequence is finite.
 */

/** What the scheduler sees of a request. */
export interface Sequence {
  /** Order of arrival, unique. */
  readonly arrival: number
  /** Tokens that exist: prompt and output so far. */
  readonly known: number
  /** Tokens whose state is in blocks. */
  readonly computed: number
  /** Blocks held; in the queue: cached blocks that it would start from. */
  readonly blocks: readonly number[]
  /** In the queue: the last of `blocks` would be appended to, and must be copied first. */
  readonly copy: boolean
  /** Wants a row for every token instead of the last one only. */
  readonly allRows: boolean
  /** Guessed tokens that follow the known ones. */
  readonly proposed: number
}

export interface Resources {
  /** Holders of each block. */
  readonly refs: ArrayLike<number>
  /** Blocks without a holder. */
  readonly blocks: number
  readonly slots: number
}

export interface Policy {
  /** Budget of one step. */
  readonly tokens: number
  readonly rows: number
  /** Most tokens of one sequence in a step, guesses not counted. */
  readonly chunk: number
  readonly blockTokens: number
  /** A sequence's tokens are computed in one step or not at all. */
  readonly whole: boolean
}

export interface Assignment<S extends Sequence> {
  readonly sequence: S
  /** Tokens [computed, computed + tokens); what of that is beyond the known ones is guesses. */
  readonly tokens: number
  /** Blocks to allocate, a copy of the last shared one not counted. */
  readonly blocks: number
  /** Of the tokens, the last so many want a row. */
  readonly rows: number
}

export interface Schedule<S extends Sequence> {
  readonly batch: readonly Assignment<S>[]
  /** Members of the batch that come from the queue, in order of arrival. */
  readonly admitted: readonly S[]
  /** Running sequences that give up slot and blocks, before anything is allocated. */
  readonly preempted: readonly S[]
}

/** `running` and `waiting` are in order of arrival. */
export function schedule<S extends Sequence>(
  running: readonly S[],
  waiting: readonly S[],
  resources: Resources,
  policy: Policy,
): Schedule<S> {
  const { blockTokens } = policy
  const batch = new Map<S, Assignment<S>>()
  const active = [...running]
  const preempted: S[] = []
  const admitted: S[] = []
  const released = new Map<number, number>()
  let free = resources.blocks
  let { tokens, rows } = policy

  const behind = (s: S) => s.known - s.computed
  const blocksFor = (count: number) => Math.ceil(count / blockTokens)

  /** Most tokens of `s` that the budget and `blocks` more blocks allow. */
  const fit = (s: S, blocks: number): number => {
    const room = (s.blocks.length + blocks) * blockTokens - s.computed
    let count = Math.min(behind(s), tokens, policy.chunk, room)
    if (s.allRows) count = Math.min(count, rows)
    else if (count === behind(s) && rows === 0) count--
    return policy.whole && count < behind(s) ? 0 : count
  }
  const grant = (s: S, count: number): void => {
    const blocks = Math.max(0, blocksFor(s.computed + count) - s.blocks.length)
    const last = count === behind(s) ? 1 : 0
    const assignment = { sequence: s, tokens: count, blocks, rows: s.allRows ? count : last }
    batch.set(s, assignment)
    free -= blocks
    tokens -= count
    rows -= assignment.rows
  }
  const preempt = (victim: S): void => {
    const granted = batch.get(victim)
    batch.delete(victim)
    free += granted?.blocks ?? 0
    tokens += granted?.tokens ?? 0
    rows += granted?.rows ?? 0
    for (const block of victim.blocks) {
      const times = (released.get(block) ?? 0) + 1
      released.set(block, times)
      if (times === resources.refs[block]) free++
    }
    preempted.push(victim)
  }
  /** Gives `s` what it can have, taking blocks from later arrivals only when it could not move at all. */
  const advance = (s: S): void => {
    let count = fit(s, free)
    while (count <= 0 && fit(s, Number.POSITIVE_INFINITY) > 0 && active.at(-1) !== s) {
      preempt(active.pop()!)
      count = fit(s, free)
    }
    if (count > 0) grant(s, count)
  }

  /** Adds guesses to what `s` computes, as far as what is left over allows. */
  const extend = (s: S): void => {
    const granted = batch.get(s)
    if (!granted || s.proposed === 0 || granted.tokens < behind(s)) return
    const held = s.blocks.length + granted.blocks
    const room = (held + Math.max(0, free - promised)) * blockTokens - s.known
    const extra = Math.min(s.proposed, tokens, rows, room)
    if (extra <= 0) return
    const blocks = Math.max(0, blocksFor(s.known + extra) - held)
    batch.set(s, {
      sequence: s,
      tokens: granted.tokens + extra,
      blocks: granted.blocks + blocks,
      rows: granted.rows + extra,
    })
    free -= blocks
    tokens -= extra
    rows -= extra
  }

  const decodes = running.filter((s) => behind(s) === 1)
  const prefills = running.filter((s) => behind(s) > 1)
  for (const s of [...decodes, ...prefills]) if (!preempted.includes(s)) advance(s)

  /** Blocks that running sequences still need for what they know: not to be promised twice. */
  const held = (s: S) => s.blocks.length + (batch.get(s)?.blocks ?? 0)
  let promised = active.reduce((total, s) => total + Math.max(0, blocksFor(s.known) - held(s)), 0)
  for (const s of preempted.length > 0 ? [] : waiting) {
    if (admitted.length === resources.slots || tokens === 0) break
    const woken = s.blocks.filter((block) => resources.refs[block] === 0).length
    const taken = woken + (s.copy ? 1 : 0)
    const missing = blocksFor(s.known) - s.blocks.length
    if (taken + missing > free - promised) break
    free -= taken
    const count = fit(s, free)
    if (count <= 0) break
    grant(s, count)
    promised += missing - batch.get(s)!.blocks
    admitted.push(s)
  }
  for (const s of active) extend(s)
  return { batch: [...batch.values()], admitted, preempted }
}
