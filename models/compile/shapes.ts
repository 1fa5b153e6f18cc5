/** Shapes: the width and space of every output from the opcode's definition, and whether the operands fit it. */
import { evaluate, type OperandDef, type Space } from '../../abi/ops/define.ts'
import { opDef } from '../../abi/ops/index.ts'
import { fail } from '../../errors.ts'
import type { Graph, GraphRegister, Node } from '../graph.ts'

/** Registers that the node's outputs need, by slot. Throws PLAN_INVALID (rule shape) where an operand does not fit. */
export function inferNode(
  node: Omit<Node, 'outputs'>,
  registers: readonly GraphRegister[],
): Readonly<Record<string, GraphRegister>> {
  const { op, label, params } = node
  const definition = opDef(op)
  const wrong = (reason: string) =>
    fail('PLAN_INVALID', { path: 'graph', rule: 'shape', where: `${label} (${op})`, reason })
  const expectNames = (kind: string, given: object, slots: Readonly<Record<string, { optional?: true }>>) => {
    const unknown = Object.keys(given).find((name) => !Object.hasOwn(slots, name))
    if (unknown) throw wrong(`unknown ${kind} ${unknown}`)
    const missing = Object.keys(slots).find((name) => !slots[name]!.optional && !(name in given))
    if (missing) throw wrong(`${kind} ${missing} is missing`)
  }
  expectNames('input', node.inputs, definition.inputs)
  expectNames('weight', node.weights, definition.weights)
  expectNames('state', node.states, definition.states)

  let shared: Space | undefined
  const spaceOf = (operand: OperandDef) => (operand.space === 'any' ? shared : operand.space)
  for (const [name, { register, column, width }] of Object.entries(node.inputs)) {
    const operand = definition.inputs[name]!
    const { space, width: columns, dtype } = registers[register]!
    if (operand.space === 'any') shared ??= space
    const expected = evaluate(operand.width, params)
    if (space !== spaceOf(operand)) throw wrong(`input ${name} is in space ${space}, expected ${spaceOf(operand)}`)
    if (width !== expected) throw wrong(`input ${name} has width ${width}, expected ${expected}`)
    if (dtype !== (operand.dtype ?? 'f32')) throw wrong(`input ${name} is ${dtype}, expected ${operand.dtype ?? 'f32'}`)
    if (column + width > columns) throw wrong(`input ${name} ends at ${column + width} of ${columns} columns`)
  }
  for (const [name, weight] of Object.entries(node.weights)) {
    const [rows, defined] = definition.weights[name]!.shape.map((size) => evaluate(size, params))
    const cols = weight.encoding === 'row_scales' ? 1 : defined
    if (weight.rows !== rows || weight.cols !== cols)
      throw wrong(`weight ${name} is (${weight.rows}, ${weight.cols}), expected (${rows}, ${cols})`)
  }
  const outputs = Object.entries(definition.outputs).map(([name, operand]) => {
    const space = spaceOf(operand)
    if (!space) throw wrong(`output ${name} has no space`)
    return [name, { space, dtype: operand.dtype ?? 'f32', width: evaluate(operand.width, params) }] as const
  })
  return Object.fromEntries(outputs)
}

/** Checks every node against its registers: what a pass must leave true. */
export function checkShapes(graph: Graph): Graph {
  for (const node of graph.nodes) {
    for (const [name, expected] of Object.entries(inferNode(node, graph.registers))) {
      const got = graph.registers[node.outputs[name]!]!
      if (got.space !== expected.space || got.width !== expected.width || got.dtype !== expected.dtype)
        throw fail('PLAN_INVALID', {
          path: 'graph',
          rule: 'shape',
          where: `${node.label} (${node.op})`,
          reason: `output ${name} is ${got.space} ${got.dtype}[${got.width}], expected ${expected.space} ${expected.dtype}[${expected.width}]`,
        })
    }
  }
  return graph
}
