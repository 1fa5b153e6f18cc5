/** What a report shows: every part is optional, and a part that is absent leaves no trace in the page. */
import type { MatrixReport } from './matrix-report.ts'

/** One opcode of a backend in the op conformance suite: cases by outcome. */
export interface ConformanceOp {
  readonly op: string
  readonly passed: number
  readonly failed: number
  /** dtype or feature, and why the backend does not have it. */
  readonly unsupported: readonly { readonly what: string; readonly reason: string }[]
  /** Known to fail, with the issue. */
  readonly expectedFailures: readonly { readonly what: string; readonly issue: string }[]
  /** Largest error over its tolerance, of the cases that ran. */
  readonly worst?: number
}

export interface ConformancePart {
  readonly backend: string
  readonly pass: boolean
  readonly ops: readonly ConformanceOp[]
}

/** Bars of one measurement side by side; more is better unless `lowerIsBetter`. */
export interface PerformanceGroup {
  readonly name: string
  readonly unit: string
  readonly lowerIsBetter?: boolean
  readonly bars: readonly {
    readonly name: string
    readonly value: number
    /** 10th and 90th percentile, or least and most. */
    readonly spread?: readonly [low: number, high: number]
    /** Ours is drawn in the accent colour. */
    readonly own?: boolean
  }[]
  /** What the hardware allows, in the same unit. */
  readonly ceiling?: number
  /** Least (or most) that passes, in the same unit. */
  readonly threshold?: number
}

export interface PerformancePart {
  readonly machine: string
  readonly groups: readonly PerformanceGroup[]
}

export interface CertificatePart {
  readonly verdict: string
  readonly keyId: string
  readonly issued: string
  readonly expires?: string
  readonly subjects: readonly { readonly name: string; readonly sha256: string }[]
  /** Whatever else the predicate holds: reference, device, driver ... */
  readonly facts?: readonly (readonly [name: string, value: string])[]
}

export interface LedgerPart {
  readonly entries: readonly {
    readonly index: number
    readonly time: string
    readonly what: string
    readonly by: string
    readonly hash: string
  }[]
}

/** What a gate caught: "28 of 30 seeded defects". */
export interface ScorePart {
  readonly name: string
  readonly caught: number
  readonly total: number
  readonly note?: string
}

export interface ReportData {
  readonly title: string
  /** One line under the title. */
  readonly subtitle?: string
  /** Of all; absent: the matrix's. */
  readonly pass?: boolean
  readonly matrix?: MatrixReport
  readonly conformance?: readonly ConformancePart[]
  readonly performance?: PerformancePart
  readonly scores?: readonly ScorePart[]
  readonly certificate?: CertificatePart
  readonly ledger?: LedgerPart
  /** Commands that make this again. */
  readonly commands?: readonly string[]
}
