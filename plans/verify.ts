/** The load-time verifier: native code checks every rule before JavaScript trusts a byte. */
import { addon } from '../abi/native.ts'
import { fail } from '../errors.ts'
import { RUNTIME_VERSION } from './plan.ts'

/** Throws PLAN_NEWER or PLAN_INVALID unless `bytes` is a sound plan; `path` is for the message. */
export function verifyPlan(bytes: Uint8Array, path: string): void {
  const fault = addon().verifyPlan(bytes)
  if (!fault) return
  const { rule, where, reason, minRuntime } = fault
  if (minRuntime !== undefined) throw fail('PLAN_NEWER', { path, expected: minRuntime, got: RUNTIME_VERSION })
  throw fail('PLAN_INVALID', { path, rule, where, reason })
}
