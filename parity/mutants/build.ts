/**
 * Builds an addon that holds every mutated kernel beside the sound portable ones: each defect is an instruction set of
 * its own, whose table differs from the portable one in the opcodes that the defect touches. Sources are copied to a
 * temporary folder; only what a defect touches is compiled again for it.
 */
import { execFile } from 'node:child_process'
import { cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { type Addon, packageRoot } from '../../abi/native.ts'
import { ops } from '../../abi/ops/index.ts'
import { fail } from '../../errors.ts'
import { temporaryFolder } from '../../models/files.ts'
import { type KernelDefect, kernelDefects } from './defects.ts'

const run = promisify(execFile)

/** Instruction set of the sound kernels in the mutated addon. */
export const SOUND = 'portable'

export interface MutatedAddon extends AsyncDisposable {
  readonly addon: Addon
  /** Why a defect is left out: the machine lacks its instruction set. */
  readonly missing: ReadonlyMap<string, string>
  readonly seconds: number
}

/** Sources beside an opcode's own that hold part of its kernel. */
const parts: Readonly<Record<string, readonly string[]>> = { linear: ['product.cc'], logits: ['product.cc'] }

/** The variable of CMakeLists.txt that holds what an instruction set is compiled with. */
const flagsOf = (isa: string) => (isa === SOUND ? '' : `\${isa_${isa}}`)

/** `source` with each text replaced. Throws MUTANT_STALE unless it stands there exactly once. */
export const replaced = (file: string, source: string, edits: readonly (readonly [find: string, by: string])[]) =>
  edits.reduce((text, [find, by]) => {
    const got = text.split(find).length - 1
    if (got !== 1) throw fail('MUTANT_STALE', { find, file, got })
    return text.replace(find, () => by)
  }, source)

/** The source of a defect's file, with the defect. */
export const mutated = ({ file, find, replace }: KernelDefect, source: string): string =>
  replaced(file, source, [[find, replace]])

/** One translation unit: the kernels of a defect's opcodes, and a table that differs from the sound one in them. */
function unit({ name, ops: touched }: KernelDefect): string {
  const sources = [...new Set(touched.flatMap((op) => [`${op}.cc`, ...(parts[op] ?? [])]))]
  const entries = touched.map((op) => `    t.kernels[${ops[op].id}] = ${op};`)
  return [
    ...sources.map((source) => `#include "${source}"`),
    `namespace ingot::cpu::${SOUND} { extern const KernelTable table; }`,
    `namespace ingot::cpu::${name} {`,
    'const KernelTable& patched_table() {',
    '  static const KernelTable patched = [] {',
    `    KernelTable t = ${SOUND}::table;`,
    `    t.isa = "${name}";`,
    ...entries,
    '    return t;',
    '  }();',
    '  return patched;',
    '}',
    `}  // namespace ingot::cpu::${name}`,
    '',
  ].join('\n')
}

/** The build of the copy: portable kernels, then one object library a defect. */
const targets = (defects: readonly KernelDefect[]) =>
  defects
    .map(({ name, isa = SOUND }) =>
      [
        `add_library(mutant_${name} OBJECT native/${name}/unit.cc)`,
        `target_compile_definitions(mutant_${name} PRIVATE INGOT_ISA=${name} INGOT_ISA_${isa}=1)`,
        `target_compile_options(mutant_${name} PRIVATE -O0 -w ${flagsOf(isa)})`,
        `target_sources(ingot_cpu PRIVATE $<TARGET_OBJECTS:mutant_${name}>)`,
      ].join('\n'),
    )
    .join('\n')

const declarations = (defects: readonly KernelDefect[]) =>
  defects.map(({ name }) => `namespace ${name} { const KernelTable& patched_table(); }`).join('\n')
const registrations = (defects: readonly KernelDefect[]) =>
  defects
    .map(({ name }) => SOUND_SET.replace(SOUND, name).replace(`${SOUND}::table`, `${name}::patched_table()`))
    .join('')

/** Where native/cpu/dispatch.cc registers the sound set. */
const SOUND_SET = `  sets.push_back({"${SOUND}", &${SOUND}::table, &${SOUND}::probes, ${SOUND}::pack_tile, nullptr});\n`

/** dispatch.cc with a set for each defect. Throws MUTANT_STALE. */
export const registered = (source: string, defects: readonly KernelDefect[]): string =>
  replaced('dispatch.cc', source, [
    [`INGOT_DECLARE(${SOUND})\n`, `INGOT_DECLARE(${SOUND})\n${declarations(defects)}\n`],
    [SOUND_SET, `${SOUND_SET}${registrations(defects)}`],
  ])

/** CMakeLists.txt with what builds each defect. Throws MUTANT_STALE. */
export const withTargets = (source: string, defects: readonly KernelDefect[]): string =>
  // Cases are small: what -O3 gains, its compilation costs many times over.
  `${replaced('CMakeLists.txt', source, [['set(kernel_optimization -O3)', 'set(kernel_optimization -O1)']])}\n${targets(defects)}\n`

/** Copies the sources to `folder`, one copy of native/cpu a defect, and registers every set. */
async function prepare(folder: string, defects: readonly KernelDefect[]): Promise<void> {
  const root = packageRoot()
  await mkdir(join(folder, 'native'), { recursive: true })
  for (const part of ['core', 'gen', 'cpu', 'addon'])
    await cp(join(root, 'native', part), join(folder, 'native', part), { recursive: true })
  for (const defect of defects) {
    const own = join(folder, 'native', defect.name)
    await cp(join(root, 'native', 'cpu'), own, { recursive: true })
    await writeFile(join(own, defect.file), mutated(defect, await readFile(join(own, defect.file), 'utf8')))
    await writeFile(join(own, 'unit.cc'), unit(defect))
  }
  const dispatch = join(folder, 'native', 'cpu', 'dispatch.cc')
  await writeFile(dispatch, registered(await readFile(dispatch, 'utf8'), defects))
  const cmake = await readFile(join(root, 'CMakeLists.txt'), 'utf8')
  await writeFile(join(folder, 'CMakeLists.txt'), withTargets(cmake, defects))
}

/** Builds the copy with CMake, without the sound kernels of other instruction sets. Throws MUTANT_BUILD. */
async function build(folder: string): Promise<string> {
  const require = createRequire(import.meta.url)
  const includes = [require('node-api-headers').include_dir, dirname(require.resolve('node-addon-api'))]
  const out = join(folder, 'build')
  const settings = [
    '-DCMAKE_BUILD_TYPE=Release',
    '-DINGOT_PORTABLE=ON',
    `-DCMAKE_JS_INC=${includes.join(';')}`,
    ...(process.platform === 'darwin' ? ['-DCMAKE_SHARED_LINKER_FLAGS=-undefined dynamic_lookup'] : []),
  ]
  try {
    await run('cmake', ['-S', folder, '-B', out, ...settings], { maxBuffer: 2 ** 26 })
    await run('cmake', ['--build', out, '--parallel', '2', '--target', 'ingot'], { maxBuffer: 2 ** 26 })
  } catch (cause) {
    const { stdout = '', stderr = '' } = cause as { stdout?: string; stderr?: string }
    const reason = `${stdout}\n${stderr}`.split('\n').find((line) => /error/i.test(line)) ?? (cause as Error).message
    throw fail('MUTANT_BUILD', { reason: reason.trim() }, cause)
  }
  return join(out, 'ingot.node')
}

/** Defects that this machine can run, and why not the others. */
function runnable(machine: ReturnType<Addon['machine']>, defects: readonly KernelDefect[]) {
  const missing = new Map<string, string>()
  for (const { name, isa = SOUND } of defects)
    if (!machine.available.includes(isa))
      missing.set(name, machine.unavailable.find((other) => other.isa === isa)?.reason ?? `this build has no ${isa}`)
  return { missing, present: defects.filter(({ name }) => !missing.has(name)) }
}

/** Compiles `defects` into one addon and loads it; `machine` says which instruction sets there are. */
export async function buildMutants(
  machine: ReturnType<Addon['machine']>,
  defects: readonly KernelDefect[] = kernelDefects,
): Promise<MutatedAddon> {
  const started = performance.now()
  const { missing, present } = runnable(machine, defects)
  const folder = await temporaryFolder('mutants')
  const remove = () => rm(folder, { recursive: true, force: true })
  try {
    await prepare(folder, present)
    const addon = createRequire(import.meta.url)(await build(folder)) as Addon
    return { addon, missing, seconds: (performance.now() - started) / 1000, [Symbol.asyncDispose]: remove }
  } catch (error) {
    await remove()
    throw error
  }
}
