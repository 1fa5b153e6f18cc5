/**
 * Schema evolution: what has been written into plans and packages must keep its meaning. The lists below are version 1 as
 * it was frozen; sources may append to them and nothing else. Never edit a line here to make a test pass.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { dtypes } from './dtypes.ts'
import { layouts } from './layouts.ts'
import { packageRoot } from './native.ts'
import { activations, spaces, stateAccesses, stateKinds } from './ops/define.ts'
import { opDef, opNames } from './ops/index.ts'
import { forks, lifecycles } from './state.ts'

const frozenTables = {
  Operand: 'register:uint column:uint width:uint',
  StateUse: 'state:uint access:uint',
  Register: 'name:string space:ubyte dtype:ubyte width:uint stride:uint offset:ulong first:uint last:uint',
  Tensor: 'name:string dtype:ubyte layout:ubyte rows:uint cols:uint bytes:ulong',
  State:
    'name:string kind:ubyte dtype:ubyte size_bytes:ulong align_bytes:uint zero_init:bool block_tokens:uint lifecycle:uint rewind:uint fork:ubyte',
  Instruction:
    'opcode:ushort version:ushort inputs:[Operand] outputs:[uint] weights:[uint] states:[StateUse] params_offset:uint params_size:uint last_use:uint label:string',
  Output: 'name:string register:uint',
  Memory: 'peak:[ulong] lower_bound:[ulong]',
  Plan: 'format:uint min_runtime:uint model:string vocab:uint hidden:uint max_context:uint registers:[Register] tensors:[Tensor] states:[State] instructions:[Instruction] outputs:[Output] memory:Memory params:[ubyte]',
}
/** A struct has no vtable: not even appending keeps old bytes readable. */
const structs = ['Operand', 'StateUse']

const frozenIds = {
  dtypes: { f32: 1, f16: 2, bf16: 3, i8: 4, i32: 5, i4: 6 },
  layouts: { row: 0, tile16: 1, tile16x2: 2, tile16x4: 3, tile16x8: 4 },
  spaces: { tokens: 0, rows: 1, sequences: 2 },
  stateKinds: { paged: 1, ring: 2, fixed: 3 },
  stateAccesses: { read: 1, write: 2, readwrite: 3 },
  activations: { none: 0, silu: 1, gelu: 2, gelu_tanh: 3, relu: 4, sigmoid: 5, tanh: 6, relu2: 7 },
  lifecycles: { init: 1, reset: 2, evict: 4, clone: 8 },
  forks: { none: 0, head: 1, any: 2 },
}

/** Parameters of each opcode at major 1, in order of the bytes. */
const frozenParams = {
  embed: 'vocab width scale positions position_offset types',
  gather_rows: 'width',
  pool: 'width mode normalize',
  rms_norm: 'width count eps weight_offset',
  layer_norm: 'width eps',
  linear: 'n k activation',
  logits: 'vocab k scale softcap',
  rope: 'heads head_dim dim style attention_factor',
  attention:
    'heads kv_heads head_dim scale causal window softcap rope_dim rope_style attention_factor norm_eps norm_offset',
  glu: 'width activation',
  activation: 'width activation',
  residual: 'width scale',
  multiply: 'width',
  moe: 'width ff experts top_k activation router normalize scale',
  conv_state: 'channels kernel history activation',
  ssm_scan: 'heads head_dim groups state dt_min dt_max',
  delta_rule: 'heads key_heads key_dim value_dim scale normalize',
  sample: 'vocab',
}

function tablesOf(schema: string): Record<string, string> {
  const bare = schema.replace(/\/\/.*$/gm, '')
  const sections = bare.matchAll(/(?:table|struct)\s+(\w+)\s*\{([^}]*)\}/g)
  return Object.fromEntries(
    [...sections].map(([, name, body]) => [
      name!,
      body!
        .split(';')
        .map((field) => field.trim())
        .filter(Boolean)
        .join(' '),
    ]),
  )
}

const ids = (table: Readonly<Record<string, { readonly id: number }>>) =>
  Object.fromEntries(Object.entries(table).map(([name, { id }]) => [name, id]))

describe('version 1', () => {
  const tables = tablesOf(readFileSync(join(packageRoot(), 'abi/plan.fbs'), 'utf8'))

  it.each(Object.entries(frozenTables))('%s keeps its fields', (name, fields) => {
    if (structs.includes(name)) expect(tables[name]).toBe(fields)
    else expect(tables[name]!.startsWith(fields)).toBe(true)
  })

  it('keeps every id', () => {
    const now = {
      dtypes: ids(dtypes),
      layouts: ids(layouts),
      spaces,
      stateKinds,
      stateAccesses,
      activations,
      lifecycles,
      forks,
    }
    expect(now).toMatchObject(frozenIds)
  })

  it.each(Object.entries(frozenParams))(
    '%s keeps its parameters, and appended ones have a minor and a default',
    (name, fields) => {
      const definition = opDef(name as (typeof opNames)[number])
      if (definition.paramVersion[0] !== 1) return
      const names = Object.keys(definition.params)
      const frozen = fields.split(' ')
      expect(names.slice(0, frozen.length)).toEqual(frozen)
      for (const appended of names.slice(frozen.length)) {
        const { since, default: value } = definition.params[appended]!
        expect(since, appended).toBeGreaterThan(0)
        expect(value, appended).toBeDefined()
      }
    },
  )

  it('lists every opcode', () =>
    expect(Object.keys(frozenParams)).toEqual(expect.arrayContaining(opNames.slice(0, 18))))
})
