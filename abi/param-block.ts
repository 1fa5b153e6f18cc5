/**
 * ParamBlock: the parameters of one instruction as bytes that both languages read.
 *
 * Layout: u32 size (of the block, header included), u16 major, u16 minor, then the fields of the opcode's definition in
 * order, 4 bytes each, little-endian. Policy: a field is only ever appended, with a new minor and a default. A reader
 * accepts its own major with any minor up to its own (absent fields take their defaults) and refuses everything newer,
 * because a field that it does not know could change the meaning.
 */
import type { OpDef, ParamField, ParamsInput, ParamsOf } from './ops/define.ts'

export const PARAM_HEADER_BYTES = 8

/** Why a block is refused: index of the check, in words. */
export type ParamRefusal = { readonly refused: string; readonly newer: boolean }

const fieldsOf = (definition: OpDef): [string, ParamField][] => Object.entries(definition.params)

/** Bytes of a block of `definition` at `minor`. */
export function paramBlockBytes(definition: OpDef, minor = definition.paramVersion[1]): number {
  return PARAM_HEADER_BYTES + 4 * fieldsOf(definition).filter(([, field]) => (field.since ?? 0) <= minor).length
}

/** Lowest minor that expresses `params`: a field still at its default need not be written. */
function lowestMinor(definition: OpDef, params: Readonly<Record<string, number>>): number {
  return Math.max(
    0,
    ...fieldsOf(definition).map(([name, field]) => (params[name] === field.default ? 0 : (field.since ?? 0))),
  )
}

/** All fields of `input`, defaults filled in; f32 fields rounded to float32, so that both languages see one value. */
export function fillParams<O extends OpDef>(definition: O, input: ParamsInput<O>): ParamsOf<O> {
  const given = input as Readonly<Record<string, number | undefined>>
  const filled: Record<string, number> = {}
  for (const [name, field] of fieldsOf(definition)) {
    const value = given[name] ?? field.default
    if (value === undefined) throw new TypeError(`${definition.name}: parameter ${name} is missing`)
    const fits =
      field.type === 'f32' ||
      (Number.isInteger(value) &&
        value >= (field.type === 'u32' ? 0 : -(2 ** 31)) &&
        value < (field.type === 'u32' ? 2 ** 32 : 2 ** 31))
    if (!fits || Number.isNaN(value))
      throw new TypeError(`${definition.name}: parameter ${name}: expected ${field.type}, got ${value}`)
    filled[name] = field.type === 'f32' ? Math.fround(value) : value
  }
  const unknown = Object.keys(given).find((name) => !(name in definition.params))
  if (unknown) throw new TypeError(`${definition.name}: unknown parameter ${unknown}`)
  return filled as ParamsOf<O>
}

/** Encodes filled parameters with the lowest minor that expresses them. */
export function encodeParams(definition: OpDef, params: Readonly<Record<string, number>>): Uint8Array {
  const minor = lowestMinor(definition, params)
  const bytes = new Uint8Array(paramBlockBytes(definition, minor))
  const view = new DataView(bytes.buffer)
  view.setUint32(0, bytes.length, true)
  view.setUint16(4, definition.paramVersion[0], true)
  view.setUint16(6, minor, true)
  let offset = PARAM_HEADER_BYTES
  for (const [name, field] of fieldsOf(definition)) {
    if ((field.since ?? 0) > minor) continue
    const value = params[name]!
    if (field.type === 'f32') view.setFloat32(offset, value, true)
    else if (field.type === 'i32') view.setInt32(offset, value, true)
    else view.setUint32(offset, value, true)
    offset += 4
  }
  return bytes
}

/** Decodes a block, or says why it is refused. */
export function decodeParams<O extends OpDef>(definition: O, bytes: Uint8Array): ParamsOf<O> | ParamRefusal {
  if (bytes.length < PARAM_HEADER_BYTES)
    return { refused: `block of ${bytes.length} bytes has no header`, newer: false }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const [major, minor] = [view.getUint16(4, true), view.getUint16(6, true)]
  const [knownMajor, knownMinor] = definition.paramVersion
  if (major !== knownMajor || minor > knownMinor) {
    const newer = major > knownMajor || (major === knownMajor && minor > knownMinor)
    return {
      refused: `block version ${major}.${minor}, this runtime reads ${knownMajor}.0 to ${knownMajor}.${knownMinor}`,
      newer,
    }
  }
  const size = paramBlockBytes(definition, minor)
  if (view.getUint32(0, true) !== size || bytes.length !== size)
    return { refused: `block of ${bytes.length} bytes, version ${major}.${minor} has ${size}`, newer: false }
  const params: Record<string, number> = {}
  let offset = PARAM_HEADER_BYTES
  for (const [name, field] of fieldsOf(definition)) {
    if ((field.since ?? 0) > minor) {
      params[name] = field.default!
      continue
    }
    params[name] =
      field.type === 'f32'
        ? view.getFloat32(offset, true)
        : field.type === 'i32'
          ? view.getInt32(offset, true)
          : view.getUint32(offset, true)
    offset += 4
  }
  return params as ParamsOf<O>
}
