/**
 * What the matrix runs. Text makes activations that random ids never make: sharp attention, repeated names, sinks at the
 * first token; random ids reach rows of the embedding that text does not.
 */
import { createHash } from 'node:crypto'
import type { MatrixShape } from './matrix-report.ts'
import { random } from './random.ts'

const story = `Once upon a time there was a small brown bear named Tom who lived at the edge of the forest with his friend, a quiet \
sparrow named Anna. Every morning Tom walked to the river to look for his red kite, and every morning Anna said, "Tom, the kite \
is not in the river." One day the wind was strong and the old owl came to the barn. "I have seen your red kite," said the owl. \
"It is in the tall tree behind the mill." Tom and Anna ran to the mill as fast as they could. Anna flew up into the tall tree, \
and Tom waited below. "I have it!" said Anna. Tom was so happy that he danced. The old owl laughed, the small brown bear laughed, \
and the quiet sparrow named Anna sang until the sun went down. From that day on, Tom never lost his red kite again.`

const turns = `<|im_start|>system
You can call these tools:
get_weather(city)
add(x, y)<|im_end|>
<|im_start|>user
Use a tool to add 389 and 204.<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "add", "arguments": {"x": 389, "y": 204}}
</tool_call><|im_end|>`

const list = `Sort these words: stone, otter, dog, ladder. The answer is dog, ladder, otter, stone.`

/** Passages, and how many tokens of each are run at most. */
export const passages: readonly { readonly text: string; readonly tokens: number }[] = [
  { text: story, tokens: 192 },
  { text: turns, tokens: 96 },
  { text: list, tokens: 33 },
  { text: story, tokens: 1 },
]
/** Lengths of random prompts: more than two blocks of state, one past a block, one past a tile, one. */
const randomLengths = [65, 33, 17, 1] as const

export const SEED = 20260101

export const randomPrompts = (vocab: number, seed: number): number[][] => {
  const next = random(seed)
  return randomLengths.map((length) => Array.from({ length }, () => Math.floor(next() * vocab)))
}

type Way = Pick<MatrixShape, 'batch' | 'chunk' | 'generate'>
/** In which every instruction is also judged alone: prompts whole and together, then tokens one by one. */
const JUDGED = 'batch of 4, whole'
/** Each prompt alone and whole; together, in pieces that fit no tile; together and whole. */
const ways: Readonly<Record<string, Way>> = {
  'alone, whole': { batch: 1, chunk: 4096, generate: 8 },
  'batch of 4, chunks of 7': { batch: 4, chunk: 7, generate: 16 },
  [JUDGED]: { batch: 4, chunk: 4096, generate: 4 },
}

/** Names of the shapes that a whole matrix has of one kind of prompts. */
export const shapeNames = (kind: MatrixShape['kind']): string[] => Object.keys(ways).map((way) => `${kind}, ${way}`)

/** Every shape of one kind of prompts. */
export const shapesOf = (kind: MatrixShape['kind'], prompts: readonly number[]): MatrixShape[] =>
  Object.entries(ways).map(([way, rest]) => ({
    name: `${kind}, ${way}`,
    kind,
    prompts,
    ...rest,
    judged: way === JUDGED,
  }))

/** SHA-256 of prompts, in order. */
export function corpusDigest(prompts: readonly (readonly number[])[]): string {
  const hash = createHash('sha256')
  for (const ids of prompts) hash.update(Int32Array.from([ids.length, ...ids]))
  return hash.digest('hex')
}
