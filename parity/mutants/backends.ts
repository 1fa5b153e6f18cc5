/** Defects outside of kernels: of a plan before it is opened, and of the host that packs steps and reads results. */
import type { OpName } from '../../abi/ops/index.ts'
import { type ResultView, ROW_RESULT_BYTES, type StepView, sampleParams, stepHeader } from '../../abi/step.ts'
import { cpuBackend } from '../../compute/cpu-backend.ts'
import type { Backend, LinkedPackage, Runner } from '../../compute/device.ts'
import { referenceBackend } from '../../compute/reference.ts'
import { writePlan } from '../../plans/write.ts'
import { type Plan, settle } from './rules.ts'

export interface BackendDefect {
  readonly name: string
  readonly why: string
  readonly backend: Backend
  /** Opcodes in whose cases it shows; none: only whole models show it. */
  readonly ops: readonly OpName[]
}

// --- plans

/** `change` edits every plan before it is opened; the placement follows. */
function edited(change: (plan: Plan) => void): Backend {
  const rewritten = (pkg: LinkedPackage): LinkedPackage => {
    const plan = structuredClone(pkg.plan) as Plan
    change(plan)
    settle(plan)
    return { ...pkg, plan, planBytes: writePlan(plan) }
  }
  return { ...cpuBackend, open: (pkg, options) => cpuBackend.open(rewritten(pkg), options) }
}

type Instructions = Plan['instructions']
const each =
  (op: OpName, change: (instruction: Instructions[number], plan: Plan) => void) =>
  (plan: Plan): void =>
    plan.instructions.filter((instruction) => instruction.op === op).forEach((found) => void change(found, plan))

const param = (op: OpName, name: string, value: (old: number) => number) =>
  each(op, ({ params }) => {
    const values = params as Record<string, number>
    values[name] = value(values[name]!)
  })

/** Instructions of one opcode exchange their weights in pairs, where these are alike. */
function weightsSwapped({ instructions, tensors }: Plan): void {
  const form = (i: Instructions[number]) =>
    JSON.stringify(i.weights.map((w) => w !== undefined && { ...tensors[w], name: '' }))
  const linears = instructions.filter(({ op }) => op === 'linear')
  for (const [i, one] of linears.entries()) {
    const other = linears.slice(i + 1).find((each) => form(each) === form(one) && each.label !== one.label)
    if (other) return void ([one.weights, other.weights] = [other.weights, one.weights])
  }
}

const planDefects: readonly BackendDefect[] = [
  {
    name: 'plan_residual_dropped',
    why: 'the compiler forgets the residual of a fused linear',
    backend: edited(each('linear', (instruction) => void (instruction.inputs[1] = undefined))),
    ops: ['linear'],
  },
  {
    name: 'plan_wrong_epsilon',
    why: 'the epsilon of another family',
    backend: edited(param('rms_norm', 'eps', (eps) => eps * 10)),
    ops: ['rms_norm'],
  },
  {
    name: 'plan_window_one_more',
    why: 'a window of the family counts the token itself, ours does not',
    backend: edited(param('attention', 'window', (window) => (window ? window + 1 : 0))),
    ops: ['attention'],
  },
  {
    name: 'plan_keys_and_values_swapped',
    why: 'column ranges of a merged projection in the wrong order',
    backend: edited(
      each('attention', ({ inputs }) => {
        const [, k, v] = inputs
        ;[inputs[1], inputs[2]] = [v, k]
      }),
    ),
    ops: ['attention'],
  },
  {
    name: 'plan_rope_style_flipped',
    why: 'halves for pairs',
    backend: edited(param('rope', 'style', (style) => 1 - style)),
    ops: ['rope'],
  },
  {
    name: 'plan_head_norms_dropped',
    why: 'queries and keys are not normalised',
    backend: edited(
      each('attention', ({ weights }) => {
        weights[1] = weights[2] = undefined
      }),
    ),
    ops: ['attention'],
  },
  {
    name: 'plan_bias_dropped',
    why: 'projections lose their bias',
    backend: edited(each('linear', ({ weights }) => void (weights[2] = undefined))),
    ops: ['linear'],
  },
  {
    name: 'plan_activation_replaced',
    why: 'gelu by its approximation',
    backend: edited(param('glu', 'activation', (id) => (id === 2 ? 3 : id))),
    ops: ['glu'],
  },
  {
    name: 'plan_weights_of_another_layer',
    why: 'two layers exchange a matrix',
    backend: edited(weightsSwapped),
    ops: [],
  },
  {
    name: 'plan_softcap_dropped',
    why: 'the head is not capped',
    backend: edited(param('logits', 'softcap', () => 0)),
    ops: ['logits'],
  },
]

// --- the host

type Step = (run: Runner['step'], step: StepView, result: ResultView) => Promise<void>

/** A backend whose steps go through `around`; what that does to the step buffer is undone. */
function around(backend: Backend, stepping: () => Step): Backend {
  return {
    ...backend,
    async open(pkg, options) {
      const runner = await backend.open(pkg, options)
      const through = stepping()
      const wrap =
        <T>(run: (step: StepView, result: ResultView) => Promise<T>) =>
        async (step: StepView, result: ResultView): Promise<T> => {
          const kept = step.buffer.slice(0)
          let answer: T | undefined
          try {
            await through(async (...given) => void (answer = await run(...given)), step, result)
          } finally {
            new Uint8Array(step.buffer).set(new Uint8Array(kept))
          }
          return answer as T
        }
      return {
        info: runner.info,
        step: wrap((step, result) => runner.step(step, result)),
        ...(runner.trace && { trace: wrap((step, result) => runner.trace!(step, result)) }),
        ...(runner.sentinels && { sentinels: () => runner.sentinels!() }),
        memory: () => runner.memory(),
        dispose: () => runner.dispose(),
      }
    },
  }
}

/** The step buffer changed before the step. */
const packing = (change: (step: StepView) => void, backend = cpuBackend) =>
  around(backend, () => (run, step, result) => {
    change(step)
    return run(step, result)
  })

const header = (name: keyof typeof stepHeader.word, value: number) => (step: StepView) =>
  void (step.header[stepHeader.word[name]] = value)

/** One field of the sampling options of every row. */
const option = (name: keyof typeof sampleParams.word, value: (old: number, row: number) => number) =>
  packing((step) => {
    const values = sampleParams.fields[name] === 'f32' ? step.samplingF32 : step.sampling
    for (let row = 0; row < step.header[stepHeader.word.rows]!; row++) {
      const at = (row * sampleParams.bytes) / 4 + sampleParams.word[name]
      values[at] = value(values[at]!, row)
    }
  })

/** Block tables of the step before, where there was one. */
function staleTables(): Step {
  let last: Int32Array | undefined
  return (run, step, result) => {
    const now = step.blockTable.slice()
    if (last) step.blockTable.set(last)
    last = now
    return run(step, result)
  }
}

/** Rows of the logits in another order than the rows that asked for them. */
const rotated = (): Step => async (run, step, result) => {
  await run(step, result)
  const rows = step.header[stepHeader.word.rows]!
  for (const matrix of [result.logits, result.hidden]) {
    const width = matrix.length / ((result.rows.length * 4) / ROW_RESULT_BYTES)
    if (rows < 2) continue
    const first = matrix.slice(0, width)
    matrix.copyWithin(0, width, width * rows)
    matrix.set(first, width * (rows - 1))
  }
}

const hostDefects: readonly BackendDefect[] = [
  {
    name: 'copy_on_write_ignored',
    why: 'a forked sequence reads a block that nobody filled',
    backend: packing(header('copies', 0)),
    ops: ['attention'],
  },
  {
    name: 'resets_ignored',
    why: 'a slot begins with what its last owner left',
    backend: packing(header('resets', 0), referenceBackend),
    ops: ['conv_state', 'ssm_scan', 'delta_rule'],
  },
  {
    name: 'stale_block_table',
    why: 'the table of the step before',
    backend: around(cpuBackend, staleTables),
    ops: ['attention'],
  },
  {
    name: 'seed_high_ignored',
    why: 'seeds of 64 bits are cut to 32',
    backend: option('seed_high', () => 0),
    ops: ['sample'],
  },
  {
    name: 'draw_position_off_by_one',
    why: 'the generator counts from another position',
    backend: option('position', (position) => position + 1),
    ops: ['sample'],
  },
  {
    name: 'temperature_ignored',
    why: 'everybody is greedy',
    backend: option('temperature', () => 0),
    ops: ['sample'],
  },
  {
    name: 'bias_of_next_row',
    why: 'a row takes the biases that follow its own',
    backend: option('bias_start', (start, row) => (row ? Math.max(0, start - 1) : start)),
    ops: ['sample'],
  },
  {
    name: 'history_one_short',
    why: 'the newest token is missing in the history',
    backend: option('history_count', (count) => Math.max(0, count - 1)),
    ops: ['sample'],
  },
  {
    name: 'top_logprobs_one_short',
    why: 'one alternative less than was asked for',
    backend: option('top_logprobs', (count) => Math.max(0, count - 1)),
    ops: ['sample'],
  },
  {
    name: 'rows_rotated',
    why: 'logits and hidden states of one row are delivered to the next',
    backend: around(cpuBackend, rotated),
    ops: ['gather_rows'],
  },
]

export const backendDefects: readonly BackendDefect[] = [...planDefects, ...hostDefects]
