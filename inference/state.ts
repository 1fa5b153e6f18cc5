/** What the states of a plan ask of the engine: how much of what, and which liberties they allow. */
import { lifecycles, type StateDescriptor } from '../abi/state.ts'
import { fail } from '../errors.ts'
import type { ExecutionPlan } from '../plans/plan.ts'
import { invalid } from './options.ts'

export interface StateNeeds {
  /** Positions of a block; the whole context where no state is paged, so that a sequence holds one nominal block. */
  readonly blockTokens: number
  /** Bytes of one block, over all paged states. */
  readonly bytesPerBlock: number
  /** Bytes of one slot, over all fixed states. */
  readonly bytesPerSlot: number
  /** Bytes of state that one more token costs. */
  readonly bytesPerToken: number
  /** A new sequence's slot must be zeroed. */
  readonly resets: boolean
  /** A sequence may start from blocks of another: every state can be forked at any position, and copied. */
  readonly prefixReuse: boolean
  /** A sequence's tokens must all be in one step: some opcode sees the tokens of this step only. */
  readonly wholeSequences: boolean
}

const sum = (states: readonly StateDescriptor[]) => states.reduce((bytes, state) => bytes + state.sizeBytes, 0)

/** What every sequence asks of its states: to begin, to begin anew in place of another, and to give way to one. */
const NEEDED = lifecycles.init | lifecycles.reset | lifecycles.evict

/** Whether a sequence can start from a state of another, at any position of it. */
const isShareable = ({ fork, lifecycle }: StateDescriptor) => fork === 'any' && (lifecycle & lifecycles.clone) !== 0

/** Throws OPTION_INVALID where a sequence cannot start from the state of another. */
export function assertForks({ states }: ExecutionPlan): void {
  const expected = 'a model whose every state can be forked at any position'
  const state = states.find((state) => !isShareable(state))
  if (state) throw invalid('prefixCache', expected, `state ${state.name}, which forks at: ${state.fork}`)
  if (!states.some(({ kind }) => kind === 'paged'))
    throw invalid('prefixCache', expected, 'a model without paged state')
}

/** Throws PLAN_INVALID for states that the engine cannot keep; `path` is for the message. */
export function stateNeeds(plan: ExecutionPlan, contextTokens: number, path: string): StateNeeds {
  const paged = plan.states.filter((state) => state.kind === 'paged')
  const fixed = plan.states.filter((state) => state.kind === 'fixed')
  const blockTokens = paged[0]?.blockTokens ?? contextTokens
  const refuse = (state: StateDescriptor, rule: string, reason: string) =>
    fail('PLAN_INVALID', { path, rule, where: `state ${state.name}`, reason })
  for (const state of plan.states) {
    if ((state.lifecycle & NEEDED) !== NEEDED)
      throw refuse(state, 'state-lifecycle', `sequences need init, reset and evict (${NEEDED}), got ${state.lifecycle}`)
    if (state.kind === 'ring') throw refuse(state, 'state-kind', 'this runtime keeps paged and fixed states only')
    if (state.kind === 'paged' && state.blockTokens !== blockTokens) {
      throw refuse(state, 'state-block', `blocks of ${state.blockTokens} tokens, other states have ${blockTokens}`)
    }
  }
  return {
    blockTokens,
    bytesPerBlock: sum(paged),
    bytesPerSlot: sum(fixed),
    bytesPerToken: sum(paged) / blockTokens,
    resets: fixed.some((state) => state.zeroInit),
    prefixReuse: paged.length > 0 && plan.states.every(isShareable),
    wholeSequences: plan.instructions.some(
      ({ op, params }) => op === 'pool' || (op === 'attention' && params.causal === 0),
    ),
  }
}
