/** Packages and reference outputs of op cases, made once and used for every backend that is judged. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { LinkedPackage } from '../../compute/device.ts'
import { referenceBackend } from '../../compute/reference.ts'
import { fail } from '../../errors.ts'
import type { OpCase } from './case.ts'
import { runSteps, type StepOutputs } from './compare.ts'
import { packageCase } from './open.ts'

export interface PreparedCase {
  readonly pkg: LinkedPackage
  readonly expected: readonly StepOutputs[]
}

/** Holds the weights of its cases in a temporary folder until it is disposed. */
export class Suite implements AsyncDisposable {
  readonly #folder: string
  readonly #prepared = new Map<OpCase, Promise<PreparedCase>>()

  private constructor(folder: string) {
    this.#folder = folder
  }

  /** Throws OUTPUT_UNWRITABLE when there is no temporary folder to be had. */
  static async open(): Promise<Suite> {
    const folder = await mkdtemp(join(tmpdir(), 'ingot-ops-')).catch((cause: Error) => {
      throw fail('OUTPUT_UNWRITABLE', { path: tmpdir(), reason: cause.message }, cause)
    })
    return new Suite(folder)
  }

  prepare(opCase: OpCase): Promise<PreparedCase> {
    const known = this.#prepared.get(opCase)
    if (known) return known
    const made = this.#make(opCase)
    this.#prepared.set(opCase, made)
    return made
  }

  async #make(opCase: OpCase): Promise<PreparedCase> {
    const pkg = await packageCase(opCase, this.#folder)
    return { pkg, expected: await runSteps(referenceBackend, pkg, opCase.steps) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true })
  }
}
