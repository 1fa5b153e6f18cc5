/**
 * How a weight of logical shape (rows, cols) = (N outputs, K inputs) lies in memory. Ids are written into plans.
 *
 * - `row`: row-major, exactly as in the checkpoint.
 * - `tile16*`: ceil(rows / 16) tiles; a tile is [ceil(cols / pack)][16 rows][pack cols], with cols first padded with
 *   zeros to a multiple of `align` and rows to a multiple of 16. One 512-bit vector then holds 16 outputs (x `pack`
 *   consecutive k): the order that VNNI and AMX read without a shuffle.
 */
export const layouts = {
  row: { id: 0, rows: 1, pack: 1, align: 1 },
  /**
   * f32 and f16 weights; the f16 scales of q8 and q4 (cols = blocks along K), int8 sub-scales of q4 (groups), and f32
   * scales of fp8 (one column).
   */
  tile16: { id: 1, rows: 16, pack: 1, align: 1 },
  /** bf16 weights: pairs along K, as VDPBF16PS and TDPBF16PS read them. */
  tile16x2: { id: 2, rows: 16, pack: 2, align: 32 },
  /** int8 weights: quads along K, as VPDPBUSD and TDPB*SD read them; e4m3 weights. */
  tile16x4: { id: 3, rows: 16, pack: 4, align: 32 },
  /** int4 weights: two quads along K in the halves of four bytes (packInt4 of abi/dtypes.ts). */
  tile16x8: { id: 4, rows: 16, pack: 8, align: 32 },
} as const

export type Layout = keyof typeof layouts
export const layoutNames = Object.keys(layouts) as Layout[]

/** The layout of a plan id, or undefined for an id this runtime does not know. */
export function layoutOf(id: number): Layout | undefined {
  return layoutNames.find((name) => layouts[name].id === id)
}

const roundUp = (value: number, multiple: number) => Math.ceil(value / multiple) * multiple

/** Padded (rows, cols) of a layout; their product is what is stored. */
export function paddedShape(layout: Layout, rows: number, cols: number): [rows: number, cols: number] {
  const { rows: tile, align } = layouts[layout]
  return [roundUp(rows, tile), roundUp(cols, align)]
}

/** Element index of logical (row, col) inside a stored weight. */
export function elementIndex(layout: Layout, cols: number, row: number, col: number): number {
  const { rows: tile, pack, align } = layouts[layout]
  const padded = roundUp(cols, align)
  const within = (Math.floor(col / pack) * tile + (row % tile)) * pack + (col % pack)
  return Math.floor(row / tile) * tile * padded + within
}
