/**
 * Holds the peer to an instruction set. Its package has one libggml-cpu-*.so for each, of which llama.cpp loads the best
 * that the machine can run; it looks in the working directory before its own folder. So a process whose working
 * directory links only some of them computes with the best of those. `device` of the answer says which one it was.
 */
import { mkdir, rm, symlink } from 'node:fs/promises'
import { join } from 'node:path'

/** By our instruction sets, the libraries that use nothing beyond them. */
const libraries: Readonly<Record<string, readonly string[]>> = {
  portable: ['x64'],
  avx2: ['haswell'],
  avx512: ['skylakex'],
  avx512_vnni: ['cascadelake', 'cooperlake', 'icelake', 'zen4'],
  amx: ['sapphirerapids'],
}

/** A working directory under `cache` for the peer; without `isa`, an empty one. Throws for an unknown name. */
export async function peerDirectory(cache: string, binaries: string, isa: string): Promise<string> {
  const names = isa === '' ? [] : libraries[isa]
  if (!names) throw new Error(`--isa ${isa}: expected one of ${Object.keys(libraries)}`)
  const folder = join(cache, `peer-${isa || 'any'}`)
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { recursive: true })
  for (const name of names)
    await symlink(join(binaries, `libggml-cpu-${name}.so`), join(folder, `libggml-cpu-${name}.so`))
  return folder
}
