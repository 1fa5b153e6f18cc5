/**
 * Holds ADR 0001 item 12: a new topology changes models/ only; a new opcode changes its definition, the tables of compute/
 * and kernels only. Both are added to the sources in memory, and the type checker says which files object.
 */
import { readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import ts from 'typescript'
import { beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../abi/native.ts'

const root = packageRoot()

/** Files with type errors once `edits` (path -> new text) are in place. */
function objections(edits: Readonly<Record<string, string>>): string[] {
  const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile)
  const { fileNames, options } = ts.parseJsonConfigFileContent(config, ts.sys, root)
  const host = ts.createCompilerHost(options)
  const read = host.readFile
  host.readFile = (path) => edits[relative(root, path)] ?? read(path)
  const exists = host.fileExists
  host.fileExists = (path) => relative(root, path) in edits || exists(path)
  const roots = [
    ...fileNames.filter((name) => !name.endsWith('.test.ts')),
    ...Object.keys(edits).map((path) => join(root, path)),
  ]
  const program = ts.createProgram([...new Set(roots)], { ...options, noEmit: true, incremental: false }, host)
  const files = ts.getPreEmitDiagnostics(program).map(({ file }) => relative(root, file?.fileName ?? ''))
  return [...new Set(files)].sort()
}

/** A source with `insertion` put before the first `mark`. */
function edited(path: string, mark: string, insertion: string): string {
  const text = readFileSync(join(root, path), 'utf8')
  expect(text).toContain(mark)
  return text.replace(mark, `${insertion}${mark}`)
}

const toy = `
import { z } from 'zod'
import { topology } from './topology.ts'
const schema = z.object({ vocab: z.number(), hidden: z.number() })
export const toy = topology<z.output<typeof schema>>({
  name: 'toy',
  architectures: ['ToyForCausalLM'],
  parse: (config) => schema.parse(config),
  shape: ({ vocab, hidden }) => ({ vocab, hidden, maxContext: 64 }),
  build(graph, { vocab, hidden }) {
    const table = graph.weight('embed.weight', [vocab, hidden])
    const x = graph.add('embed', 'embed', { weights: { table }, params: { vocab, width: hidden } }).out
    const rows = graph.add('gather_rows', 'gather_rows', { inputs: { x }, params: { width: hidden } }).out
    const logits = graph.add('logits', 'logits', { inputs: { x: rows }, weights: { weight: table }, params: { vocab, k: hidden } }).out
    graph.output('logits', logits)
  },
})
`

/** All edits at once, since the types of everything are checked for each set of them; none touches what another does. */
describe('onboarding', () => {
  let files: string[]
  beforeAll(() => {
    const registry = edited('models/index.ts', 'import { llama', "import { toy } from './toy.ts'\n")
    const misuse = "graph.add('glu', 'x', { inputs: { gate: x }, params: { width: 1 } })\n    "
    const negate = '  negate: { ...multiply, id: 19, name: "negate" },\n'
    files = objections({
      'models/toy.ts': toy,
      'models/index.ts': registry.replace('[llama,', '[toy, llama,'),
      'models/decoder.ts': edited('models/decoder.ts', "graph.output(output as 'tokens', value)", misuse),
      'abi/ops/index.ts': edited('abi/ops/index.ts', '  sample,\n} as const', negate),
    })
  }, 120_000)

  it('a topology is one file and one line in models/', () => {
    expect(files.filter((file) => ['models/toy.ts', 'models/index.ts'].includes(file))).toEqual([])
  })

  it('the graph builder objects to a topology that misuses an opcode', () => {
    expect(files).toContain('models/decoder.ts')
  })

  it('an opcode is missed by the tables of compute/, the op cases and the tolerances, and by nothing else', () => {
    const judged = ['parity/ops/cases.ts', 'parity/tolerances.ts']
    expect(files).toEqual(expect.arrayContaining(['compute/cpu.ts', 'compute/reference/table.ts', ...judged]))
    const others = files.filter((file) => !file.startsWith('compute/') && !judged.includes(file))
    expect(others).toEqual(['models/decoder.ts'])
  })
})
