/**
 * What a topology is: the one file that knows an architecture family. It declares the names that checkpoints give the
 * architecture, a schema of its config, and a function that builds the graph; running the function is the trace.
 */
import type { GraphBuilder } from './graph.ts'

/** What of a config the rest of the compiler needs. */
export interface ModelShape {
  readonly vocab: number
  readonly hidden: number
  /** Longest sequence, in tokens. */
  readonly maxContext: number
}

export interface Topology<C = unknown> {
  /** Model family, for people: "llama". */
  readonly name: string
  /** Names of `architectures` in config.json. */
  readonly architectures: readonly string[]
  /** Reads config.json; throws CONFIG_INVALID or ROPE_UNSUPPORTED naming `path`. */
  readonly parse: (config: unknown, path: string) => C
  readonly shape: (config: C) => ModelShape
  readonly build: (graph: GraphBuilder, config: C) => void
  /** Tensors that a checkpoint may hold and that nothing reads. */
  readonly ignored?: readonly RegExp[]
  /** Tensors that may repeat another byte for byte: [name, the tensor that is read instead]. */
  readonly aliases?: (config: C) => readonly (readonly [name: string, of: string])[]
}

/** Declares a topology; the type of its config is kept. */
export const topology = <C>(definition: Topology<C>): Topology<C> => Object.freeze(definition)
