import { describe, expect, it } from 'vitest'
import { addon } from '../abi/native.ts'
import { ceilings } from './ceilings.ts'

const { available, physicalCores } = addon().machine()
/** Less than a figure wants: to allocate a GiB takes longer than to read it. */
const readBytes = 2 ** 28

describe('ceilings', () => {
  it('come from every unit of every instruction set', { timeout: 60_000 }, async () => {
    for (const isa of available) {
      const found = await ceilings({ isa, threads: 1, readBytes })
      expect(found).toMatchObject({ isa, threads: 1 })
      const units = ['f32', 'i8', ...(isa === 'amx' ? ['bf16', 'bf16_tile', 'i8_tile'] : [])]
      expect(Object.keys(found.units)).toEqual(units)
      for (const { low, median, samples } of [found.read, found.readPlain, ...Object.values(found.units)]) {
        expect(samples).toBeGreaterThan(4)
        expect(low).toBeGreaterThan(0)
        expect(median).toBeLessThan(1e7)
      }
      expect(found.read.median).toBeGreaterThanOrEqual(found.readPlain.median)
      expect(found.peak.bf16.median).toBeGreaterThanOrEqual(found.peak.f32.median)
    }
  })

  it('are of physical cores and the best instruction set unless asked otherwise', { timeout: 60_000 }, async () => {
    expect(await ceilings({ readBytes })).toMatchObject({ isa: available[0], threads: physicalCores })
  })

  it('keep the event loop free', { timeout: 60_000 }, async () => {
    let turns = 0
    const timer = setInterval(() => turns++, 5)
    await ceilings({ threads: 1, readBytes })
    clearInterval(timer)
    expect(turns).toBeGreaterThan(5)
  })

  it('refuse what is not there, and what is no number', async () => {
    await expect(ceilings({ isa: 'sse9' })).rejects.toMatchObject({ code: 'ISA_UNAVAILABLE' })
    expect(() => addon().probe({ isa: '', threads: -1, readBytes })).toThrow(/threads: expected an integer/)
  })
})
