/** Fixed-layout records shared with C++: every field 4 bytes (u32, i32, f32), little-endian, in order. */
export type FieldType = 'u32' | 'i32' | 'f32'

export interface RecordDef<F extends Readonly<Record<string, FieldType>> = Readonly<Record<string, FieldType>>> {
  readonly name: string
  readonly fields: F
  readonly bytes: number
  /** Index of a field in 4-byte words. */
  readonly word: { readonly [K in keyof F]: number }
}

export function record<const F extends Readonly<Record<string, FieldType>>>(name: string, fields: F): RecordDef<F> {
  const names = Object.keys(fields)
  const word = Object.fromEntries(names.map((field, index) => [field, index])) as { [K in keyof F]: number }
  return { name, fields, bytes: names.length * 4, word }
}
