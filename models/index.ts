/** The topologies that Ingot knows. */
import { fail } from '../errors.ts'
import { llama, mistral } from './llama.ts'
import { qwen3 } from './qwen3.ts'
import type { Topology } from './topology.ts'

// A registry forgets each topology's own config type: what `parse` returns only goes back to the same topology.
// biome-ignore lint/suspicious/noExplicitAny: the types of the configs have no common supertype
export const topologies: readonly Topology<any>[] = [llama, mistral, qwen3]

/** The topology of a config's architectures. Throws ARCHITECTURE_UNSUPPORTED. */
export function findTopology(architectures: readonly string[], path: string): (typeof topologies)[number] {
  const found = topologies.find((each) => each.architectures.includes(architectures[0] ?? ''))
  if (found) return found
  const expected = topologies.flatMap((each) => each.architectures)
  throw fail('ARCHITECTURE_UNSUPPORTED', { path, got: architectures.join(', '), expected })
}
