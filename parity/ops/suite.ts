/** Packages and reference outputs of op cases, made once and used for every backend that is judged. */
import { rm } from 'node:fs/promises'
import type { LinkedPackage } from '../../compute/device.ts'
import { referenceBackend } from '../../compute/reference.ts'
import { temporaryFolder } from '../../models/files.ts'
import type { OpCase } from './case.ts'
import { runSteps, type StepOutputs } from './compare.ts'
import { packageCase } from './open.ts'

export interface PreparedCase {
  readonly pkg: LinkedPackage
  /** What the reference makes of it: run when first asked for. */
  expected(): Promise<readonly StepOutputs[]>
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
    return new Suite(await temporaryFolder('ops'))
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
    let expected: Promise<readonly StepOutputs[]> | undefined
    return { pkg, expected: () => (expected ??= runSteps(referenceBackend, pkg, opCase.steps)) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true })
  }
}
