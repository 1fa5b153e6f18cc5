import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Builder, ByteBuffer } from 'flatbuffers'
import { describe, expect, test } from 'vitest'
import * as fb from '../abi/gen/plan_generated.ts'
import { packageRoot } from '../abi/native.ts'
import { forks } from '../abi/state.ts'
import { decoderPlan, type MutablePlan, menageriePlan } from './example.test-plan.ts'
import { outputNames } from './plan.ts'
import { readPlan } from './read.ts'
import { verifyPlan } from './verify.ts'
import { writePlan } from './write.ts'

const find = (plan: MutablePlan, label: string) => plan.instructions.find((each) => each.label === label)!
const indexOf = (plan: MutablePlan, tensor: string) => plan.tensors.findIndex(({ name }) => name === tensor)

/** A plan changed before it is written. */
const decoder = (spoil: (plan: MutablePlan) => void, main?: 'i8' | 'i4' | 'e4m3') => () => {
  const plan = decoderPlan(main)
  spoil(plan)
  return writePlan(plan)
}
const menagerie = (spoil: (plan: MutablePlan) => void) => () => {
  const plan = menageriePlan()
  spoil(plan)
  return writePlan(plan)
}

/** Keys and values in int8, a byte each and nothing beside. */
const unscaledState = decoder(({ states: [state] }) => {
  state!.dtype = 'i8'
  state!.sizeBytes /= 2
})

/** Bytes changed after they were written: field `slot` (vtable offset) of a table. */
const poke = (slot: number, bits: 8 | 16 | 32, value: number, table: (plan: fb.Plan) => unknown) => () => {
  const bytes = writePlan(decoderPlan())
  const { bb, bb_pos } = table(fb.Plan.getRootAsPlan(new ByteBuffer(bytes))) as { bb: ByteBuffer; bb_pos: number }
  const at = bb_pos + bb.__offset(bb_pos, slot)
  const view = new DataView(bytes.buffer)
  if (bits === 8) view.setUint8(at, value)
  else if (bits === 16) view.setUint16(at, value, true)
  else view.setUint32(at, value, true)
  return bytes
}

/** The length of the vector of registers. */
function pokeLength(): Uint8Array {
  const bytes = writePlan(decoderPlan())
  const { bb, bb_pos } = fb.Plan.getRootAsPlan(new ByteBuffer(bytes))
  new DataView(bytes.buffer).setUint32(bb!.__vector(bb_pos + bb!.__offset(bb_pos, 16)) - 4, 2 ** 30, true)
  return bytes
}

/** A word of the blob of parameters, by byte offset. */
const pokeParams = (offset: number, value: number) => () => {
  const bytes = writePlan(decoderPlan())
  const params = fb.Plan.getRootAsPlan(new ByteBuffer(bytes)).paramsArray()!
  new DataView(bytes.buffer, params.byteOffset).setUint32(offset, value, true)
  return bytes
}

function replaceText(from: string, to: string): Uint8Array {
  const bytes = Buffer.from(writePlan(decoderPlan()))
  bytes.write(to, bytes.indexOf(`${from}\0`))
  return bytes
}

/** A plan with one field more than the schema has. */
function newerField(): Uint8Array {
  const b = new Builder()
  b.startObject(14)
  fb.Plan.addFormat(b, 1)
  fb.Plan.addMinRuntime(b, 1)
  b.addFieldInt32(13, 7, 0)
  fb.Plan.finishPlanBuffer(b, b.endObject())
  return b.asUint8Array()
}

const instruction = (plan: fb.Plan) => plan.instructions(2)
const param = (label: string, name: string, value: number) =>
  decoder((plan) => void ((find(plan, label).params as Record<string, number>)[name] = value))
const menagerieParam = (label: string, name: string, value: number) =>
  menagerie((plan) => void ((find(plan, label).params as Record<string, number>)[name] = value))

/** The router of the menagerie, of 4 outputs, with as many branches as its weights then hold. */
const branches = (count: number) =>
  menagerie((plan) => {
    ;(find(plan, 'router').params as Record<string, number>).branches = count
    plan.tensors[indexOf(plan, 'router')]!.rows = 4 * count
    Object.assign(plan.tensors[indexOf(plan, 'router.bias')]!, { cols: 4 * count, bytes: 16 * count })
  })

/** Rule, what breaks it, bytes. */
const broken: [rule: string, what: string, bytes: () => Uint8Array][] = [
  ['identifier', 'another identifier', () => writePlan(decoderPlan()).with(4, 0x58)],
  ['format', 'a format not known', decoder((plan) => void (plan.format = 2))],
  ['format', 'no runtime named', decoder((plan) => void (plan.minRuntime = 0))],
  ['structure', 'no bytes', () => new Uint8Array()],
  ['structure', 'half a plan', () => writePlan(decoderPlan()).slice(0, 2000)],
  ['structure', 'more than 16 MiB', () => new Uint8Array(2 ** 24 + 1)],
  ['structure', 'a root outside', () => writePlan(decoderPlan()).with(3, 0x7f)],
  ['structure', 'a misaligned root', () => writePlan(decoderPlan()).map((byte, i) => (i === 0 ? byte + 2 : byte))],
  ['structure', 'a vector outside', poke(16, 32, 0x00ffffff, (plan) => plan)],
  ['structure', 'a string outside', poke(22, 32, 0x00fffffc, instruction)],
  ['structure', 'a vector longer than the plan', pokeLength],
  ['unknown-field', 'a field of a later schema', newerField],
  ['string', 'a terminal escape in a name', decoder((plan) => void (plan.registers[3]!.name = '\u001b[2J'))],
  [
    'string',
    'a name that is not UTF-8',
    () => {
      const bytes = Buffer.from(writePlan(decoderPlan()))
      return bytes.fill(0xff, bytes.indexOf('inv_freq'), bytes.indexOf('inv_freq') + 1)
    },
  ],
  ['header', 'no vocabulary', decoder((plan) => void (plan.vocab = 0))],
  ['header', 'a context of 2^31', decoder((plan) => void (plan.maxContext = 2 ** 31))],
  ['register-type', 'a bf16 register', decoder((plan) => void (plan.registers[2]!.dtype = 'bf16'))],
  ['register-type', 'an unknown space', poke(6, 8, 3, (plan) => plan.registers(plan.registersLength() - 1))],
  ['register-extent', 'a stride too short', decoder((plan) => void (plan.registers[2]!.stride = 64))],
  ['register-extent', 'an odd stride', decoder((plan) => void (plan.registers[2]!.stride = 132))],
  ['register-extent', 'no width', decoder((plan) => void (plan.registers[2]!.width = 0))],
  ['register-extent', 'an odd offset', decoder((plan) => void (plan.registers[2]!.offset += 4))],
  ['tensor-name', 'two tensors of one name', decoder((plan) => void (plan.tensors[1]!.name = 'embed'))],
  ['tensor-name', 'a tensor without a name', decoder((plan) => void (plan.tensors[1]!.name = ''))],
  ['tensor-type', 'bf16 in tiles of one', decoder((plan) => void (plan.tensors[0]!.layout = 'tile16'))],
  ['tensor-type', 'a row-major bf16', decoder((plan) => void (plan.tensors[0]!.layout = 'row'))],
  ['tensor-type', 'an unknown dtype', poke(6, 8, 9, (plan) => plan.tensors(0))],
  ['tensor-bytes', 'unpadded bytes', decoder((plan) => void (plan.tensors[0]!.bytes = 40 * 16 * 2))],
  ['tensor-bytes', 'no rows', decoder((plan) => void Object.assign(plan.tensors[0]!, { rows: 0, bytes: 0 }))],
  [
    'tensor-bytes',
    'a size that overflows',
    decoder((plan) => void Object.assign(plan.tensors[0]!, { rows: 2 ** 32 - 1, cols: 2 ** 32 - 1 })),
  ],
  ['state-type', 'an int4 state', decoder((plan) => void (plan.states[0]!.dtype = 'i4'))],
  ['state-type', 'an int8 state that has no scales', menagerie((plan) => void (plan.states[0]!.dtype = 'i8'))],
  ['state-type', 'an unknown kind', poke(6, 8, 7, (plan) => plan.states(0))],
  ['state-type', 'a recurrence in bf16', menagerie((plan) => void (plan.states[1]!.dtype = 'bf16'))],
  ['state-unit', 'blocks of 16', decoder((plan) => void (plan.states[0]!.blockTokens = 16))],
  ['state-unit', 'an alignment of 48', decoder((plan) => void (plan.states[0]!.alignBytes = 48))],
  ['state-capability', 'a paged state that is zeroed', decoder((plan) => void (plan.states[0]!.zeroInit = true))],
  ['state-capability', 'a lifecycle not known', decoder((plan) => void (plan.states[0]!.lifecycle = 16))],
  ['state-capability', 'a recurrence that rewinds', menagerie((plan) => void (plan.states[1]!.rewind = 1))],
  ['state-capability', 'a recurrence forked anywhere', menagerie((plan) => void (plan.states[1]!.fork = 'any'))],
  ['state-capability', 'a recurrence that starts anyhow', menagerie((plan) => void (plan.states[1]!.zeroInit = false))],
  ['opcode-unknown', 'opcode 99', poke(4, 16, 99, instruction)],
  ['opcode-version', 'version 2', decoder((plan) => void (plan.instructions[2]!.version = 2))],
  [
    'operand-count',
    'an input too many',
    decoder((plan) => {
      const norm = find(plan, 'norm')
      norm.inputs.push(norm.inputs[0])
    }),
  ],
  ['operand-count', 'an output too many', decoder((plan) => void find(plan, 'norm').outputs.push(0))],
  ['operand-count', 'a weight too many', decoder((plan) => void find(plan, 'norm').weights.push(0))],
  [
    'operand-count',
    'a state too many',
    decoder((plan) => {
      find(plan, 'norm').states.push({ state: 0, access: 'readwrite' })
    }),
  ],
  ['params-range', 'a block at an odd place', poke(16, 32, 4, instruction)],
  ['params-range', 'a block outside', poke(16, 32, 0xfffffff8, instruction)],
  ['params-range', 'a block without a header', poke(18, 32, 4, instruction)],
  ['params-version', 'a newer minor', pokeParams(4, 0x00010001)],
  ['params-version', 'another major', pokeParams(4, 0x00000002)],
  ['params-size', "a size that is not its version's", pokeParams(0, 36)],
  ['params-size', 'a range that is not its size', poke(18, 32, 16, instruction)],
  ['params-value', 'a table smaller than the vocabulary', menagerie((plan) => void (plan.vocab = 41))],
  ['params-value', 'an epsilon that is not finite', param('norm', 'eps', Number.POSITIVE_INFINITY)],
  ['params-value', 'an unknown activation', param('layers.0.glu', 'activation', 8)],
  ['params-value', 'an unknown rope style', param('layers.0.attention', 'rope_style', 2)],
  ['params-value', 'rope on an odd number', menagerieParam('rope', 'dim', 3)],
  [
    'params-value',
    'rope without frequencies',
    decoder((plan) => {
      find(plan, 'layers.1.attention').weights[0] = undefined
    }),
  ],
  [
    'params-value',
    'frequencies without rope',
    menagerie((plan) => {
      plan.tensors[indexOf(plan, 'inv_freq')]!.cols = 2
      find(plan, 'attention').weights[0] = undefined
      ;(find(plan, 'attention').params as Record<string, number>).rope_dim = 4
    }),
  ],
  [
    'params-value',
    'causal attention without state',
    decoder((plan) => {
      find(plan, 'layers.1.attention').states[0] = undefined
    }),
  ],
  ['params-value', 'a softcap below 0', param('head', 'softcap', -1)],
  ['params-value', 'three branches', branches(3)],
  ['params-value', 'two branches whose rows fill no whole run', branches(2)],
  ['params-value', 'an epsilon of a prologue below 0', menagerieParam('router', 'norm_eps', -1)],
  ['params-value', 'an offset of a prologue that is not finite', menagerieParam('router', 'norm_offset', Number.NaN)],
  ['weight-form', 'branches without their rows', menagerieParam('router', 'branches', 2)],
  ['params-value', 'an unknown pooling mode', menagerieParam('pool', 'mode', 3)],
  ['params-value', 'a flag of 2', menagerieParam('pool', 'normalize', 2)],
  ['params-value', 'an unknown router', menagerieParam('moe', 'router', 2)],
  ['params-value', 'more experts than there are', menagerieParam('moe', 'top_k', 5)],
  ['params-value', 'no expert', menagerieParam('moe', 'top_k', 0)],
  ['params-value', 'a time step range upside down', menagerieParam('ssm', 'dt_max', -1)],
  ['params-value', 'a position table too short', menagerie((plan) => void (plan.maxContext = 129))],
  [
    'params-value',
    'a position table that is not there',
    menagerie((plan) => {
      find(plan, 'embed').weights[2] = undefined
    }),
  ],
  ['operand-missing', 'no input', decoder((plan) => void (find(plan, 'norm').inputs[0] = undefined))],
  ['operand-missing', 'no output', decoder((plan) => void find(plan, 'norm').outputs.pop())],
  ['operand-missing', 'no weight', decoder((plan) => void (find(plan, 'layers.0.o').weights[0] = undefined))],
  ['operand-missing', 'no state', menagerie((plan) => void (find(plan, 'ssm').states[0] = undefined))],
  ['operand-index', 'a register not there', decoder((plan) => void (find(plan, 'norm').inputs[0]!.register = 999))],
  ['operand-index', 'an output not there', decoder((plan) => void (find(plan, 'norm').outputs[0] = 999))],
  ['operand-index', 'a tensor not there', decoder((plan) => void (find(plan, 'norm').weights[0] = 999))],
  [
    'operand-index',
    'a state not there',
    decoder((plan) => {
      find(plan, 'layers.0.attention').states[0]!.state = 2
    }),
  ],
  [
    'operand-columns',
    'columns past the end',
    decoder((plan) => {
      find(plan, 'layers.0.attention').inputs[2]!.column = 25
    }),
  ],
  [
    'operand-columns',
    'columns that overflow',
    decoder((plan) => {
      find(plan, 'layers.0.attention').inputs[2]!.column = 0xffffffff
    }),
  ],
  ['operand-width', 'half a key', decoder((plan) => void (find(plan, 'layers.0.attention').inputs[1]!.width = 4))],
  ['operand-width', 'an output of another width', param('layers.0.gate_up', 'n', 64)],
  ['operand-width', 'heads that are not a multiple', param('layers.0.attention', 'heads', 3)],
  [
    'operand-type',
    'a token id as a float',
    decoder((plan) => {
      plan.registers[plan.outputs.tokens!]!.dtype = 'f32'
      delete plan.outputs.tokens
    }),
  ],
  [
    'operand-type',
    'a residual of another space',
    decoder((plan) => {
      find(plan, 'layers.1.down').inputs[1]!.register = plan.outputs.hidden!
    }),
  ],
  [
    'operand-type',
    'tokens where rows are read',
    decoder((plan) => {
      find(plan, 'head').inputs[0]!.register = 0
    }),
  ],
  [
    'weight-form',
    'a row-major matrix',
    decoder((plan) => {
      find(plan, 'layers.0.o').weights[0] = indexOf(plan, 'norm')
    }),
  ],
  [
    'weight-form',
    'a tiled norm',
    decoder((plan) => {
      find(plan, 'norm').weights[0] = indexOf(plan, 'embed')
    }),
  ],
  [
    'weight-form',
    'a matrix of another shape',
    decoder((plan) => {
      find(plan, 'layers.0.o').weights[0] = indexOf(plan, 'layers.0.down')
    }),
  ],
  [
    'weight-scales',
    'int8 without scales',
    decoder((plan) => {
      find(plan, 'layers.1.down').weights[1] = undefined
    }, 'i8'),
  ],
  [
    'weight-scales',
    'int4 without scales',
    decoder((plan) => {
      find(plan, 'layers.1.down').weights[1] = undefined
    }, 'i4'),
  ],
  [
    'tensor-bytes',
    'a byte for each int4',
    decoder((plan) => void (plan.tensors[indexOf(plan, 'layers.0.o')]!.bytes *= 2), 'i4'),
  ],
  [
    'tensor-type',
    'int4 in the layout of int8',
    decoder((plan) => void (plan.tensors[indexOf(plan, 'layers.0.o')]!.layout = 'tile16x4'), 'i4'),
  ],
  [
    'weight-scales',
    'int4 without sub-scales',
    decoder((plan) => {
      find(plan, 'layers.1.down').weights[3] = undefined
    }, 'i4'),
  ],
  [
    'weight-scales',
    'int8 with sub-scales',
    decoder((plan) => {
      const { tensors } = plan
      const rows = tensors[indexOf(plan, 'layers.1.down')]!.rows
      const bytes = Math.ceil(rows / 16) * 16
      const at = tensors.push({ name: 's', dtype: 'i8', layout: 'tile16', rows, cols: 1, bytes }) - 1
      find(plan, 'layers.1.down').weights[3] = at
    }, 'i8'),
  ],
  [
    'weight-scales',
    'int8 in the layout of sub-scales',
    decoder((plan) => {
      const weight = plan.tensors[indexOf(plan, 'layers.1.down')]!
      Object.assign(weight, { layout: 'tile16', bytes: Math.ceil(weight.rows / 16) * 16 * weight.cols })
    }, 'i8'),
  ],
  [
    'weight-scales',
    'sub-scales of f16',
    decoder((plan) => {
      const scales = plan.tensors[indexOf(plan, 'layers.1.down.sub_scales')]!
      Object.assign(scales, { dtype: 'f16', bytes: scales.bytes * 2 })
    }, 'i4'),
  ],
  [
    'weight-scales',
    'scales of bf16',
    decoder((plan) => {
      const { tensors } = plan
      const at = tensors.push({ name: 's', dtype: 'f16', layout: 'tile16', rows: 16, cols: 1, bytes: 32 }) - 1
      find(plan, 'layers.0.o').weights[1] = at
    }),
  ],
  [
    'weight-scales',
    'f32 scales',
    decoder((plan) => {
      const scales = plan.tensors[indexOf(plan, 'layers.0.o.scales')]!
      Object.assign(scales, { dtype: 'f32', bytes: scales.bytes * 2 })
    }, 'i8'),
  ],
  [
    'weight-scales',
    'e4m3 without scales',
    decoder((plan) => {
      find(plan, 'layers.1.down').weights[1] = undefined
    }, 'e4m3'),
  ],
  [
    'weight-scales',
    'f16 scales of e4m3',
    decoder((plan) => {
      const scales = plan.tensors[indexOf(plan, 'layers.0.o.scales')]!
      Object.assign(scales, { dtype: 'f16', bytes: scales.bytes / 2 })
    }, 'e4m3'),
  ],
  [
    'weight-form',
    'more than one scale for a row of e4m3',
    decoder((plan) => {
      const scales = plan.tensors[indexOf(plan, 'layers.0.o.scales')]!
      Object.assign(scales, { cols: 2, bytes: scales.bytes * 2 })
    }, 'e4m3'),
  ],
  [
    'tensor-type',
    'e4m3 in the layout of sub-scales',
    decoder((plan) => void (plan.tensors[indexOf(plan, 'layers.0.o')]!.layout = 'tile16'), 'e4m3'),
  ],
  ['state-type', 'an e4m3 state', decoder((plan) => void (plan.states[0]!.dtype = 'e4m3'))],
  [
    'state-access',
    'a state that is only read',
    decoder((plan) => {
      find(plan, 'layers.0.attention').states[0]!.access = 'read'
    }),
  ],
  [
    'state-access',
    'a state of another kind',
    menagerie((plan) => {
      Object.assign(plan.states[0]!, { kind: 'ring', blockTokens: 32, zeroInit: false })
    }),
  ],
  ['state-size', 'an int8 state without room for its scales', unscaledState],
  ['state-size', 'a unit too small', decoder((plan) => void (plan.states[1]!.sizeBytes -= 64))],
  ['state-size', 'a unit too large', menagerie((plan) => void (plan.states[1]!.sizeBytes += 64))],
  [
    'definition',
    'a register read before it is defined',
    decoder((plan) => {
      find(plan, 'layers.0.norm1').inputs[0]!.register = find(plan, 'layers.0.o').outputs[0]!
    }),
  ],
  [
    'definition',
    'an instruction that reads what it writes',
    decoder((plan) => {
      const norm = find(plan, 'layers.0.norm1')
      norm.inputs[0]!.register = norm.outputs[0]!
    }),
  ],
  [
    'definition',
    'a register defined twice',
    decoder((plan) => {
      find(plan, 'layers.1.norm1').outputs[0] = find(plan, 'layers.0.norm1').outputs[0]!
    }),
  ],
  [
    'definition',
    'a register that nothing defines',
    decoder((plan) => void plan.registers.push({ ...plan.registers[0]! })),
  ],
  ['liveness', 'a register that dies early', decoder((plan) => void plan.registers[0]!.last--)],
  ['liveness', 'a register that lives on', decoder((plan) => void plan.registers[1]!.last++)],
  ['liveness', 'an output that dies', decoder((plan) => void plan.registers[plan.outputs.logits!]!.last--)],
  ['liveness', 'a register defined elsewhere', decoder((plan) => void plan.registers[4]!.first--)],
  ['last-use', 'a last read that is missed', decoder((plan) => void (plan.instructions[2]!.lastUse = 0))],
  ['last-use', 'a last read that is not', decoder((plan) => void (plan.instructions[1]!.lastUse = 1))],
  ['last-use', 'a bit beyond the inputs', decoder((plan) => void (plan.instructions[2]!.lastUse |= 2 ** 31 - 2 ** 30))],
  [
    'overlap',
    'an output on its input',
    decoder((plan) => void (plan.registers[2]!.offset = plan.registers[1]!.offset)),
  ],
  [
    'overlap',
    'an output that reaches into the next',
    decoder((plan) => {
      plan.registers[2]!.stride += 192
      plan.registers[1]!.offset = 64
      plan.registers[2]!.offset = 0
    }),
  ],
  ['memory-totals', 'less than the peak', decoder((plan) => void (plan.memory.peak[0]! -= 64))],
  ['memory-totals', 'more than the peak', decoder((plan) => void (plan.memory.peak[1]! += 64))],
  ['memory-totals', 'another lower bound', decoder((plan) => void (plan.memory.lowerBound[0]! -= 64))],
  ['memory-totals', 'a space too few', decoder((plan) => void plan.memory.peak.pop())],
  [
    'state-order',
    'two layers on one state',
    decoder((plan) => {
      find(plan, 'layers.1.attention').states[0]!.state = 0
    }),
  ],
  [
    'state-order',
    'a state that nothing writes',
    decoder((plan) => void plan.states.push({ ...plan.states[0]!, id: 2 })),
  ],
  ['output', 'none', decoder((plan) => void (plan.outputs = {}))],
  ['output', 'of another dtype', decoder((plan) => void (plan.outputs.tokens = plan.outputs.logits!))],
  ['output', 'of another width', decoder((plan) => void (plan.outputs.hidden = plan.outputs.logits!))],
  ['output', 'of another space', decoder((plan) => void (plan.outputs.hidden = 0))],
  ['output', 'a register not there', decoder((plan) => void (plan.outputs.hidden = 999))],
  ['output', 'an unknown name', () => replaceText('hidden', 'hiddem')],
  ['output', 'a name given twice', () => replaceText('hidden', 'logits')],
]

describe('a broken plan is refused by the rule that it breaks', () => {
  test.each(broken)('%s: %s', (rule, _, bytes) => {
    const refused = { code: 'PLAN_INVALID', details: expect.objectContaining({ rule, path: 'x.ingot' }) }
    expect(() => verifyPlan(bytes(), 'x.ingot')).toThrow(expect.objectContaining(refused))
  })
})

test('every rule in the table of verify.cc is broken above', () => {
  const source = readFileSync(join(packageRoot(), 'native/core/verify.cc'), 'utf8')
  const rules = [...source.matchAll(/^\/\/ {3}([a-z][a-z-]+) {2,}\S/gm)].map(([, rule]) => rule)
  expect(new Set(rules)).toEqual(new Set([...broken.map(([rule]) => rule), 'min-runtime']))
  const sources = ['plan_view', 'verify', 'verify_operands', 'verify_memory', 'verify_params'].map((file) =>
    readFileSync(join(packageRoot(), `native/core/${file}.cc`), 'utf8'),
  )
  const raised = sources.flatMap((text) => [...text.matchAll(/refuse\("([a-z-]+)"/g)].map(([, rule]) => rule))
  expect(rules).toEqual(expect.arrayContaining(raised))
})

test('a plan for a newer runtime says so, even with fields that this one does not know', () => {
  const newer = expect.objectContaining({ code: 'PLAN_NEWER', details: { path: 'x', expected: 2, got: 1 } })
  expect(() => verifyPlan(decoder((plan) => void (plan.minRuntime = 2))(), 'x')).toThrow(newer)
  const bytes = newerField()
  const root = fb.Plan.getRootAsPlan(new ByteBuffer(bytes))
  bytes[root.bb_pos + root.bb!.__offset(root.bb_pos, 6)] = 2
  expect(() => verifyPlan(bytes, 'x')).toThrow(newer)
})

test('the message names the instruction, expected and got', () => {
  expect(() => verifyPlan(broken.find(([rule]) => rule === 'operand-width')![2](), 'x.ingot')).toThrow(
    /^x\.ingot: the plan breaks rule operand-width at instruction 3 \(layers\.0\.attention\) k: width 4, expected 8$/,
  )
})

test('a fixed state may declare less than its kind can do', () => {
  const weaker = menagerie((plan) => void Object.assign(plan.states[1]!, { fork: 'none', lifecycle: 3 }))
  expect(readPlan(weaker(), 'x').states[1]!.fork).toBe(Object.keys(forks)[0])
})

test('every output name of plans/plan.ts is known to the verifier', () => {
  expect(Object.keys(readPlan(writePlan(decoderPlan()), 'x').outputs).toSorted()).toEqual([...outputNames].toSorted())
})
