/** The command line of `npm run bench:peers`. Wrong usage ends with exit code 2. */
import { join } from 'node:path'
import { Command, InvalidArgumentError } from 'commander'
import { packageRoot } from '../../abi/native.ts'
import type { Format } from './convert.ts'
import { type ScenarioName, scenarioNames } from './scenarios.ts'
import { type ShapeName, shapeNames } from './shapes.ts'

export interface Options {
  readonly models: readonly ShapeName[]
  readonly formats: readonly Format[]
  readonly only: readonly ScenarioName[]
  readonly layers: number
  readonly rounds: number
  readonly seconds: number
  readonly minutes: number
  readonly threads: number
  readonly isa: string
  readonly install: boolean
  readonly parity: boolean
  readonly prepare?: boolean
  readonly quick?: boolean
  readonly out: string
}

const someOf = (known: readonly string[]) => (text: string) => {
  const names = text.split(',').filter(Boolean)
  const wrong = names.find((name) => !known.includes(name))
  if (wrong !== undefined || names.length === 0) throw new InvalidArgumentError(`expected some of ${known.join(', ')}.`)
  return names
}

const integer = (least: number) => (text: string) => {
  const value = Number(text)
  if (!Number.isInteger(value) || value < least)
    throw new InvalidArgumentError(`expected an integer of at least ${least}.`)
  return value
}

const quick = {
  layers: 2,
  rounds: 1,
  seconds: 1,
  formats: ['q4'],
  only: scenarioNames.filter((name) => name !== 'decode8192'),
}

export function readOptions(argv: readonly string[] = process.argv): Options {
  const formats = ['q4', 'q8', 'bf16']
  const command = new Command('bench:peers')
    .option('--models <list>', `of ${shapeNames.join(', ')}`, someOf(shapeNames), ['Llama-3.2-1B'])
    .option('--formats <list>', `of ${formats.join(', ')}`, someOf(formats), formats)
    .option('--only <list>', `of ${scenarioNames.join(', ')}`, someOf(scenarioNames), scenarioNames)
    .option('--layers <n>', 'the first n layers of each model only; 0: all', integer(0), 0)
    .option('--rounds <n>', 'pairs of processes of each cell', integer(1), 3)
    .option('--seconds <n>', 'that a measurement takes, besides what it sets up', integer(1), 3)
    .option('--minutes <n>', 'start nothing new after so long', integer(1), 600)
    .option('--threads <n>', 'of both sides; 0: physical cores', integer(0), 0)
    .option('--isa <name>', 'hold both sides to an instruction set of "ingot doctor"', '')
    .option('--no-install', 'take the peer as bench/peers/node_modules has it')
    .option('--no-parity', 'leave out the comparison of logits and losses')
    .option('--prepare', 'make the files and stop')
    .option('--quick', 'a check of the bench itself: q4, 2 layers, 1 round, 1 second')
    .option('--out <folder>', 'where results go', join(packageRoot(), 'bench', 'results'))
    .configureOutput({ writeOut: (text) => process.stderr.write(text) })
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : 2))
    .parse(argv)
  const given = command.opts<Options>()
  if (!given.quick) return given
  const fromUser = Object.entries(given).filter(([name]) => command.getOptionValueSource(name) === 'cli')
  return { ...given, ...quick, ...Object.fromEntries(fromUser) } as Options
}
